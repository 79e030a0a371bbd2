import { once } from 'node:events'
import { type AddressInfo, type Server, connect, createServer } from 'node:net'
import { type Compilable, CompiledQuery } from 'kysely'
import pg from 'pg'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import { type Caller, SYSTEM, asApp, asCaller } from '../../src/db/as-caller.js'
import { type Db, createDatabase } from '../../src/db/database.js'
import type { GuardedPool } from '../../src/db/guarded-pool.js'
import { sqlState } from '../../src/db/pg-errors.js'
import { inTransaction } from '../../src/db/transaction.js'
import { createPostgresDatabase, guardedPool } from '../engine.js'

let url: string
let drop: () => Promise<void>
let superuser: pg.Client
let proxy: Server
let pool: GuardedPool
let db: Db
/** What the client wrote since the last `trips`: one entry a write that ended with Sync. */
let syncs = 0

beforeAll(async () => {
  ;({ url, drop } = await createPostgresDatabase())
  superuser = new pg.Client({ connectionString: url })
  await superuser.connect()
  await superuser.query('create table things (id int primary key, note text)')
  await superuser.query('grant select, insert on things to gary_app, gary_caller')
})
afterAll(async () => {
  await superuser.end()
  await drop()
})
beforeEach(async () => {
  await superuser.query('truncate things')
  proxy = createServer((client) => {
    const { hostname, port } = new URL(url)
    const server = connect(Number(port || 5432), hostname)
    client.on('data', (chunk) => {
      syncs += countSyncs(chunk)
      server.write(chunk)
    })
    server.on('data', (chunk) => client.write(chunk))
    for (const end of [client, server]) {
      end.on('error', () => end.destroy())
      end.on('close', () => (end === client ? server : client).destroy())
    }
  }).listen(0, '127.0.0.1')
  await once(proxy, 'listening')
  const through = new URL(url)
  through.host = `127.0.0.1:${(proxy.address() as AddressInfo).port}`
  pool = guardedPool(through.href, { size: 1 })
  db = createDatabase(pool)
  await asApp(db, raw('select 1'))
})
afterEach(async () => {
  await pool.end(1000)
  proxy.close()
})

/** Sync messages in what the client wrote; a flight is one write, so no message is split between two. */
function countSyncs(chunk: Buffer): number {
  let count = 0
  for (let at = 0; at + 5 <= chunk.length; at += 1 + chunk.readUInt32BE(at + 1)) {
    if (chunk[at] === 'S'.charCodeAt(0)) count += 1
  }
  return count
}

/** Round trips of the work: what the server answers to. */
async function trips(work: () => Promise<unknown>): Promise<number> {
  const before = syncs
  await work()
  return syncs - before
}

function raw<R = Record<string, unknown>>(text: string, parameters: unknown[] = []): Compilable<R> {
  return { compile: () => CompiledQuery.raw(text, parameters) as CompiledQuery<R> }
}

function caller(id: number): Caller {
  return { ...SYSTEM, userId: id, role: 'user', actor: { type: 'user', id, name: `user ${id}` } }
}

async function stateOf(work: Promise<unknown>): Promise<string> {
  return await work.then(
    () => 'none',
    (error: unknown) => sqlState(error) ?? String(error),
  )
}

const ME = "select current_setting('app.user_id') as me, $1::text as echo, pg_backend_pid() as pid"

describe('a flight', () => {
  it('is one round trip for identity and statement', async () => {
    expect(await trips(() => asApp(db, raw('select 1')))).toBe(1)
    expect(await trips(() => asCaller(db, caller(7), raw(ME, ['a'])))).toBe(1)
    expect(await trips(() => asCaller(db, caller(7), raw(ME, ['b'])))).toBe(1)
  })

  it('carries BEGIN, identity and the first statement of a transaction together', async () => {
    const one = (tx: { executeQuery: Db['executeQuery'] }) => tx.executeQuery(CompiledQuery.raw(ME, ['a']))
    expect(await trips(() => inTransaction(db, caller(7), one))).toBe(2)
    const three = async (tx: { executeQuery: Db['executeQuery'] }) => {
      for (let statement = 0; statement < 3; statement += 1) await one(tx)
    }
    expect(await trips(() => inTransaction(db, caller(7), three))).toBe(4)
    expect(await trips(() => inTransaction(db, caller(7), async () => {}))).toBe(0)
  })

  it('may name its caller twice, on a connection that has prepared nothing yet', async () => {
    const fresh = guardedPool(url, { size: 1 })
    const of = createDatabase(fresh)
    const [row] = await inTransaction(of, caller(7), (tx) =>
      asCaller(tx, caller(7), raw<{ me: string }>(ME, ['a'])),
    )
    expect(row?.me).toBe('7')
    await fresh.end(100)
  })

  it('prepares a text once a connection, and its identity with it', async () => {
    for (let round = 0; round < 5; round += 1) await asCaller(db, caller(round), raw(ME, [String(round)]))
    const prepared = await asApp(
      db,
      raw<{ name: string; statement: string }>('select name, statement from pg_prepared_statements'),
    )
    expect(prepared.filter(({ statement }) => statement === ME)).toHaveLength(1)
    expect(prepared.filter(({ name }) => name === 'identity')).toHaveLength(1)
    expect(new Set(prepared.map(({ statement }) => statement)).size).toBe(prepared.length)
  })

  it('answers with the rows, the count and the command of its last statement alone', async () => {
    const connection = await pool.connect()
    const statement = (text: string) => ({ text, values: [], name: undefined })
    const result = await connection.execute([
      statement("select 'first' as a, generate_series(1, 50)"),
      statement('select 2 as b where false'),
      statement("insert into things values (1, 'x'), (2, 'y') returning id as c"),
    ])
    expect(result).toMatchObject({ command: 'INSERT', rowCount: 2, rows: [{ c: 1 }, { c: 2 }] })
    connection.release()
  })

  it('is all or nothing outside a transaction, too', async () => {
    const connection = await pool.connect()
    const insert = { text: 'insert into things values ($1)', values: [1], name: undefined }
    const failing = { text: 'select 1 / $1::int', values: [0], name: undefined }
    expect(await stateOf(connection.execute([insert, failing]))).toBe('22012')
    expect(await stateOf(connection.execute([failing, insert]))).toBe('22012')
    connection.release()
    expect((await superuser.query('select from things')).rowCount).toBe(0)
  })

  it('leaves nothing half written when a value cannot be sent', async () => {
    const cyclic: Record<string, unknown> = {}
    cyclic['self'] = cyclic
    const [before] = await asApp(db, raw<{ pid: number }>('select pg_backend_pid() as pid'))
    expect(await trips(() => expect(asApp(db, raw('select $1::text', [cyclic]))).rejects.toThrow())).toBe(0)
    expect(await asApp(db, raw('select pg_backend_pid() as pid'))).toEqual([before])
  })
})

describe('a flight that fails', () => {
  it('leaves the connection to the ones after it, each with its own identity and rows', async () => {
    const bad: [Compilable<unknown>, string][] = [
      [raw("select 'x'::int"), '22P02'],
      [raw('select $1::int', ['x']), '22P02'],
      [raw('select 1 / $1::int', [0]), '22012'],
      [raw('insert into things values (1), (1)'), '23505'],
      [raw('select nothing from nowhere'), '42P01'],
      [raw('syntax error'), '42601'],
      [raw('select generate_series(1, 100) / (50 - generate_series(1, 100))'), '22012'],
    ]
    const [first] = await asCaller(db, caller(1), raw<{ pid: number }>(ME, ['first']))
    let wrong = 0
    for (let round = 0; round < 120; round += 1) {
      const [query, state] = bad[round % bad.length] ?? [raw('select 1'), '']
      expect(await stateOf(asCaller(db, caller(round % 6), query))).toBe(state)
      const id = (round + 1) % 6
      const rows = await asCaller(db, caller(id), raw(ME, [`echo ${round}`]))
      const expected = [{ me: String(id), echo: `echo ${round}`, pid: first?.pid }]
      if (JSON.stringify(rows) !== JSON.stringify(expected)) wrong += 1
    }
    expect(wrong).toBe(0)
  })

  it('gives no row to another when many callers share few connections', async () => {
    const shared = guardedPool(url, { size: 3 })
    const sharedDb = createDatabase(shared)
    const outcomes = await Promise.all(
      Array.from({ length: 300 }, async (_, n) => {
        if (n % 5 === 0)
          return await stateOf(asCaller(sharedDb, caller(n % 6), raw('select 1 / $1::int', [0])))
        const [row] = await asCaller(
          sharedDb,
          caller(n % 6),
          raw<{ me: string; echo: string }>(ME, [String(n)]),
        )
        return row?.me === String(n % 6) && row.echo === String(n) ? 'right' : 'wrong'
      }),
    )
    await shared.end(1000)
    expect(outcomes.filter((outcome) => outcome === '22012')).toHaveLength(60)
    expect(outcomes.filter((outcome) => outcome === 'right')).toHaveLength(240)
  })

  it('believes a name only that the server has taken: one behind a failure is prepared anew', async () => {
    const nobody = { ...caller(1), databaseRole: 'gary_nobody' as 'gary_caller' }
    const text = "select 'behind a failure' as a"
    expect(await stateOf(asCaller(db, nobody, raw(text)))).toBe('22023')
    expect(await asCaller(db, caller(1), raw(text))).toEqual([{ a: 'behind a failure' }])
    expect(await asCaller(db, caller(1), raw(text))).toEqual([{ a: 'behind a failure' }])
  })
})

describe('a plan that is gone', () => {
  it.each([
    ['the connection was reset', 'discard all'],
    ['its names were dropped', 'deallocate all'],
  ])('is made again once: %s', async (_, text) => {
    const connection = await pool.connect()
    connection.release()
    expect(await asCaller(db, caller(3), raw(ME, ['before']))).toHaveLength(1)
    await asApp(db, raw(text))
    if (text === 'discard all') await asApp(db, raw('set role gary_app'))
    expect(await asCaller(db, caller(4), raw(ME, ['after']))).toMatchObject([{ me: '4', echo: 'after' }])
    expect(await asCaller(db, caller(5), raw(ME, ['later']))).toMatchObject([{ me: '5', echo: 'later' }])
  })

  it.each(['asApp', 'asCaller'])(
    'is made again once: a column came or changed its type (%s)',
    async (way) => {
      const run = (query: Compilable<Record<string, unknown>>) =>
        way === 'asApp' ? asApp(db, query) : asCaller(db, caller(1), query)
      await superuser.query("insert into things values (1, 'x')")
      const all = raw('select * from things')
      for (let round = 0; round < 7; round += 1) expect(await run(all)).toEqual([{ id: 1, note: 'x' }])
      await superuser.query('alter table things add column more int default 5')
      try {
        expect(await run(all)).toEqual([{ id: 1, note: 'x', more: 5 }])
        expect(await run(all)).toEqual([{ id: 1, note: 'x', more: 5 }])
      } finally {
        await superuser.query('alter table things drop column more')
      }
      expect(await run(all)).toEqual([{ id: 1, note: 'x' }])
    },
  )

  it('runs a write once', async () => {
    const insert = (id: number) => raw('insert into things (id) values ($1) returning id', [id])
    await asCaller(db, caller(1), insert(1))
    await asApp(db, raw('deallocate all'))
    expect(await asCaller(db, caller(1), insert(2))).toEqual([{ id: 2 }])
    expect((await superuser.query('select id from things order by id')).rows).toEqual([{ id: 1 }, { id: 2 }])
  })
})
