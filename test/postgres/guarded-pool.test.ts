import { once } from 'node:events'
import { type AddressInfo, type Server, type Socket, connect, createServer } from 'node:net'
import { type Compilable, sql } from 'kysely'
import pg from 'pg'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import { asApp } from '../../src/db/as-caller.js'
import { type Db, createDatabase } from '../../src/db/database.js'
import type { GuardedPool } from '../../src/db/guarded-pool.js'
import { sqlState } from '../../src/db/pg-errors.js'
import { budgetsFor } from '../../src/db/pool.js'
import type { PostgresSettings } from '../../src/db/postgres-source.js'
import type { SourceConnection } from '../../src/db/source.js'
import { createPostgresDatabase, guardedPool } from '../engine.js'

let url: string
let drop: () => Promise<void>
let superuser: pg.Client
let pools: GuardedPool[]
let listeners: Server[]

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
  listeners = []
  await superuser.query('delete from auth_throttle')
})
afterEach(async () => {
  await Promise.all(pools.map((pool) => pool.end(100)))
  for (const listener of listeners) listener.close()
})

function open(settings: Partial<PostgresSettings> = {}, at = url): { pool: GuardedPool; db: Db } {
  const pool = guardedPool(at, { size: 1, ...settings })
  pools.push(pool)
  return { pool, db: createDatabase(pool) }
}

/** A server of ours on loopback; its URL in place of the database's. */
async function listen(onClient: (client: Socket) => void): Promise<string> {
  const listener = createServer((client) => {
    client.on('error', () => client.destroy())
    onClient(client)
  }).listen(0, '127.0.0.1')
  listeners.push(listener)
  await once(listener, 'listening')
  const at = new URL(url)
  at.host = `127.0.0.1:${(listener.address() as AddressInfo).port}`
  return at.href
}

function dialServer(client: Socket): Socket {
  const { hostname, port } = new URL(url)
  const server = connect(Number(port || 5432), hostname)
  for (const end of [client, server]) {
    end.on('error', () => end.destroy())
    end.on('close', () => (end === client ? server : client).destroy())
  }
  return server
}

function insertBucket(db: Db, bucket: string) {
  return db.insertInto('auth_throttle').values({ bucket })
}

async function storedBuckets(): Promise<string[]> {
  const { rows } = await superuser.query<{ bucket: string }>('select bucket from auth_throttle order by 1')
  return rows.map(({ bucket }) => bucket)
}

async function backendOf(db: Db): Promise<number> {
  const [row] = await asApp(db, db.selectNoFrom(sql<number>`pg_backend_pid()`.as('pid')))
  return row?.pid ?? 0
}

async function backendOfConnection(connection: SourceConnection): Promise<number> {
  const { rows } = await connection.execute([
    { text: 'select pg_backend_pid() as pid', values: [], name: undefined },
  ])
  return (rows as { pid: number }[])[0]?.pid ?? 0
}

async function isAlive(pid: number): Promise<boolean> {
  const { rowCount } = await superuser.query('select from pg_stat_activity where pid = $1', [pid])
  return rowCount === 1
}

async function terminate(pid: number): Promise<void> {
  await superuser.query('select pg_terminate_backend($1)', [pid])
  await expect.poll(() => isAlive(pid)).toBe(false)
}

async function elapsedMs(work: () => Promise<unknown>): Promise<number> {
  const startedAt = performance.now()
  await work()
  return performance.now() - startedAt
}

describe('an acknowledged write', () => {
  it('is stored, also right after a transaction whose statement got no answer in time', async () => {
    const { db } = open({ budgets: { ...budgetsFor(60_000), queryMs: 300 } })
    const before = await backendOf(db)
    const stuck = db.transaction().execute(async (tx) => {
      await insertBucket(tx, 'in the transaction').execute()
      await sql`select pg_sleep(60)`.execute(tx)
    })
    await expect(stuck).rejects.toMatchObject({ code: 'deadline_exceeded' })
    await asApp(db, insertBucket(db, 'after'))
    expect(await storedBuckets()).toEqual(['after'])
    expect(await backendOf(db)).not.toBe(before)
  })

  it('is stored after a holder gave its client back inside a transaction', async () => {
    const { pool, db } = open()
    const connection = await pool.connect()
    const before = await backendOfConnection(connection)
    await connection.execute([{ text: 'begin', values: [], name: undefined }])
    connection.release()
    await asApp(db, insertBucket(db, 'after'))
    expect(await storedBuckets()).toEqual(['after'])
    expect(await backendOf(db)).not.toBe(before)
    await expect.poll(() => isAlive(before)).toBe(false)
  })
})

describe('a backend that ends', () => {
  it('under a client in hand is told to onIdleError, and the next statement works', async () => {
    const told: Error[] = []
    const { pool, db } = open({ onIdleError: (error) => told.push(error) })
    const connection = await pool.connect()
    const before = await backendOfConnection(connection)
    await terminate(before)
    await expect.poll(() => told.length).toBeGreaterThan(0)
    await expect(backendOfConnection(connection)).rejects.toThrow()
    connection.release()
    expect(await backendOf(db)).not.toBe(before)
  })

  it('under an idle client is told to onIdleError, and the next statement works', async () => {
    const told: Error[] = []
    const { pool, db } = open({ onIdleError: (error) => told.push(error) })
    const before = await backendOf(db)
    await terminate(before)
    await expect.poll(() => told.length).toBeGreaterThan(0)
    expect(pool.health().pool.total).toBe(0)
    expect(await backendOf(db)).not.toBe(before)
  })

  /** Runs `query`, and ends its backend as soon as it sleeps. */
  async function endedWhileRunning(query: (db: Db) => Compilable<unknown>): Promise<unknown> {
    const { db } = open({
      applicationName: 'gary-sleeper',
      budgets: { ...budgetsFor(10_000), statementMs: 700 },
    })
    const outcome = asApp<unknown>(db, query(db)).catch((error: unknown) => error)
    const sleeper = async () => {
      const { rows } = await superuser.query<{ pid: number }>(
        "select pid from pg_stat_activity where datname = current_database() and application_name = 'gary-sleeper' and wait_event = 'PgSleep'",
      )
      return rows[0]?.pid
    }
    await expect.poll(sleeper).toBeDefined()
    await terminate((await sleeper()) ?? 0)
    return await outcome
  }

  it('under a read lets it be sent once more, on another connection', async () => {
    const [row] = (await endedWhileRunning((db) =>
      db.selectNoFrom([sql`pg_sleep(0.5)`.as('slept'), sql<number>`1`.as('one')]),
    )) as { one: number }[]
    expect(row?.one).toBe(1)
  })

  it('under a write answers `outcome_unknown`, and the write is not sent again', async () => {
    await superuser.query("insert into auth_throttle (bucket) values ('a')")
    const outcome = await endedWhileRunning((db) =>
      db
        .updateTable('auth_throttle')
        .set({ failures: sql<number>`(select failures + 1 from pg_sleep(0.5))` }),
    )
    expect(outcome).toMatchObject({ code: 'outcome_unknown' })
    const { rows } = await superuser.query<{ failures: number }>('select failures from auth_throttle')
    expect(rows).toEqual([{ failures: 0 }])
  })
})

describe('the first error', () => {
  it('is the one thrown when ROLLBACK fails after it, with its SQLSTATE', async () => {
    const { db } = open()
    await asApp(db, insertBucket(db, 'taken'))
    const work = db.transaction().execute(async (tx) => {
      const { rows } = await sql<{ pid: number }>`select pg_backend_pid() as pid`.execute(tx)
      try {
        await insertBucket(tx, 'taken').execute()
      } finally {
        await terminate(rows[0]?.pid ?? 0)
      }
    })
    const error: unknown = await work.catch((error: unknown) => error)
    expect(error).toMatchObject({ code: 'conflict' })
    expect(sqlState(error)).toBe('23505')
    expect(await storedBuckets()).toEqual(['taken'])
  })
})

describe('a constraint violation', () => {
  it('keeps its backend', async () => {
    const { db } = open()
    const before = await backendOf(db)
    await asApp(db, insertBucket(db, 'taken'))
    for (let round = 0; round < 10; round += 1) {
      await expect(asApp(db, insertBucket(db, 'taken'))).rejects.toMatchObject({ code: 'conflict' })
    }
    expect(await backendOf(db)).toBe(before)
  })

  it('keeps its backend when ReadyForQuery arrives after the error, by itself', async () => {
    const READY = Buffer.from([0x5a, 0, 0, 0, 5])
    let held = 0
    const slow = await listen((client) => {
      const server = dialServer(client)
      client.on('data', (chunk) => server.write(chunk))
      server.on('data', (chunk) => {
        const ready = chunk.subarray(-6, -1).equals(READY) && chunk.length > 6
        client.write(ready ? chunk.subarray(0, -6) : chunk)
        if (!ready) return
        held += 1
        setTimeout(() => client.write(chunk.subarray(-6)), 30)
      })
    })
    const { db } = open({}, slow)
    const before = await backendOf(db)
    await asApp(db, insertBucket(db, 'taken'))
    for (let round = 0; round < 3; round += 1) {
      await expect(asApp(db, insertBucket(db, 'taken'))).rejects.toMatchObject({ code: 'conflict' })
    }
    expect(await backendOf(db)).toBe(before)
    expect(held).toBeGreaterThanOrEqual(3)
  })
})

describe('a client past its lifetime', () => {
  it('is replaced when it is given back, and one within it is not', async () => {
    const { db } = open({ lifetimeMs: 200 })
    const first = await backendOf(db)
    await expect.poll(() => backendOf(db)).not.toBe(first)
    await expect.poll(() => isAlive(first)).toBe(false)

    const lasting = open({ lifetimeMs: 60_000 }).db
    const pids = new Set<number>()
    for (let round = 0; round < 20; round += 1) pids.add(await backendOf(lasting))
    expect(pids.size).toBe(1)
  })
})

describe('waiting for a client', () => {
  it('ends with `pool_exhausted` and Retry-After within the acquire budget', async () => {
    const { pool, db } = open({ budgets: { ...budgetsFor(60_000), acquireMs: 300 } })
    const connection = await pool.connect()
    const waitedMs = await elapsedMs(() =>
      expect(backendOf(db)).rejects.toMatchObject({ code: 'pool_exhausted', retryAfterSeconds: 1 }),
    )
    expect(waitedMs).toBeGreaterThan(250)
    expect(waitedMs).toBeLessThan(1000)
    connection.release()
    expect(await backendOf(db)).toBeGreaterThan(0)
  })

  it('ends within the acquire budget when a server accepts and never answers', async () => {
    const silent = await listen(() => {})
    const { pool, db } = open({ budgets: { ...budgetsFor(60_000), acquireMs: 300 } }, silent)
    const waitedMs = await elapsedMs(() =>
      expect(backendOf(db)).rejects.toMatchObject({ code: 'unavailable', retryAfterSeconds: 1 }),
    )
    expect(waitedMs).toBeLessThan(1000)
    expect(pool.health().pool.total).toBe(0)
  })

  it('ends within the acquire budget when a server is slow to greet and silent at the first query', async () => {
    const silent = await listen((client) => {
      const server = dialServer(client)
      // The startup message has no type byte, so it cannot begin with that of a query.
      let greeted = false
      client.on('data', (chunk) => {
        if (chunk[0] !== 0x51) setTimeout(() => server.write(chunk), greeted ? 0 : 800)
        greeted = true
      })
      server.on('data', (chunk) => client.write(chunk))
    })
    const { pool, db } = open({ budgets: { ...budgetsFor(60_000), acquireMs: 1000 } }, silent)
    const waitedMs = await elapsedMs(() => expect(backendOf(db)).rejects.toThrow())
    expect(waitedMs).toBeLessThan(1600)
    await expect.poll(() => pool.health().pool.total, { timeout: 3000 }).toBe(0)
  })

  it('never yields a connection that is not gary_app', async () => {
    const { db } = open({ pooled: true })
    await expect(backendOf(db)).rejects.toMatchObject({ code: 'unavailable', retryAfterSeconds: 30 })
  })
})

describe('the end of the pool', () => {
  it('refuses waiters at once and comes within its bound while a statement hangs', async () => {
    const { pool, db } = open({ budgets: budgetsFor(60_000) })
    const hanging = sql`select pg_sleep(60)`.execute(db).catch((error: unknown) => error)
    await expect.poll(() => pool.health().pool.total - pool.health().pool.idle).toBe(1)
    const refusals: number[] = []
    const startedAt = performance.now()
    const waiters = [1, 2, 3].map(() =>
      pool.connect().catch((error: unknown) => {
        refusals.push(performance.now() - startedAt)
        return error
      }),
    )
    await expect.poll(() => pool.health().pool.waiting).toBe(3)
    const endingAt = performance.now()
    const ended = pool.end(1000)
    for (const refused of await Promise.all(waiters)) expect(refused).toMatchObject({ code: 'unavailable' })
    expect(Math.max(...refusals) - (endingAt - startedAt)).toBeLessThan(300)
    await ended
    expect(performance.now() - endingAt).toBeLessThan(1500)
    expect(await hanging).toMatchObject({ code: 'outcome_unknown' })
    await expect(pool.connect()).rejects.toMatchObject({
      code: 'unavailable',
      message: 'The service is shutting down.',
    })
  })

  it('waits for a statement that ends in time', async () => {
    const { pool, db } = open()
    await backendOf(db)
    const statement = sql`select pg_sleep(0.3)`.execute(db)
    await expect.poll(() => pool.health().pool.total - pool.health().pool.idle).toBe(1)
    const endedAfterMs = await elapsedMs(() => pool.end(10_000))
    expect(endedAfterMs).toBeLessThan(5000)
    expect((await statement).rows).toHaveLength(1)
  })

  it('comes within its bound while a connection is being made to a silent server', async () => {
    const silent = await listen(() => {})
    const { pool } = open({ budgets: budgetsFor(60_000) }, silent)
    const waiting = pool.connect().catch((error: unknown) => error)
    expect(await elapsedMs(() => pool.end(300))).toBeLessThan(1000)
    expect(await waiting).toMatchObject({ code: 'unavailable' })
  })

  it('comes within its bound while a holder keeps its client', async () => {
    const { pool } = open()
    const connection = await pool.connect()
    expect(await elapsedMs(() => pool.end(300))).toBeLessThan(1000)
    connection.release()
  })
})
