import { once } from 'node:events'
import { type AddressInfo, type Socket, connect, createServer } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { type Compilable, CompiledQuery, sql } from 'kysely'
import pg from 'pg'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import { type Caller, JOBS, SYSTEM, asApp, asCaller } from '../../src/db/as-caller.js'
import { type Db, createDatabase } from '../../src/db/database.js'
import { Deadline } from '../../src/db/deadline.js'
import type { GuardedPool } from '../../src/db/guarded-pool.js'
import { sqlState } from '../../src/db/pg-errors.js'
import { budgetsFor } from '../../src/db/pool.js'
import type { PostgresSettings } from '../../src/db/postgres-source.js'
import { BREAKER, createPostgresDatabase, guardedPool } from '../engine.js'
import { Proxy } from '../proxy.js'

let url: string
let drop: () => Promise<void>
let superuser: pg.Client
let proxy: Proxy
let pools: GuardedPool[]

beforeAll(async () => {
  ;({ url, drop } = await createPostgresDatabase())
  superuser = new pg.Client({ connectionString: url })
  await superuser.connect()
  await superuser.query('create table things (id int primary key, note text)')
  await superuser.query('grant select, insert, update on things to gary_app, gary_caller, gary_jobs')
})
afterAll(async () => {
  await superuser.end()
  await drop()
})
beforeEach(async () => {
  pools = []
  proxy = new Proxy(url)
  await proxy.open()
  await superuser.query("truncate things; insert into things values (1, 'one')")
})
afterEach(async () => {
  await Promise.all(pools.map((pool) => pool.end(500)))
  proxy.close()
})

/** With its lanes connected. */
async function open(settings: Partial<PostgresSettings> = {}): Promise<{ pool: GuardedPool; db: Db }> {
  const pool = guardedPool(proxy.through(url), { lanes: 2, size: 2, ...settings })
  pools.push(pool)
  const db = createDatabase(pool)
  await asApp(db, raw('select 1'))
  await ready(pool, settings.lanes ?? 2)
  return { pool, db }
}

const ready = (pool: GuardedPool, count: number) =>
  expect.poll(() => pool.health().lanes?.ready, { timeout: 5000 }).toBe(count)

function raw<R = Record<string, unknown>>(text: string, parameters: unknown[] = []): Compilable<R> {
  return { compile: () => CompiledQuery.raw(text, parameters) as CompiledQuery<R> }
}
/** What may be sent twice, as only a SELECT of Kysely's is known to be. */
const reading = (db: Db, seconds = 0) =>
  db
    .selectNoFrom([
      sql<number>`pg_backend_pid()`.as('pid'),
      sql<string>`pg_sleep(${sql.lit(seconds)})::text`.as('slept'),
    ])
    .$castTo<{ pid: number }>()
const writing = (id: number) => raw('insert into things values ($1, pg_sleep(0.3)::text)', [id])
const laneOf = async (db: Db): Promise<number> => (await asApp(db, reading(db)))[0]?.pid ?? 0
const codeOf = (work: Promise<unknown>): Promise<string> =>
  work.then(
    () => 'done',
    (error: { code?: string }) => String(error.code),
  )
const stored = async () =>
  (await superuser.query('select id from things order by id')).rows.map(({ id }) => id)
const running = (text: string) =>
  expect.poll(
    async () =>
      (
        await superuser.query(
          `select from pg_stat_activity where datname = current_database() and state = 'active' and query like $1 and pid <> pg_backend_pid()`,
          [`%${text}%`],
        )
      ).rowCount,
  )

describe('lanes', () => {
  it('carry the statements of many callers at once on few connections, each with its own answer', async () => {
    const { pool, db } = await open()
    const before = proxy.connections
    const answers = await Promise.all(
      Array.from({ length: 30 }, (_, n) =>
        asApp(db, raw('select $1::int as n, pg_backend_pid() as pid', [n])),
      ),
    )
    expect(answers.map(([row]) => row?.['n'])).toEqual(Array.from({ length: 30 }, (_, n) => n))
    expect(new Set(answers.map(([row]) => row?.['pid'])).size).toBe(2)
    expect([proxy.connections, pool.health().pool.waiting]).toEqual([before, 0])
  })

  it('carry the reads of one turn and one identity under one Sync: who asks is said once, and is the same for all', async () => {
    const { db } = await open({ lanes: 1 })
    const as = (id: number): Caller => ({
      ...SYSTEM,
      userId: id,
      role: 'user',
      actor: { type: 'user', id, name: 'x' },
    })
    const who = db
      .selectNoFrom([
        sql<string>`now()::text`.as('began'),
        sql<string>`concat(current_user, ' ', gary.actor())`.as('who'),
      ])
      .$castTo<{ began: string; who: string }>()
    const ask = async (caller: Caller | undefined) =>
      (await (caller === undefined ? asApp(db, who) : asCaller(db, caller, who)))[0]
    const callers = [as(1), as(2), undefined, as(1), as(2), undefined, as(1), as(1)]
    const found = await Promise.all(callers.map(ask))
    expect(found.map((row) => row?.who)).toEqual(
      callers.map((caller) => (caller === undefined ? 'gary_app ' : `gary_caller user:${caller.userId}`)),
    )
    const transactions = new Set(found.map((row) => `${row?.who} ${row?.began}`))
    expect(transactions.size).toBe(3)
    expect((await ask(undefined))?.who).toBe('gary_app ')
  })

  it('carry eight of them at most under one Sync', async () => {
    const { db } = await open({ lanes: 1 })
    const began = db.selectNoFrom(sql<string>`now()::text`.as('began')).$castTo<{ began: string }>()
    const found = await Promise.all(Array.from({ length: 12 }, () => asApp(db, began)))
    const counts = new Map<string, number>()
    for (const [row] of found) counts.set(row?.began ?? '', (counts.get(row?.began ?? '') ?? 0) + 1)
    expect([...counts.values()].toSorted()).toEqual([4, 8])
  })

  it('tell each answer when it is there: a slow read keeps none that is ahead of it, and no change that is behind', async () => {
    const { db } = await open({ lanes: 1 })
    const slow = codeOf(asApp(db, reading(db, 0.5)))
    const ended: string[] = []
    const turn = [
      asApp(db, reading(db)).then(() => ended.push('read')),
      asApp(db, writing(7)).then(() => ended.push('change')),
      asApp(db, reading(db, 0.01)).then(() => ended.push('another read')),
    ]
    expect(await slow).toBe('done')
    await Promise.all(turn)
    expect(ended).toEqual(['read', 'another read', 'change'])
    const quick = asApp(db, reading(db))
    const behind = codeOf(asApp(db, reading(db, 0.6)))
    await quick
    await running('pg_sleep').toBe(1)
    expect(await behind).toBe('done')
  })

  it('are not silent while reads that share a Sync are answered one by one, however long all of them take', async () => {
    const budgets = { ...budgetsFor(60_000), statementMs: 1000 }
    const { pool, db } = await open({ lanes: 1, budgets, breaker: { ...BREAKER, minCalls: 100 } })
    const lane = await laneOf(db)
    const reads = await Promise.all(Array.from({ length: 8 }, () => asApp(db, reading(db, 0.4))))
    expect(reads.map(([row]) => row?.pid)).toEqual(Array.from({ length: 8 }, () => lane))
    expect(pool.health().breaker).toMatchObject({ failures: 0 })
  })

  it('answer the reads beside one that fails: those ahead of it at once, those behind it once more', async () => {
    const { db } = await open({ lanes: 1 })
    const divided = (by: unknown) =>
      db.selectNoFrom(sql<number>`12 / cast(${by} as int)`.as('n')).$castTo<{ n: number }>()
    // What cannot be sent at all fails before anything is.
    const circular: { of?: unknown } = {}
    circular.of = circular
    const answers = await Promise.all(
      [1, circular, 2, 0, 3, 0, 4].map(async (by) => {
        try {
          return (await asApp(db, divided(by)))[0]?.n
        } catch (error) {
          return sqlState(error) ?? 'not sent'
        }
      }),
    )
    expect(answers).toEqual([12, 'not sent', 6, '22012', 4, '22012', 3])
  })

  it('carry the reads of one turn together, eight to a lane; what writes goes where the fewest stand before it', async () => {
    const { db } = await open()
    const asked = await Promise.all(Array.from({ length: 16 }, () => laneOf(db)))
    expect(new Set(asked.slice(0, 8)).size).toBe(1)
    expect(new Set(asked.slice(8)).size).toBe(1)
    expect(asked[8]).not.toBe(asked[0])
    const pidOf = raw<{ pid: number }>('select pg_backend_pid() as pid, pg_sleep(0.1)')
    const writes = await Promise.all(Array.from({ length: 4 }, () => asApp(db, pidOf)))
    expect(writes.map(([row]) => row?.pid)).toEqual([asked[0], asked[8], asked[0], asked[8]])
  })

  it('let a read that is slow by its name share none: beside it the quick ones of a turn do not wait', async () => {
    const { db } = await open({ lanes: 4, size: 6 })
    const slow = db
      .selectNoFrom(sql<string>`pg_sleep(0.6)::text`.as('slept'))
      .$castTo<Record<string, unknown>>()
    // Its first answer tells how long it keeps a lane.
    await asApp(db, slow)
    const order: string[] = []
    const told = (what: string, query: Compilable<unknown>) =>
      asApp(db, query).then(() => void order.push(what))
    await Promise.all([
      told('slow', slow),
      ...Array.from({ length: 7 }, () => told('quick', reading(db))),
      told('slow', slow),
    ])
    expect(order).toEqual([...Array.from({ length: 7 }, () => 'quick'), 'slow', 'slow'])
  })

  it('that are lost are shared no more, in the same turn as well: reads on them are answered elsewhere', async () => {
    const { db } = await open()
    await laneOf(db)
    const sockets = (process as unknown as { _getActiveHandles(): Socket[] })._getActiveHandles()
    const asked = Array.from({ length: 4 }, () => codeOf(asApp(db, reading(db))))
    await Promise.resolve()
    for (const socket of sockets.filter(({ writableCorked }) => writableCorked > 0))
      socket.destroy(Object.assign(new Error('read ECONNRESET'), { code: 'ECONNRESET' }))
    expect(await Promise.all(asked)).toEqual(['done', 'done', 'done', 'done'])
  })

  it('are there when first asked, and beside the pool: the first statement waits for none', async () => {
    const pool = guardedPool(proxy.through(url), { lanes: 2, size: 1 })
    pools.push(pool)
    expect(pool.health().lanes).toEqual({ ready: 0, inFlight: 0, limit: 2 })
    await asApp(createDatabase(pool), raw('select 1'))
    expect(pool.health().pool.total).toBe(1)
    await ready(pool, 2)
  })

  it('take no transaction, nothing of jobs and analysts, and nothing large: that has a connection of its own', async () => {
    const { db } = await open()
    const lanes = new Set(await Promise.all(Array.from({ length: 20 }, () => laneOf(db))))
    const pid = 'select pg_backend_pid() as pid, length($1::text) as size'
    const [job] = await asCaller(db, JOBS, raw<{ pid: number }>(pid, ['']))
    const [large] = await asApp(db, raw<{ pid: number }>(pid, ['x'.repeat(70_000)]))
    const [small] = await asApp(db, raw<{ pid: number }>(pid, ['x'.repeat(60_000)]))
    const inside = await db
      .transaction()
      .execute(async (tx) => (await asApp(tx, raw<{ pid: number }>(pid, [''])))[0])
    expect([job, large, inside].map((row) => lanes.has(row?.pid ?? 0))).toEqual([false, false, false])
    expect(lanes.has(small?.pid ?? 0)).toBe(true)
  })

  it('hold at most 16 flights each; whoever comes then goes to the pool, and waits there', async () => {
    const { pool, db } = await open({ lanes: 1, size: 1, budgets: { ...budgetsFor(60_000), acquireMs: 300 } })
    const slow = Array.from({ length: 19 }, () => codeOf(asApp(db, reading(db, 0.05))))
    await expect.poll(() => [pool.health().lanes?.inFlight, pool.health().pool.waiting]).toEqual([16, 2])
    expect(pool.health().pool.total).toBe(1)
    expect(new Set(await Promise.all(slow))).toEqual(new Set(['done']))
    const long = Array.from({ length: 16 }, () => asApp(db, reading(db, 0.02)))
    const holder = await pool.connect()
    expect(await codeOf(asApp(db, reading(db)))).toBe('pool_exhausted')
    holder.release()
    await Promise.all(long)
  })

  it('are replaced when they have lived long enough, which nobody notices', async () => {
    const { pool, db } = await open({ lifetimeMs: 300 })
    const first = new Set(await Promise.all(Array.from({ length: 10 }, () => laneOf(db))))
    await expect
      .poll(async () => first.has(await laneOf(db)) || pool.health().lanes?.ready, { timeout: 5000 })
      .toBe(2)
  })
})

describe('on a lane, a statement', () => {
  it('that fails is failed alone, also while its name is new to all', async () => {
    const { db } = await open({ lanes: 1 })
    const text = `select 1 / $1::int as quotient`
    const answers = await Promise.all(
      Array.from({ length: 20 }, (_, n) =>
        asApp(db, raw(n % 5 === 4 ? 'select nothing from nowhere' : text, n % 5 === 4 ? [] : [n % 2])).then(
          ([row]) => row?.['quotient'],
          (error: unknown) => sqlState(error),
        ),
      ),
    )
    expect(answers).toEqual(
      Array.from({ length: 20 }, (_, n) => (n % 5 === 4 ? '42P01' : n % 2 === 0 ? '22012' : 1)),
    )
  })

  it('that waits for a lock is done on the pool instead, and holds up nobody behind it', async () => {
    const { db } = await open({ lanes: 1 })
    const holder = new pg.Client({ connectionString: url })
    await holder.connect()
    await holder.query('begin; update things set note = null where id = 1')
    const waiting = asApp(
      db,
      raw("update things set note = 'mine' where id = 1 returning pg_backend_pid() as pid"),
    )
    await running("set note = 'mine'").toBe(1)
    const lane = await laneOf(db)
    await sleep(300)
    await holder.query('commit')
    await holder.end()
    const [row] = await waiting
    expect(row?.['pid']).not.toBe(lane)
    expect((await superuser.query('select note from things')).rows).toEqual([{ note: 'mine' }])
  })

  it('that takes longer than a lane bears is done on the pool, once and not twice', async () => {
    const { pool, db } = await open({ lanes: 1, budgets: { ...budgetsFor(60_000), statementMs: 1000 } })
    const lane = await laneOf(db)
    const slow = raw('insert into things values (2, pg_sleep(0.7)::text) returning pg_backend_pid() as pid')
    const [row] = await asApp(db, slow)
    expect(row?.['pid']).not.toBe(lane)
    expect(await stored()).toEqual([1, 2])
    // Known by now: the next one holds up nobody on a lane.
    const again = asApp(db, slow).catch(() => undefined)
    await running('insert into things').toBe(1)
    expect(pool.health().lanes?.inFlight).toBe(0)
    await again
    expect(await codeOf(asApp(db, raw('select pg_sleep(1.5)')))).toBe('deadline_exceeded')
  })

  it('whose columns are others by now is met by nobody, however many send it at once', async () => {
    const { db } = await open()
    await superuser.query('create table shapes (a int); grant select on shapes to gary_app')
    const read = () => asApp(db, raw('select a from shapes'))
    await Promise.all(Array.from({ length: 30 }, read))
    await superuser.query('alter table shapes alter a type text')
    expect(await Promise.all(Array.from({ length: 200 }, () => codeOf(read())))).toEqual(
      Array(200).fill('done'),
    )
  })

  it('that reads is let go when its time is up; its neighbours on the lane are not, and nothing is cancelled', async () => {
    const { pool, db } = await open({ lanes: 1 })
    const deadline = new Deadline()
    const slow = codeOf(asApp(db, reading(db, 0.3), deadline))
    await running('pg_sleep').toBe(1)
    const neighbour = asApp(db, raw('select 7 as seven'))
    deadline.end('client_gone')
    expect(await slow).toBe('deadline_exceeded')
    expect(pool.health().lanes?.inFlight).toBe(2)
    expect(await neighbour).toEqual([{ seven: 7 }])
    expect(proxy.cancels).toBe(0)
  })

  it('that writes is outcome_unknown when its time is up, and is waited for when its client goes away', async () => {
    const { db } = await open({ lanes: 1 })
    const expired = new Deadline()
    const late = codeOf(asApp(db, writing(2), expired))
    await running('insert into things').toBe(1)
    expired.end('expired')
    expect(await late).toBe('outcome_unknown')
    const gone = new Deadline()
    const nobodys = codeOf(asApp(db, writing(3), gone))
    await running('insert into things').toBe(1)
    gone.end('client_gone')
    expect(await nobodys).toBe('done')
    expect(await stored()).toEqual([1, 2, 3])
  })
})

describe('a lane that is lost', () => {
  it('loses no read, and leaves the outcome of a write open; another one takes its place', async () => {
    const { pool, db } = await open({ lanes: 1 })
    const lane = await laneOf(db)
    const write = codeOf(asApp(db, writing(2)))
    const reads = Array.from({ length: 10 }, () => laneOf(db))
    await running('insert into things').toBe(1)
    await superuser.query('select pg_terminate_backend($1)', [lane])
    expect(await write).toBe('outcome_unknown')
    expect(new Set(await Promise.all(reads)).has(lane)).toBe(false)
    await expect.poll(async () => (await laneOf(db), pool.health().lanes?.ready)).toBe(1)
    expect(await stored()).toEqual([1])
  })

  it('counts for the breaker once, however many were on it; an open circuit refuses on lanes, too', async () => {
    const { pool, db } = await open({ lanes: 1, breaker: { ...BREAKER, minCalls: 8 } })
    const lane = await laneOf(db)
    const writes = Array.from({ length: 12 }, (_, n) => codeOf(asApp(db, writing(10 + n))))
    await running('insert into things').toBe(1)
    await proxy.become('reset')
    expect(new Set(await Promise.all(writes))).toEqual(new Set(['outcome_unknown']))
    expect(pool.health().breaker).toMatchObject({ state: 'closed', failures: 1 })
    await proxy.become('pass')
    pool.forceCircuit('open')
    expect(await codeOf(asApp(db, reading(db)))).toBe('unavailable')
    pool.forceCircuit('auto')
    await expect.poll(async () => await codeOf(asApp(db, reading(db))), { timeout: 5000 }).toBe('done')
    await expect.poll(async () => (await laneOf(db), pool.health().lanes?.ready)).toBe(1)
    expect(await laneOf(db)).not.toBe(lane)
  })

  it('is no outage: of a quiet service the circuit stays closed, and every read on it is answered', async () => {
    const { pool, db } = await open({ breaker: { ...BREAKER, minCalls: 4 }, size: 4 })
    const lane = await laneOf(db)
    const reads = Array.from({ length: 30 }, () => codeOf(asApp(db, reading(db, 0.05))))
    await running('pg_sleep').toBeGreaterThan(0)
    await superuser.query('select pg_terminate_backend($1)', [lane])
    expect(new Set(await Promise.all(reads))).toEqual(new Set(['done']))
    expect(pool.health().breaker?.state).toBe('closed')
  })

  it('while it connects, by a server that lets it in and goes down at once, harms nobody', async () => {
    const message = (type: string, body: string) => {
      const head = Buffer.alloc(5)
      head.write(type)
      head.writeInt32BE(Buffer.byteLength(body) + 4, 1)
      return Buffer.concat([head, Buffer.from(body)])
    }
    const server = createServer((client) => {
      client.on('error', () => client.destroy())
      const all = [
        message('R', '\0\0\0\0'),
        message('Z', 'I'),
        message('E', 'SFATAL\0C57P01\0Mgoing down\0\0'),
      ]
      client.once('data', () => client.end(Buffer.concat(all)))
    }).listen(0, '127.0.0.1')
    await once(server, 'listening')
    const { port } = server.address() as AddressInfo
    const pool = guardedPool(`postgres://x:y@127.0.0.1:${port}/x`, { lanes: 4 })
    pools.push(pool)
    expect(await codeOf(asApp(createDatabase(pool), reading(createDatabase(pool))))).toBe('unavailable')
    await sleep(100)
    server.close()
  })

  it('is not looked for while the circuit is open: a wrong password is tried by the reconnect loop alone', async () => {
    let logins = 0
    let looks = 0
    const server = createServer((client) => {
      client.on('error', () => client.destroy())
      client.once('data', () => {
        logins += 1
        client.end(Buffer.from('E\0\0\0\x1fSFATAL\0C28P01\0Mwrong password\0\0'))
      })
    }).listen(0, '127.0.0.1')
    await once(server, 'listening')
    const { port } = server.address() as AddressInfo
    const pool = guardedPool(`postgres://x:y@127.0.0.1:${port}/x`, {
      lanes: 4,
      breaker: { ...BREAKER, waitBaseMs: 30_000, waitCapMs: 30_000 },
      misconfiguredCapMs: 30_000,
      onAttemptFailed: () => (looks += 1),
    })
    pools.push(pool)
    const db = createDatabase(pool)
    while (pool.health().breaker?.state !== 'open') await codeOf(asApp(db, reading(db)))
    await sleep(300)
    const [loginsBefore, looksBefore] = [logins, looks]
    for (let n = 0; n < 40; n += 1) {
      expect(await codeOf(asApp(db, reading(db)))).toBe('unavailable')
      await sleep(25)
    }
    // The loop's last look may still be under way.
    expect(logins - loginsBefore).toBeLessThanOrEqual(looks - looksBefore + 1)
    server.close()
  })

  it('is none while its bytes come, however slowly: neither they nor a write behind them are cut', async () => {
    const { hostname, port: serverPort } = new URL(url)
    const way = createServer((client) => {
      const server = connect(Number(serverPort || 5432), hostname)
      client.on('error', () => server.destroy()).on('close', () => server.destroy())
      server.on('error', () => client.destroy())
      client.pipe(server)
      void (async () => {
        for await (const chunk of server as AsyncIterable<Buffer>)
          for (let at = 0; at < chunk.length; at += 16_384) {
            client.write(chunk.subarray(at, at + 16_384))
            if (chunk.length > 8192) await sleep(10)
          }
      })().catch(() => client.destroy())
    }).listen(0, '127.0.0.1')
    await once(way, 'listening')
    const slow = new URL(url)
    slow.host = `127.0.0.1:${(way.address() as AddressInfo).port}`
    const pool = guardedPool(slow.href, {
      lanes: 1,
      size: 2,
      budgets: { ...budgetsFor(60_000), statementMs: 400 },
    })
    pools.push(pool)
    const db = createDatabase(pool)
    await asApp(db, raw('select 1'))
    await ready(pool, 1)
    const started = performance.now()
    const large = codeOf(asApp(db, raw("select repeat('x', 4000000) as text")))
    const write = codeOf(asApp(db, raw('insert into things values (2, null)')))
    expect([await large, await write]).toEqual(['done', 'done'])
    expect(performance.now() - started).toBeGreaterThan(1600)
    way.close()
  })

  it('or silent: nobody waits for it longer than a statement may take, and what it held is suspect', async () => {
    const { pool, db } = await open({ lanes: 1, budgets: { ...budgetsFor(60_000), statementMs: 200 } })
    await proxy.become('black_hole')
    const started = performance.now()
    const write = codeOf(asApp(db, raw('insert into things values (2, null)')))
    expect(await write).toBe('outcome_unknown')
    expect(performance.now() - started).toBeLessThan(3000)
    await proxy.become('pass')
    await expect.poll(async () => await codeOf(asApp(db, reading(db))), { timeout: 5000 }).toBe('done')
    await expect.poll(async () => (await laneOf(db), pool.health().lanes?.ready)).toBe(1)
  })
})

describe('the end', () => {
  it('lets land what is in flight on the lanes, and takes nothing more', async () => {
    const { pool, db } = await open({ lanes: 1 })
    const write = codeOf(asApp(db, writing(2)))
    await running('insert into things').toBe(1)
    const ended = pool.end(5000)
    expect(await codeOf(asApp(db, reading(db)))).toBe('unavailable')
    expect(await write).toBe('done')
    await ended
    expect(await stored()).toEqual([1, 2])
  })

  it('comes in time, whatever is in flight: that is cut', async () => {
    const { pool, db } = await open({ lanes: 1 })
    const write = codeOf(asApp(db, raw('insert into things values (2, pg_sleep(3)::text)')))
    await running('insert into things').toBe(1)
    const started = performance.now()
    await pool.end(300)
    expect(await write).toBe('outcome_unknown')
    expect(performance.now() - started).toBeLessThan(2000)
  })
})

describe('a lane', () => {
  it('is gary_app with limits of its own', async () => {
    const { db } = await open({ lanes: 1 })
    const [row] = await asApp(
      db,
      raw(`select current_user as name, current_setting('statement_timeout') as statement,
        current_setting('lock_timeout') as lock`),
    )
    expect(row).toEqual({ name: 'gary_app', statement: '1667ms', lock: '100ms' })
  })

  it('prepares nothing where that is off', async () => {
    const count = raw('select count(*)::int as names from pg_prepared_statements')
    const { db: named } = await open({ lanes: 1 })
    const { db: unnamed } = await open({ lanes: 1, prepare: false })
    for (const db of [named, unnamed]) await asApp(db, count)
    expect([await asApp(named, count), await asApp(unnamed, count)]).toEqual([
      [{ names: expect.toSatisfy((names: number) => names > 0) }],
      [{ names: 0 }],
    ])
  })

  it('carries every caller in its own name, and none beyond its flight', async () => {
    const { db } = await open({ lanes: 1 })
    const who = raw("select current_user as name, current_setting('app.user_id', true) as id")
    const as = (id: number) => asCaller(db, { ...SYSTEM, userId: id, role: 'user' }, who)
    const answers = await Promise.all([as(1), asApp(db, who), as(2), as(1), asApp(db, who)])
    expect(answers.flat()).toEqual([
      { name: 'gary_caller', id: '1' },
      { name: 'gary_app', id: '' },
      { name: 'gary_caller', id: '2' },
      { name: 'gary_caller', id: '1' },
      { name: 'gary_app', id: '' },
    ])
  })
})
