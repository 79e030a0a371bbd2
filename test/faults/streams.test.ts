import http from 'node:http'
import { setTimeout as sleep } from 'node:timers/promises'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { Cluster } from './cluster.js'
import { eventually } from './eventually.js'
import { OPERATIONS_TOKEN, Service } from './service.js'

let cluster: Cluster
let service: Service
let token: string
let database: string

beforeAll(async () => {
  cluster = await Cluster.create()
  database = await cluster.database()
  service = await new Service(cluster.url(database)).started()
  token = await service.login()
  // A row a day, for so many days that no buffer on the way swallows the report.
  await cluster.query(
    `insert into audit_events (received_at, event_id, occurred_at, event_type, level, source, actor_type, actor_id, actor_name, action, event)
     select now() - make_interval(days => i), gen_random_uuid(), now(), 'authentication', 'info', 'service', 'user', i, 'u', 'auth.login', '{}'
       from generate_series(1, 90000) i`,
    database,
  )
})
afterAll(async () => {
  await service.stop()
  await cluster.destroy()
})

const streams = async () =>
  (await service.request('GET', '/health/detailed', { token: OPERATIONS_TOKEN })).body.streams

interface Reader {
  status: Promise<number>
  /** Whether all that was announced came. */
  end: Promise<'whole' | 'cut'>
  /** From now on as fast as it comes. */
  drain(): void
  leave(): void
  bytes(): number
}

/** Reads a report a kilobyte a second, until it is let go. */
function slowReader(from = service): Reader {
  let bytes = 0
  const request = http.get(`${from.base}/v1/reports/logins-per-day?format=ndjson&from=1700-01-01`, {
    headers: { authorization: `Bearer ${token}` },
    agent: false,
  })
  let reading: NodeJS.Timeout | undefined
  const response = new Promise<http.IncomingMessage>((resolve, reject) => {
    request.on('error', reject)
    request.on('response', (response) => {
      response.pause()
      response.on('error', () => {})
      reading = setInterval(() => (bytes += (response.read(100) as Buffer | null)?.length ?? 0), 100)
      resolve(response)
    })
  })
  const status = response.then(({ statusCode }) => statusCode ?? 0)
  const end = response.then(
    (response) =>
      new Promise<'whole' | 'cut'>((resolve) => {
        response.on('close', () => resolve(response.complete ? 'whole' : 'cut'))
      }),
  )
  for (const promise of [response, status, end]) promise.catch(() => {})
  return {
    status,
    end,
    drain() {
      clearInterval(reading)
      void response.then(
        (response) => response.resume(),
        () => undefined,
      )
    },
    leave() {
      clearInterval(reading)
      request.destroy()
    },
    bytes: () => bytes,
  }
}

describe('a reader of a kilobyte a second', () => {
  it('holds a connection of the streams for as long as he reads, opens no circuit and holds up no request', async () => {
    const readers = [slowReader(), slowReader()]
    expect(await Promise.all(readers.map(({ status }) => status))).toEqual([200, 200])
    // As long as a slow statement is, by the settings here, and longer.
    const until = performance.now() + 4000
    while (performance.now() < until) {
      const answer = await service.request('GET', '/v1/auth/session', { token })
      expect(answer.status).toBe(200)
      expect(await service.isReady()).toBe(true)
    }
    expect((await streams()).pool).toMatchObject({ total: 2, idle: 0 })
    for (const { bytes } of readers) expect(bytes()).toBeGreaterThan(1000)
    const { breaker } = (await service.health()).database
    expect([breaker.state, breaker.failures, breaker.slow]).toEqual(['closed', 0, 0])

    // The third waits no longer than for any connection.
    const third = await service.request('GET', '/v1/reports/logins-per-day?format=ndjson&from=1700-01-01', {
      token,
    })
    expect([third.status, third.body.code]).toEqual([503, 'pool_exhausted'])
    expect(third.elapsedMs).toBeLessThan(2500)
    expect((await service.health()).database.breaker.failures).toBe(0)

    for (const { leave } of readers) leave()
    await eventually('their connections are free', async () => {
      const { pool } = await streams()
      return pool.total === pool.idle ? true : undefined
    })
    const next = slowReader()
    expect(await next.status).toBe(200)
    next.leave()
  })

  it('whose backend is killed is cut off, so that nobody takes a part for the whole, and the process lives', async () => {
    for (const leave of [false, true]) {
      const reader = slowReader()
      expect(await reader.status).toBe(200)
      await cluster.query(
        "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'gary-zero-service' and state <> 'idle'",
      )
      // A service that is asked to go on reading meets the loss; one that is left gives up what is lost.
      if (leave) reader.leave()
      else {
        reader.drain()
        expect(await reader.end).toBe('cut')
      }
      await eventually('the connection is given back', async () =>
        (await streams()).pool.total === (await streams()).pool.idle ? true : undefined,
      )
    }
    expect(await service.isReady()).toBe(true)
  })

  it('or a hundred, who leave at any moment, hold nothing afterwards and end nothing', async () => {
    for (let index = 0; index < 100; index += 1) {
      const reader = slowReader()
      if (index % 2 === 0) reader.drain()
      await sleep(index / 2)
      reader.leave()
    }
    await eventually('the connections are given back', async () => {
      const { pool } = await streams()
      return pool.total === pool.idle && pool.waiting === 0 ? true : undefined
    })
    const whole = slowReader()
    whole.drain()
    expect([await whole.status, await whole.end]).toEqual([200, 'whole'])
  })

  it('is not made by HEAD, which has no body: it takes no connection', async () => {
    for (let index = 0; index < 5; index += 1) {
      const { status, headers } = await service.request('HEAD', '/v1/reports/logins-per-day?format=ndjson', {
        token,
      })
      expect([status, headers.get('content-type')]).toEqual([200, 'application/x-ndjson'])
    }
    const { pool } = await streams()
    expect(pool.total).toBe(pool.idle)
  })

  it('whose backend is lost does not hold up the end of the process: exit code 0', async () => {
    const ending = await new Service(cluster.url(database)).started()
    const reader = slowReader(ending)
    expect(await reader.status).toBe(200)
    await cluster.query(
      "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'gary-zero-service' and state <> 'idle'",
    )
    await ending.stop()
    reader.leave()
  })

  it('does not hold up the end of the process: exit code 0 within the drain time', async () => {
    const ending = await new Service(cluster.url(database)).started()
    const reader = slowReader(ending)
    expect(await reader.status).toBe(200)
    const startedAt = performance.now()
    await ending.stop()
    // DRAIN_SECONDS of service.ts, and half a second for the process to end.
    expect(performance.now() - startedAt).toBeLessThan(4500)
    reader.leave()
  })
})
