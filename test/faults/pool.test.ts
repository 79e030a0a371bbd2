import { randomBytes, randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import type pg from 'pg'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { createLogin } from '../../src/db/create-login.js'
import { Cluster } from './cluster.js'
import { eventually } from './eventually.js'
import { type Answer, OPERATIONS_TOKEN, PASSWORD, Service } from './service.js'
import { superuser } from './superuser.js'

let cluster: Cluster

beforeAll(async () => {
  // Below the lock timeouts here, as the server's default is below the service's.
  cluster = await Cluster.create({ settings: ['max_connections=40', 'deadlock_timeout=250ms'] })
})
afterAll(async () => await cluster.destroy())

/** How many there are of each answer, and that each refusal says when to come again. */
function tally(answers: readonly Answer[]): Record<string, number> {
  const found: Record<string, number> = {}
  for (const { status, body, retryAfter } of answers) {
    const name = status < 300 ? `${status}` : `${status} ${body.code}`
    found[name] = (found[name] ?? 0) + 1
    if (status === 503) expect(retryAfter, name).toBeGreaterThanOrEqual(1)
  }
  return found
}

describe('F14: other clients take every connection the server has', () => {
  /** All that the server gives to anyone, the ones kept for superusers too. */
  async function takeEverySlot(): Promise<pg.Client[]> {
    const taken: pg.Client[] = []
    for (;;) {
      try {
        taken.push(await superuser(cluster))
      } catch (error) {
        expect(error).toMatchObject({ code: '53300' })
        return taken
      }
    }
  }

  it('and it serves by those it has, or says 503, throws none of them away, and grows again when there is room', async () => {
    const name = `svc_${randomBytes(4).toString('hex')}`
    const { password } = await createLogin({ connectionString: cluster.url() }, name, 6000)
    const url = new URL(cluster.url(await cluster.database()))
    Object.assign(url, { username: name, password })
    const service = await new Service(url.href, { DATABASE_LANES: '0' }).started()
    const token = await service.login()
    const burst = () =>
      Promise.all(Array.from({ length: 20 }, () => service.request('GET', '/v1/auth/session', { token })))
    const watcher = await superuser(cluster)
    const backends = async () =>
      (
        await watcher.query<{ pid: number }>(
          "select pid from pg_stat_activity where application_name = 'gary-zero-service'",
        )
      ).rows.map(({ pid }) => pid)
    const before = await backends()
    expect(before.length).toBeLessThan(8)

    const taken = await takeEverySlot()
    const answers: Answer[] = []
    await eventually('requests that found no room', async () => {
      answers.push(...(await burst()))
      const { database } = await service.health()
      return database.last_error?.class === 'exhausted' ? true : undefined
    })
    for (let round = 0; round < 5; round += 1) answers.push(...(await burst()))
    expect(
      Object.keys(tally(answers)).filter((name) => !/^(200|503 unavailable|503 pool_exhausted)$/.test(name)),
    ).toEqual([])
    for (const { elapsedMs } of answers) expect(elapsedMs).toBeLessThan(2500)
    expect(await backends()).toEqual(expect.arrayContaining(before))

    for (const client of taken) await client.end()
    const freedAtMs = performance.now()
    await eventually('all are served again', async () =>
      tally(await burst())['200'] === 20 ? true : undefined,
    )
    expect(performance.now() - freedAtMs).toBeLessThan(2500)
    await burst()
    expect((await service.health()).database.breaker.state).toBe('closed')
    expect(await backends()).toEqual(expect.arrayContaining(before))
    await watcher.end()
    await service.stop()
  })
})

describe('F15: all connections of the pool wait for a lock', () => {
  it('and waiting for one is bounded, health answers at once, the circuit stays closed, and it heals', async () => {
    const database = await cluster.database()
    const acquireMs = 500
    const service = await new Service(cluster.url(database), {
      DATABASE_ACQUIRE_MS: String(acquireMs),
      // Above what is waited for a connection, and below what counts as slow, as it is by default.
      DATABASE_LOCK_MS: '900',
      DATABASE_POOL_SIZE: '4',
      DATABASE_LANES: '0',
    }).started()
    const token = await service.login()
    const created = await service.request('PUT', '/v1/config/global/held', {
      token,
      body: { value: 1 },
      headers: { 'if-none-match': '*' },
    })
    expect(created.status).toBe(201)
    const read = () => service.request('GET', '/v1/config/global/held', { token })

    const holder = await superuser(cluster, database)
    await holder.query('begin; lock table config_entries in access exclusive mode')
    const held = new AbortController()
    const answers: Answer[] = []
    const readers = Array.from({ length: 40 }, async () => {
      while (!held.signal.aborted) answers.push(await read())
    })
    await eventually('the pool is exhausted', async () => {
      const { pool } = (await service.health()).database
      return pool.total === 4 && pool.idle === 0 && pool.waiting > 0 ? true : undefined
    })
    const asked: number[] = []
    const heldUntilMs = performance.now() + 4000
    const watching = (async () => {
      while (performance.now() < heldUntilMs) {
        for (const path of ['/health', '/health/detailed', '/ready', '/health/live']) {
          const { status, elapsedMs, body } = await service.request('GET', path, { token: OPERATIONS_TOKEN })
          expect([path, status]).toEqual([path, 200])
          if (path === '/health') expect(body.database.breaker.state).toBe('closed')
          asked.push(elapsedMs)
        }
        await sleep(10)
      }
    })()
    while (performance.now() < heldUntilMs) {
      const { status, elapsedMs } = await service.request('POST', '/v1/auth/login', {
        body: { username: 'owner', password: PASSWORD },
      })
      expect([200, 503]).toContain(status)
      // Two statements, and the password between them.
      expect(elapsedMs).toBeLessThan(2 * acquireMs + 1000)
    }
    await watching
    held.abort()
    await holder.end()
    await Promise.all(readers)

    const found = tally(answers)
    expect(found['503 pool_exhausted']).toBeGreaterThan(40)
    expect(
      Object.keys(found).filter((name) => !/^(200|503 unavailable|503 pool_exhausted)$/.test(name)),
    ).toEqual([])
    for (const { body, elapsedMs } of answers) {
      // The session's look-up may have waited as well.
      if (body.code === 'pool_exhausted') expect(elapsedMs).toBeLessThan(2 * acquireMs + 1000)
    }
    asked.sort((a, b) => a - b)
    expect(asked[Math.floor(asked.length / 2)]).toBeLessThan(50)
    // None waited for a connection; what is above 50 ms is the machine's.
    expect(asked.at(-1)).toBeLessThan(acquireMs)
    await eventually('it serves again', async () => ((await read()).status === 200 ? true : undefined))
    const { database: healed } = await service.health()
    expect([healed.breaker.state, healed.breaker.openings, healed.breaker.failures]).toEqual(['closed', 0, 0])
    await eventually('the pool is idle', async () => {
      const { pool } = (await service.health()).database
      return pool.idle === pool.total && pool.waiting === 0 ? true : undefined
    })
    await service.stop()
  })
})

describe('F16: a pool of one connection', () => {
  it('and 20 clients at once go through the whole API: nobody waits for a second connection while holding the first', async () => {
    const service = await new Service(cluster.url(await cluster.database()), {
      DATABASE_POOL_SIZE: '1',
      // As in production: with 20 clients on one connection, their turn is what they wait for.
      DATABASE_TIMEOUT: '30',
    }).started()
    const owner = await service.login()
    // One after the other: an account at an address has room for five at once.
    const tokens: string[] = []
    for (let index = 0; index < 20; index += 1) tokens.push(await service.login())
    const round = async (token: string): Promise<void> => {
      const key = randomUUID()
      const expectStatus = async (
        status: number,
        method: string,
        path: string,
        body?: unknown,
        headers: Record<string, string> = {},
        as = owner,
      ): Promise<Answer> => {
        const answer = await service.request(method, path, { token: as, body, headers })
        expect([method, path, answer.status]).toEqual([method, path, status])
        return answer
      }
      const entry = `/v1/config/global/${key}`
      await expectStatus(200, 'GET', '/v1/auth/session', undefined, {}, token)
      await expectStatus(
        201,
        'PUT',
        entry,
        { value: { a: 1 } },
        { 'if-none-match': '*', 'idempotency-key': key },
      )
      await expectStatus(
        201,
        'PUT',
        entry,
        { value: { a: 1 } },
        { 'if-none-match': '*', 'idempotency-key': key },
      )
      await expectStatus(200, 'GET', entry)
      await expectStatus(200, 'PATCH', entry, { b: { password: 'secret-canary' } })
      await expectStatus(200, 'PATCH', entry, { c: 3 }, { 'idempotency-key': key })
      await expectStatus(200, 'GET', `${entry}?reveal=true`)
      await expectStatus(200, 'GET', `${entry}/revisions?values=true`)
      const event = { event_id: key, event_type: 'system_event', level: 'info', message: 'one' }
      await expectStatus(201, 'POST', '/v1/audit/events', [event, { ...event, event_id: randomUUID() }])
      await expectStatus(200, 'GET', `/v1/audit/events/${key}`)
      await expectStatus(200, 'GET', '/v1/audit/events?limit=5')
      await expectStatus(200, 'GET', '/v1/reports')
      await expectStatus(200, 'GET', '/v1/reports/logins-per-day')
      await expectStatus(204, 'DELETE', entry, undefined, { 'if-match': '*', 'idempotency-key': key })
      await expectStatus(401, 'POST', '/v1/auth/login', { username: key, password: 'wrong' })
      await expectStatus(204, 'POST', '/v1/auth/logout', undefined, { 'idempotency-key': key }, token)
    }
    await Promise.all(tokens.map(round))
    const { pool, breaker } = (await service.health()).database
    expect([pool, breaker.state]).toEqual([{ total: 1, idle: 1, waiting: 0, limit: 1 }, 'closed'])
    await service.stop()
  })
})

describe('F17: clients change the same entries, and others hold their rows', () => {
  const keys = ['a', 'b', 'c', 'd']
  /** Waits for locks are short here, so that some end by their limit. */
  const env = { DATABASE_TIMEOUT: '12', DATABASE_LOCK_MS: '400' }

  /** Clients that PATCH until told to stop: each change a member of its own, so that a lost one is missed. */
  class Patches {
    readonly acknowledged: { key: string; mark: string }[] = []
    readonly answers: Answer[] = []
    readonly #done: Promise<unknown>
    #stopping = false

    constructor(service: Service, token: string, clients: number) {
      const client = async (index: number): Promise<void> => {
        for (let turn = index; !this.#stopping; turn += 1) {
          const key = keys[turn % keys.length] ?? ''
          const mark = randomUUID()
          const answer = await service.request('PATCH', `/v1/config/global/${key}`, {
            token,
            body: { [mark]: turn },
            headers: turn % 2 === 0 ? { 'idempotency-key': mark } : {},
          })
          this.answers.push(answer)
          if (answer.status === 200) this.acknowledged.push({ key, mark })
        }
      }
      this.#done = Promise.all(Array.from({ length: clients }, (_, index) => client(index)))
    }

    async stop(): Promise<void> {
      this.#stopping = true
      await this.#done
    }

    /** Nothing but 200 and 503; and what is stored is what was acknowledged, each once, with no gap in the versions. */
    async check(database: string): Promise<void> {
      const found = tally(this.answers)
      process.stdout.write(`    ${JSON.stringify(found)}\n`)
      expect(Object.keys(found).filter((name) => name !== '200' && name !== '503 unavailable')).toEqual([])
      const rows = await cluster.query<Record<string, unknown>>(
        `select key, version, value,
                (select array_agg(r.version order by r.version) from config_revisions r where r.key = e.key) as revisions,
                (select count(*)::int from audit_events where target = 'config/global/' || key and action = 'config.patch') as audited
           from config_entries e order by key`,
        database,
      )
      for (const { key, version, value, revisions, audited } of rows) {
        const marks = this.acknowledged.filter((change) => change.key === key).map(({ mark }) => mark)
        expect(Object.keys(JSON.parse(value as string)).sort(), `entry ${key}`).toEqual(marks.sort())
        expect([version, audited], `entry ${key}`).toEqual([marks.length + 1, marks.length])
        expect(revisions, `entry ${key}`).toEqual(Array.from({ length: marks.length + 1 }, (_, at) => at + 1))
      }
    }
  }

  async function prepared(): Promise<{ database: string; service: Service; token: string }> {
    const database = await cluster.database()
    const service = await new Service(cluster.url(database), env).started()
    const token = await service.login()
    for (const key of keys) {
      const { status } = await service.request('PUT', `/v1/config/global/${key}`, {
        token,
        body: { value: {} },
        headers: { 'if-none-match': '*' },
      })
      expect(status).toBe(201)
    }
    return { database, service, token }
  }

  async function ended(service: Service): Promise<void> {
    const { breaker } = (await service.health()).database
    expect([breaker.state, breaker.openings, breaker.failures]).toEqual(['closed', 0, 0])
    await service.stop()
  }

  it('and deadlock over them: 200 or 503, and one revision and one audit row for each change', async () => {
    const { database, service, token } = await prepared()
    const patches = new Patches(service, token, 12)
    const holders = await Promise.all([superuser(cluster, database), superuser(cluster, database)])
    const lock = 'select from config_entries where key = $1 for update'
    let deadlocks = 0
    const hold = async (holder: pg.Client, order: string[]): Promise<void> => {
      for (let round = 0; round < 6; round += 1) {
        await holder.query('begin')
        try {
          for (const key of order) await holder.query(lock, [key])
          await sleep(500)
        } catch (error) {
          expect(error).toMatchObject({ code: '40P01' })
          deadlocks += 1
        }
        await holder.query('rollback')
      }
    }
    await Promise.all(
      holders.map((holder, index) => hold(holder, index === 0 ? ['a', 'b', 'c'] : ['c', 'b', 'a'])),
    )
    for (const holder of holders) await holder.end()
    await patches.stop()
    expect(deadlocks).toBeGreaterThan(0)
    expect(tally(patches.answers)['503 unavailable'], 'the locks hit nobody').toBeGreaterThan(0)
    await patches.check(database)
    await ended(service)
  })

  it.each([
    ['the other side gives up', '20ms'],
    ["the service's transaction is the victim", '10s'],
  ])('and deadlock with the service itself, where %s', async (_, patience) => {
    const { database, service, token } = await prepared()
    const patches = new Patches(service, token, 4)
    const other = await superuser(cluster, database)
    await other.query(`set deadlock_timeout = '${patience}'`)
    const waiting = () =>
      eventually('somebody waits', async () => {
        const rows = await cluster.query(
          `select from pg_stat_activity
            where datname = '${database}' and application_name = 'gary-zero-service' and wait_event_type = 'Lock'`,
        )
        return rows.length > 0 ? true : undefined
      })
    for (let round = 0; round < 8; round += 1) {
      const key = keys[round % keys.length] ?? ''
      await other.query('begin')
      // The places of the next revisions are taken: who changes the entry waits for one, with the entry's row locked...
      await other.query(
        `insert into config_revisions (scope, owner, environment, key, version, operation, value, actor_type, actor_name)
         select scope, owner, environment, key, version + ahead, 'put', '0', 'system', 'test'
           from config_entries, generate_series(1, 50) as ahead where key = $1 on conflict do nothing`,
        [key],
      )
      await waiting()
      // ... which the other one wants as well.
      await other
        .query('select from config_entries where key = $1 for update', [key])
        .catch((error: unknown) => {
          expect(error).toMatchObject({ code: '40P01' })
        })
      await other.query('rollback')
    }
    await other.end()
    await patches.stop()
    await patches.check(database)
    await eventually('the server has counted deadlocks', async () => {
      const [row] = await cluster.query<{ deadlocks: string }>(
        `select deadlocks from pg_stat_database where datname = '${database}'`,
      )
      return Number(row?.deadlocks) > 0 ? true : undefined
    })
    await ended(service)
  })
})
