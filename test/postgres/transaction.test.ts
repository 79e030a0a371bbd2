import { once } from 'node:events'
import { type AddressInfo, type Server, type Socket, connect, createServer } from 'node:net'
import { type Compilable, CompiledQuery } from 'kysely'
import pg from 'pg'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import { SYSTEM, asApp, asCaller, withCommit } from '../../src/db/as-caller.js'
import { sessionClaim } from '../../src/db/claims.js'
import { type Db, type Tx, createDatabase } from '../../src/db/database.js'
import type { GuardedPool } from '../../src/db/guarded-pool.js'
import { sqlState } from '../../src/db/pg-errors.js'
import { budgetsFor } from '../../src/db/pool.js'
import type { PostgresSettings } from '../../src/db/postgres-source.js'
import { inTransaction, streamAsCaller } from '../../src/db/transaction.js'
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
  await superuser.query(
    'create table things (id int primary key, twin int references things (id) deferrable initially deferred)',
  )
  await superuser.query('grant select, insert on things to gary_app, gary_caller')
})
afterAll(async () => {
  await superuser.end()
  await drop()
})
beforeEach(async () => {
  pools = []
  listeners = []
  await superuser.query('truncate things')
})
afterEach(async () => {
  await Promise.all(pools.map((pool) => pool.end(100)))
  for (const listener of listeners) listener.close()
})

function open(settings: Partial<PostgresSettings> = {}, at = url): Db {
  const pool = guardedPool(at, { size: 1, ...settings })
  pools.push(pool)
  return createDatabase(pool)
}

/** A way to the database on which `onCommit` decides what becomes of a COMMIT; it gets the bytes. */
async function wayWith(onCommit: (commit: Buffer, client: Socket, server: Socket) => void): Promise<string> {
  const listener = createServer((client) => {
    const { hostname, port } = new URL(url)
    const server = connect(Number(port || 5432), hostname)
    const forward = (chunk: Buffer) => void client.write(chunk)
    server.on('data', forward)
    client.on('data', (chunk) => {
      if (!chunk.includes('commit\0')) return server.write(chunk)
      server.off('data', forward)
      onCommit(chunk, client, server)
    })
    for (const end of [client, server]) {
      end.on('error', () => end.destroy())
      end.on('close', () => (end === client ? server : client).destroy())
    }
  }).listen(0, '127.0.0.1')
  listeners.push(listener)
  await once(listener, 'listening')
  const at = new URL(url)
  at.host = `127.0.0.1:${(listener.address() as AddressInfo).port}`
  return at.href
}

function raw<R = Record<string, unknown>>(text: string, parameters: unknown[] = []): CompiledQuery<R> {
  return CompiledQuery.raw(text, parameters) as CompiledQuery<R>
}

function compilable(query: CompiledQuery): Compilable<unknown> {
  return { compile: () => query }
}

const insert = (id: number) => raw('insert into things values ($1)', [id])

async function stored(): Promise<number[]> {
  const { rows } = await superuser.query<{ id: number }>('select id from things order by id')
  return rows.map(({ id }) => id)
}

async function terminateOwn(tx: Tx): Promise<void> {
  const { rows } = await tx.executeQuery(raw<{ pid: number }>('select pg_backend_pid() as pid'))
  const pid = rows[0]?.pid
  await superuser.query('select pg_terminate_backend($1)', [pid])
  const alive = async () =>
    (await superuser.query('select from pg_stat_activity where pid = $1', [pid])).rowCount
  await expect.poll(alive).toBe(0)
}

const failure = (error: unknown): unknown => error

describe('a transaction', () => {
  it('is there whole', async () => {
    const db = open()
    const answer = await inTransaction(db, SYSTEM, async (tx) => {
      await tx.executeQuery(insert(1))
      await tx.executeQuery(insert(2))
      expect(await stored()).toEqual([])
      return 'done'
    })
    expect(answer).toBe('done')
    expect(await stored()).toEqual([1, 2])
  })

  it('leaves nothing when its work throws, and throws the same', async () => {
    const db = open()
    const reason = new Error('changed our mind')
    const work = inTransaction(db, SYSTEM, async (tx) => {
      await tx.executeQuery(insert(1))
      throw reason
    })
    expect(await work.catch(failure)).toBe(reason)
    expect(await stored()).toEqual([])
    await asCaller(db, SYSTEM, compilable(insert(2)))
    expect(await stored()).toEqual([2])
  })

  it('leaves nothing when its first statement fails, which BEGIN travelled with', async () => {
    const db = open()
    const work = inTransaction(db, SYSTEM, (tx) => tx.executeQuery(raw('select 1 / $1::int', [0])))
    expect(sqlState(await work.catch(failure))).toBe('22012')
    await asCaller(db, SYSTEM, compilable(insert(1)))
    expect(await stored()).toEqual([1])
  })

  it('that swallowed the failure of a statement is an error, not a success', async () => {
    const db = open()
    const work = inTransaction(db, SYSTEM, async (tx) => {
      await tx.executeQuery(insert(1))
      await tx.executeQuery(insert(1)).catch(() => {})
    })
    const error = await work.catch(failure)
    expect(error).toMatchObject({
      code: 'internal',
      cause: { message: expect.stringContaining('answered ROLLBACK') },
    })
    expect(await stored()).toEqual([])
  })

  it('may send its last statement with COMMIT: done with it, and when it fails nothing is', async () => {
    const db = open()
    await inTransaction(db, SYSTEM, async (tx) => await withCommit(tx, SYSTEM, compilable(insert(1))))
    expect(await stored()).toEqual([1])
    const twice = inTransaction(db, SYSTEM, async (tx) => {
      await asCaller(tx, SYSTEM, compilable(insert(2)))
      await withCommit(tx, SYSTEM, compilable(insert(1)))
    })
    expect(sqlState(await twice.catch(failure))).toBe('23505')
    expect(await stored()).toEqual([1])
  })

  it('whose caller was refuted confirms nobody, also where that was swallowed', async () => {
    const db = open()
    const claim = sessionClaim('no such session', 60, {
      session_id: 1,
      id: 1,
      username: 'nobody',
      role: 'owner',
    })
    const claimed = { ...SYSTEM, claim }
    const work = inTransaction(db, claimed, async (tx) => {
      await asCaller(tx, claimed, compilable(insert(1))).catch(() => undefined)
    })
    expect(await work.catch(failure)).toMatchObject({ code: 'internal' })
    expect([claim.isConfirmed, await stored()]).toEqual([false, []])
  })

  it('refused at COMMIT keeps the SQLSTATE of the refusal', async () => {
    const db = open()
    const work = inTransaction(db, SYSTEM, (tx) => tx.executeQuery(raw('insert into things values (1, 99)')))
    const error = await work.catch(failure)
    expect(error).toMatchObject({ code: 'validation_failed' })
    expect(sqlState(error)).toBe('23503')
    expect(await stored()).toEqual([])
  })
})

describe('a conflict of transactions', () => {
  it.each(['40001', '40P01'])('is tried again, three times in all (%s)', async (state) => {
    const db = open()
    const fail = raw(`do $$ begin raise exception 'in conflict' using errcode = '${state}'; end $$`)
    let attempts = 0
    await inTransaction(db, SYSTEM, async (tx) => {
      attempts += 1
      await tx.executeQuery(insert(attempts))
      if (attempts < 3) await tx.executeQuery(fail)
    })
    expect(await stored()).toEqual([3])

    attempts = 0
    const hopeless = inTransaction(db, SYSTEM, async (tx) => {
      attempts += 1
      await tx.executeQuery(fail)
    })
    const error = await hopeless.catch(failure)
    expect(error).toMatchObject({ code: 'unavailable', retryAfterSeconds: 1 })
    expect(sqlState(error)).toBe(state)
    expect(attempts).toBe(3)
  })

  it('is the only failure tried again', async () => {
    const db = open()
    let attempts = 0
    const work = inTransaction(db, SYSTEM, async (tx) => {
      attempts += 1
      await tx.executeQuery(raw('select 1 / 0'))
    })
    await expect(work).rejects.toThrow()
    expect(attempts).toBe(1)
  })

  it('that is a deadlock ends with both done, each once', async () => {
    const db = open({ size: 2, budgets: { ...budgetsFor(30_000), lockMs: 10_000 } })
    let holding = 0
    let attempts = 0
    const work = async (first: number, second: number) =>
      await inTransaction(db, SYSTEM, async (tx) => {
        attempts += 1
        await tx.executeQuery(insert(first))
        await tx.executeQuery(raw('select pg_advisory_xact_lock($1)', [first]))
        holding += 1
        await expect.poll(() => holding, { timeout: 10_000 }).toBeGreaterThanOrEqual(2)
        await tx.executeQuery(raw('select pg_advisory_xact_lock($1)', [second]))
      })
    await Promise.all([work(1, 2), work(2, 1)])
    expect(await stored()).toEqual([1, 2])
    expect(attempts).toBe(3)
  })
})

describe('a lost connection', () => {
  it('at a statement before COMMIT means not applied: `unavailable`', async () => {
    const db = open()
    const work = inTransaction(db, SYSTEM, async (tx) => {
      await tx.executeQuery(insert(1))
      await terminateOwn(tx)
      await tx.executeQuery(insert(2))
    })
    expect(await work.catch(failure)).toMatchObject({ code: 'unavailable', retryAfterSeconds: 1 })
    expect(await stored()).toEqual([])
  })

  it('known before COMMIT was sent means not applied: `unavailable`', async () => {
    const told: Error[] = []
    const db = open({ onIdleError: (error) => told.push(error) })
    const work = inTransaction(db, SYSTEM, async (tx) => {
      await tx.executeQuery(insert(1))
      await terminateOwn(tx)
      await expect.poll(() => told.length).toBeGreaterThan(0)
    })
    expect(await work.catch(failure)).toMatchObject({ code: 'unavailable' })
    expect(await stored()).toEqual([])
  })

  it('after COMMIT was sent means unknown: here the row is there', async () => {
    const way = await wayWith((commit, client, server) => {
      server.once('data', () => client.resetAndDestroy())
      server.write(commit)
    })
    const work = inTransaction(open({}, way), SYSTEM, (tx) => tx.executeQuery(insert(1)))
    expect(await work.catch(failure)).toMatchObject({ code: 'outcome_unknown' })
    expect(await stored()).toEqual([1])
  })

  it('on the way of COMMIT means unknown: here the row is not there', async () => {
    const way = await wayWith((_, client) => client.resetAndDestroy())
    const work = inTransaction(open({}, way), SYSTEM, (tx) => tx.executeQuery(insert(1)))
    expect(await work.catch(failure)).toMatchObject({ code: 'outcome_unknown' })
    expect(await stored()).toEqual([])
  })

  it('with no answer to COMMIT at all means unknown, within the query budget', async () => {
    const way = await wayWith((commit, _, server) => server.write(commit))
    const db = open({ budgets: { ...budgetsFor(30_000), queryMs: 300 } }, way)
    const work = inTransaction(db, SYSTEM, (tx) => tx.executeQuery(insert(1)))
    expect(await work.catch(failure)).toMatchObject({ code: 'outcome_unknown' })
    expect(await stored()).toEqual([1])
  })

  it('by a shutdown told after COMMIT means unknown: it may have been done before the backend ended', async () => {
    const way = await wayWith((commit, client, server) => {
      server.once('data', () => client.end(fatal('57P01')))
      server.write(commit)
    })
    const work = inTransaction(open({}, way), SYSTEM, (tx) => tx.executeQuery(insert(1)))
    expect(await work.catch(failure)).toMatchObject({ code: 'outcome_unknown' })
    expect(await stored()).toEqual([1])
  })
})

/** An ErrorResponse as the server's last word. */
function fatal(state: string): Buffer {
  const fields = Buffer.from(`SFATAL\0VFATAL\0C${state}\0Mterminating connection\0\0`)
  const head = Buffer.alloc(5)
  head.write('E')
  head.writeUInt32BE(fields.length + 4, 1)
  return Buffer.concat([head, fields])
}

describe('a stream', () => {
  const NUMBERS = "select n, current_setting('app.role') as role from generate_series(1, 25000) n"
  const series = () => raw<{ n: number; role: string }>(NUMBERS)

  it('gives every row once, in batches, under its identity', async () => {
    const db = open()
    const sizes = new Set<number>()
    let next = 1
    for await (const rows of streamAsCaller(db, SYSTEM, series(), 1000)) {
      sizes.add(rows.length)
      for (const row of rows) {
        expect(row).toEqual({ n: next, role: 'system' })
        next += 1
      }
    }
    expect(next).toBe(25001)
    expect([...sizes]).toEqual([1000])
  })

  it('frees its connection, the same, when the reader leaves early', async () => {
    const db = open()
    const pid = async () => await asApp(db, { compile: () => raw('select pg_backend_pid() as pid') })
    const before = await pid()
    for (let round = 0; round < 5; round += 1) {
      for await (const rows of streamAsCaller(db, SYSTEM, series(), 10)) {
        expect(rows).toHaveLength(10)
        break
      }
      expect(await pid()).toEqual(before)
    }
  })

  it('frees its connection, the same, when the reader or the query fails', async () => {
    const db = open()
    const pid = async () => await asApp(db, { compile: () => raw('select pg_backend_pid() as pid') })
    const before = await pid()
    const read = async (query: CompiledQuery, reason?: Error) => {
      for await (const rows of streamAsCaller(db, SYSTEM, query, 10)) {
        expect(rows).toHaveLength(10)
        if (reason !== undefined) throw reason
      }
    }
    await expect(read(series(), new Error('no more paper'))).rejects.toThrow('no more paper')
    expect(await pid()).toEqual(before)
    const late = await read(raw('select 1 / (25 - n) from generate_series(1, 50) n')).catch(failure)
    expect(sqlState(late)).toBe('22012')
    expect(await pid()).toEqual(before)
    expect(sqlState(await read(raw('select nothing')).catch(failure))).toBe('42703')
    expect(await pid()).toEqual(before)
  })

  it('with a value that cannot be read fails by itself, on a connection that stays good', async () => {
    const db = open()
    const pid = async () => await asApp(db, { compile: () => raw('select pg_backend_pid() as pid') })
    const before = await pid()
    for (const count of [20, 5000]) {
      const query = raw(
        `select case n when 15 then 'infinity' else now() end as t from generate_series(1, ${count}) n`,
      )
      const read = async () => {
        for await (const rows of streamAsCaller(db, SYSTEM, query, 10)) expect(rows).toHaveLength(10)
      }
      expect(await read().catch(failure)).toMatchObject({
        code: 'internal',
        cause: { message: expect.stringContaining('timestamp') },
      })
      expect(await pid()).toEqual(before)
    }
  })

  it('changes nothing', async () => {
    const db = open()
    const write = async () => {
      for await (const rows of streamAsCaller(db, SYSTEM, raw('insert into things values (1) returning id')))
        void rows
    }
    expect(sqlState(await write().catch(failure))).toBe('25006')
    expect(await stored()).toEqual([])
  })

  it('frees its place in the pool when the backend ends while the reader leaves', async () => {
    const told: Error[] = []
    const db = open({ onIdleError: (error) => told.push(error) })
    const pids = raw<{ pid: number }>('select pg_backend_pid() as pid from generate_series(1, 5000)')
    for await (const [row] of streamAsCaller(db, SYSTEM, pids, 10)) {
      await superuser.query('select pg_terminate_backend($1)', [row?.pid])
      await expect.poll(() => told.length).toBeGreaterThan(0)
      break
    }
    expect(await asApp(db, { compile: () => raw('select 1 as one') })).toEqual([{ one: 1 }])
  })

  it('that has ended leaves no timer that harms the next statements', async () => {
    const db = open({ budgets: { ...budgetsFor(30_000), queryMs: 400 } })
    for await (const rows of streamAsCaller(db, SYSTEM, series(), 5000)) expect(rows).toHaveLength(5000)
    for (let round = 0; round < 8; round += 1) {
      const slow = raw('select pg_sleep(0.1), $1::int as round', [round])
      expect(await asApp(db, { compile: () => slow })).toMatchObject([{ round }])
    }
  })
})
