import { type Compilable, sql } from 'kysely'
import pg from 'pg'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import { SYSTEM, asApp } from '../../src/db/as-caller.js'
import { type Db, createDatabase } from '../../src/db/database.js'
import { Deadline } from '../../src/db/deadline.js'
import type { GuardedPool } from '../../src/db/guarded-pool.js'
import { budgetsFor } from '../../src/db/pool.js'
import { inTransaction } from '../../src/db/transaction.js'
import { anyUser, lockSetup } from '../../src/db/users.js'
import type { PostgresSettings } from '../../src/db/postgres-source.js'
import type { BreakerEvent } from '../../src/resilience/circuit-breaker.js'
import { BREAKER, createPostgresDatabase, guardedPool, guardedPools } from '../engine.js'
import { Proxy } from '../proxy.js'

let url: string
let drop: () => Promise<void>
let superuser: pg.Client
let proxy: Proxy
let way: string
let pools: GuardedPool[]

beforeAll(async () => {
  ;({ url, drop } = await createPostgresDatabase())
  superuser = new pg.Client({ connectionString: url })
  await superuser.connect()
})
afterAll(async () => {
  await superuser.end()
  await drop()
})
beforeEach(async () => {
  pools = []
  proxy = new Proxy(url)
  await proxy.open()
  way = proxy.through(url)
  await superuser.query('delete from auth_throttle')
})
afterEach(async () => {
  await Promise.all(pools.map((pool) => pool.end(100)))
  proxy.close()
  // A backend behind a silent proxy goes on with what it was asked.
  await superuser.query(
    "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'gary-test'",
  )
  await expect.poll(() => backends()).toEqual([])
})

/** A pool by the proxy, whose circuit opens after three calls. */
function open(settings: Partial<PostgresSettings> = {}): {
  pool: GuardedPool
  db: Db
  events: BreakerEvent[]
} {
  const events: BreakerEvent[] = []
  const pool = guardedPool(way, {
    breaker: { ...BREAKER, minCalls: 3 },
    onTransition: (event) => events.push(event),
    ...settings,
  })
  pools.push(pool)
  return { pool, db: createDatabase(pool), events }
}

const one = (db: Db) => db.selectNoFrom(sql<number>`1`.as('one'))
const sleeps = (db: Db, seconds: number) => db.selectNoFrom(sql`pg_sleep(${seconds})`.as('slept'))
const code = (work: Promise<unknown>): Promise<string> =>
  work.then(
    () => 'ok',
    (error: unknown) => (error as { code: string }).code,
  )
const state = (pool: GuardedPool) => pool.health().breaker?.state

async function elapsedMs(work: () => Promise<unknown>): Promise<number> {
  const startedAt = performance.now()
  await work()
  return performance.now() - startedAt
}

/** Backends of the service's pools that run a statement containing `text`. */
async function running(text: string): Promise<number> {
  const { rowCount } = await superuser.query(
    "select from pg_stat_activity where datname = current_database() and application_name = 'gary-test' and state = 'active' and query like $1",
    [`%${text}%`],
  )
  return rowCount ?? 0
}

describe('a lost database', () => {
  it('opens the circuit; calls are then refused at once, without a connection, with Retry-After', async () => {
    const { pool, db } = open({
      breaker: { ...BREAKER, minCalls: 3, waitBaseMs: 60_000, waitCapMs: 60_000 },
      reconnectCapMs: 60_000,
    })
    await asApp(db, one(db))
    await proxy.become('reset')
    for (let call = 0; call < 3; call += 1) expect(await code(asApp(db, one(db)))).toBe('unavailable')
    expect(state(pool)).toBe('open')
    const before = proxy.connections
    const refusal = await asApp(db, one(db)).catch((error: unknown) => error)
    expect(refusal).toMatchObject({ code: 'unavailable', retryAfterSeconds: expect.any(Number) })
    expect(await elapsedMs(() => asApp(db, one(db)).catch(() => {}))).toBeLessThan(50)
    expect(proxy.connections).toBe(before)
  })

  it('that is back is found from outside the pool and served again, with no call in between', async () => {
    const { pool, db, events } = open()
    await proxy.become('reset')
    while (state(pool) !== 'open') await code(asApp(db, one(db)))
    await proxy.become('pass')
    await expect.poll(() => state(pool), { timeout: 3000 }).toBe('closed')
    expect(await code(asApp(db, one(db)))).toBe('ok')
    expect(events.at(-1)).toMatchObject({ from: 'half_open', to: 'closed', reason: 'probes_succeeded' })
  })

  it('tells health what was met and when it is looked for again', async () => {
    const { pool, db } = open({ reconnectCapMs: 60_000 })
    await proxy.become('reset')
    while (state(pool) !== 'open') await code(asApp(db, one(db)))
    expect(pool.health().lastError?.class).toBe('lost')
    expect(pool.health().nextProbeMs).not.toBeNull()
  })

  it('that was not there at the start opens the circuit with the first failure', async () => {
    const { pool } = open()
    await proxy.become('reset')
    const back = pool.recovered()
    expect(state(pool)).toMatch(/open/)
    await proxy.become('pass')
    expect(await back).toBe(true)
    expect(state(pool)).toBe('closed')
  })

  it('that comes back read-only stays lost, until it takes changes', async () => {
    const { pool, db } = open()
    await superuser.query(
      `alter database ${new URL(url).pathname.slice(1)} set default_transaction_read_only = on`,
    )
    await proxy.become('reset')
    while (state(pool) !== 'open') await code(asApp(db, one(db)))
    await proxy.become('pass')
    await expect.poll(() => proxy.connections).toBeGreaterThan(3)
    expect(state(pool)).not.toBe('closed')
    await superuser.query(
      `alter database ${new URL(url).pathname.slice(1)} reset default_transaction_read_only`,
    )
    await expect.poll(() => state(pool), { timeout: 3000 }).toBe('closed')
  })

  it('is asked for a sign of life when nobody else asks', async () => {
    const { pool } = open()
    expect(pool.health().sinceAnswerMs).toBeNull()
    await expect.poll(() => pool.health().sinceAnswerMs, { timeout: 5000 }).not.toBeNull()
  })
})

describe('the circuit stays closed', () => {
  const harmless: [string, (db: Db) => Compilable<unknown>][] = [
    ['constraint violations', (db) => db.insertInto('auth_throttle').values({ bucket: 'taken' })],
    ['bad values', (db) => db.selectNoFrom(sql`cast('x' as integer)`.as('x'))],
    ['denied statements', (db) => db.selectFrom('config_entries').select('value')],
    ['wrong statements', (db) => db.selectNoFrom(sql`no_such_function()`.as('x'))],
    [
      'too many parameters (08P01)',
      (db) =>
        db
          .insertInto('auth_throttle')
          .values(Array.from({ length: 33_000 }, (_, at) => ({ bucket: `b${at}`, failures: 1 }))),
    ],
  ]
  it.each(harmless)('through %s, however many', async (_, query) => {
    const { pool, db } = open()
    await superuser.query("insert into auth_throttle (bucket) values ('taken')")
    for (let call = 0; call < 6; call += 1) expect(await code(asApp<unknown>(db, query(db)))).not.toBe('ok')
    expect(pool.health().breaker).toMatchObject({ state: 'closed', failures: 0 })
  })

  it('through a pool that is only full, which is found out beside the pool', async () => {
    const { pool, db } = open({ size: 1, budgets: { ...budgetsFor(60_000), acquireMs: 200 } })
    const holder = asApp(db, sleeps(db, 1.5))
    await expect.poll(() => pool.health().pool.idle).toBe(0)
    for (let call = 0; call < 4; call += 1) expect(await code(asApp(db, one(db)))).toBe('pool_exhausted')
    await holder
    expect(pool.health().breaker).toMatchObject({ state: 'closed', failures: 0 })
  })

  it('but a full pool whose database does not answer beside it either counts as lost', async () => {
    const { pool, db } = open({ size: 1, budgets: { ...budgetsFor(60_000), acquireMs: 200 } })
    const holder = code(asApp(db, sleeps(db, 60)))
    await expect.poll(() => running('pg_sleep')).toBe(1)
    await proxy.become('black_hole')
    const calls = [1, 2, 3].map(() => code(asApp(db, one(db))))
    expect(await Promise.all(calls)).toEqual(['pool_exhausted', 'pool_exhausted', 'pool_exhausted'])
    await expect.poll(() => state(pool), { timeout: 3000 }).not.toBe('closed')
    await proxy.become('reset')
    expect(await holder).toBe('unavailable')
  })

  it('for a stream that its reader takes slowly, while a slow statement of a request counts', async () => {
    const { requests, streams } = guardedPools(way, { slowMs: 100 })
    pools.push(requests, streams)
    const of = createDatabase(streams)
    await asApp(of, sleeps(of, 0.2))
    expect(requests.health().breaker).toMatchObject({ calls: 1, slow: 0 })
    const db = createDatabase(requests)
    await asApp(db, sleeps(db, 0.2))
    expect(requests.health().breaker).toMatchObject({ calls: 2, slow: 1 })
  })
})

describe('a stream', () => {
  it('is no probe: with the circuit half open it is refused', async () => {
    const states: (string | undefined)[] = []
    const sources = guardedPools(way, {
      onTransition: ({ to }) => {
        if (to !== 'half_open') return
        const db = createDatabase(sources.streams)
        void code(asApp(db, one(db))).then((answer) => states.push(answer))
      },
    })
    pools.push(sources.requests, sources.streams)
    await sources.requests.recovered()
    expect(states).toEqual(['unavailable'])
  })
})

describe('a connection that was lost while it lay idle', () => {
  const kill = () =>
    superuser.query(
      "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'gary-test'",
    )
  const insert = (db: Db) => db.insertInto('auth_throttle').values({ bucket: 'b' })

  /** A pool with one idle client that will meet its end only when it is used. */
  async function withStaleClient(
    settings: Partial<PostgresSettings> = {},
  ): Promise<{ pool: GuardedPool; db: Db }> {
    const { pool, db } = open({ size: 1, ...settings })
    await asApp(db, one(db))
    proxy.dropServers()
    expect(pool.health().pool.idle).toBe(1)
    return { pool, db }
  }

  it('is replaced under a read and under the first statement of a transaction, unnoticed', async () => {
    const reading = await withStaleClient()
    expect(await code(asApp(reading.db, one(reading.db)))).toBe('ok')
    const changing = await withStaleClient()
    const work = inTransaction(changing.db, SYSTEM, async (tx) => {
      await tx.executeQuery(lockSetup(tx))
      return await tx.executeQuery(anyUser(tx))
    })
    expect(await code(work)).toBe('ok')
  })

  it('under a write is `outcome_unknown`, since it may have been lost behind the write', async () => {
    const { db } = await withStaleClient()
    expect(await code(asApp(db, insert(db)))).toBe('outcome_unknown')
    expect((await superuser.query('select from auth_throttle')).rowCount).toBe(0)
  })

  it('later in a transaction is told, and nothing of it is repeated', async () => {
    const { db } = open({ size: 1 })
    let runs = 0
    const work = db.transaction().execute(async (tx) => {
      runs += 1
      await insert(tx).execute()
      await kill()
      await one(tx).execute()
    })
    expect(await code(work)).toBe('unavailable')
    expect(runs).toBe(1)
    expect((await superuser.query('select from auth_throttle')).rowCount).toBe(0)
  })

  it('is sent again within a budget only: a loss of all connections does not double the load', async () => {
    const { db } = open({ size: 1, breaker: { ...BREAKER, minCalls: 1_000_000 } })
    const answers: string[] = []
    for (let call = 0; call < 110; call += 1) {
      await code(asApp(db, one(db)))
      proxy.dropServers()
      answers.push(await code(asApp(db, one(db))))
    }
    expect(answers.slice(0, 80)).toEqual(Array.from({ length: 80 }, () => 'ok'))
    expect(answers).toContain('unavailable')
  })
})

describe('the deadline of a request', () => {
  const within = (deadline: Deadline, ms: number) => setTimeout(() => deadline.end('expired'), ms)

  it('stops the statement on the server, which changed nothing, and says so', async () => {
    const { db, pool } = open()
    const deadline = new Deadline()
    const write = db
      .insertInto('auth_throttle')
      .values({ bucket: sql<string>`(select 'b' from pg_sleep(60))` })
    const outcome = code(asApp(db, write, deadline))
    await expect.poll(() => running('pg_sleep')).toBe(1)
    within(deadline, 0)
    expect(await outcome).toBe('deadline_exceeded')
    expect(proxy.cancels).toBe(1)
    expect(await running('pg_sleep')).toBe(0)
    expect((await superuser.query('select from auth_throttle')).rowCount).toBe(0)
    expect(pool.health().breaker).toMatchObject({ calls: 0, failures: 0 })
  })

  it('does the same when the client goes away', async () => {
    const { db } = open()
    const deadline = new Deadline()
    const outcome = code(asApp(db, sleeps(db, 60), deadline))
    await expect.poll(() => running('pg_sleep')).toBe(1)
    deadline.end('client_gone')
    expect(await outcome).toBe('deadline_exceeded')
    expect(await running('pg_sleep')).toBe(0)
  })

  it('leaves the connection unused afterwards: a late request to cancel would hit the next statement', async () => {
    const { db } = open({ size: 1 })
    const backend = sql<{ pid: number }>`select pg_backend_pid() as pid`
    const before = (await backend.execute(db)).rows[0]?.pid
    const deadline = new Deadline()
    const outcome = code(asApp(db, sleeps(db, 60), deadline))
    await expect.poll(() => running('pg_sleep')).toBe(1)
    deadline.end('expired')
    await outcome
    expect((await backend.execute(db)).rows[0]?.pid).not.toBe(before)
  })

  it('that has ended already sends nothing, also not the COMMIT of a transaction', async () => {
    const { db } = open()
    const deadline = new Deadline()
    const work = inTransaction(db, { ...SYSTEM, deadline }, async (tx) => {
      await sql`select 1`.execute(tx)
      deadline.end('expired')
    })
    expect(await code(work)).toBe('deadline_exceeded')
    expect(await code(asApp(db, one(db), deadline))).toBe('deadline_exceeded')
  })

  it.each([
    ['expired', 1],
    ['client_gone', 0],
  ] as const)(
    'with a server that answers nothing more loses the connection; a write is `outcome_unknown` (%s: %i failure)',
    async (end, failures) => {
      const { db, pool } = open()
      const deadline = new Deadline()
      await asApp(db, one(db))
      await proxy.become('black_hole')
      const write = code(asApp(db, db.insertInto('auth_throttle').values({ bucket: 'b' }), deadline))
      await expect.poll(() => pool.health().pool.idle).toBe(0)
      const waitedMs = elapsedMs(() => write)
      deadline.end(end)
      expect(await write).toBe('outcome_unknown')
      expect(await waitedMs).toBeLessThan(2500)
      expect(pool.health().pool.total).toBe(0)
      expect(pool.health().breaker?.failures).toBe(failures)
    },
  )
})

describe('a server that became read-only', () => {
  it('makes every client of the pool be replaced, the idle ones at once', async () => {
    const { db, pool } = open({ size: 4 })
    await Promise.all([1, 2, 3, 4].map(() => asApp(db, sleeps(db, 0.1))))
    expect(pool.health().pool.idle).toBe(4)
    const before = await backends()
    const failing = db.transaction().execute(async (tx) => {
      await sql`set transaction read only`.execute(tx)
      await tx.insertInto('auth_throttle').values({ bucket: 'b' }).execute()
    })
    expect(await code(failing)).toBe('unavailable')
    await expect.poll(async () => (await backends()).filter((pid) => before.includes(pid))).toEqual([])
    expect(await code(asApp(db, db.insertInto('auth_throttle').values({ bucket: 'b' })))).toBe('ok')
  })
})

async function backends(): Promise<number[]> {
  const { rows } = await superuser.query<{ pid: number }>(
    "select pid from pg_stat_activity where datname = current_database() and application_name = 'gary-test'",
  )
  return rows.map(({ pid }) => pid)
}
