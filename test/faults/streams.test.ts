import http from 'node:http'
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

/** Reads a report a kilobyte a second, until it is let go. */
function slowReader(from = service): { status: Promise<number>; leave(): void; bytes(): number } {
  let bytes = 0
  const request = http.get(`${from.base}/v1/reports/logins-per-day?format=ndjson&from=1700-01-01`, {
    headers: { authorization: `Bearer ${token}` },
    agent: false,
  })
  let reading: NodeJS.Timeout | undefined
  const status = new Promise<number>((resolve, reject) => {
    request.on('error', reject)
    request.on('response', (response) => {
      response.pause()
      response.on('error', () => {})
      reading = setInterval(() => (bytes += (response.read(100) as Buffer | null)?.length ?? 0), 100)
      resolve(response.statusCode ?? 0)
    })
  })
  status.catch(() => {})
  return {
    status,
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
