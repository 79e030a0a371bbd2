import { type ChildProcess, spawn } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { chownSync, existsSync } from 'node:fs'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { type AddressInfo, type Server, type Socket, connect, createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type Compilable, CompiledQuery, sql } from 'kysely'
import pg from 'pg'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import { SYSTEM, asApp } from '../../src/db/as-caller.js'
import { connectionConfig } from '../../src/db/connection.js'
import { createLogin } from '../../src/db/create-login.js'
import { type Db, type Tx, createDatabase } from '../../src/db/database.js'
import { type Embedded, startEmbedded } from '../../src/db/embedded.js'
import type { GuardedPool } from '../../src/db/guarded-pool.js'
import {
  type FailureClass,
  type FailureOutcome,
  classify,
  outcomeOf,
  sqlState,
} from '../../src/db/pg-errors.js'
import { budgetsFor } from '../../src/db/pool.js'
import type { PostgresSettings } from '../../src/db/postgres-source.js'
import { inTransaction } from '../../src/db/transaction.js'
import type { AppError, ErrorCode } from '../../src/errors.js'
import { createPostgresDatabase, guardedPool, onServer } from '../engine.js'

// Every failure as it really arrives: raised by a server or a socket, met through pool, driver and Kysely.

let url: string
let drop: () => Promise<void>
let superuser: pg.Client
let version: number
let pools: GuardedPool[]
let clients: pg.Client[]
let listeners: Server[]

beforeAll(async () => {
  ;({ url, drop } = await createPostgresDatabase())
  superuser = new pg.Client({ connectionString: url })
  await superuser.connect()
  const { rows } = await superuser.query<{ version: number }>(
    "select current_setting('server_version_num')::int as version",
  )
  version = rows[0]?.version ?? 0
  await superuser.query(`
    create table fault_parents (id int primary key, name text unique);
    create table fault_children (
      parent int references fault_parents on delete restrict,
      span int4range,
      quantity int not null default 1 check (quantity > 0),
      exclude using gist (span with &&)
    );
    create table fault_plans (a int);
    insert into fault_parents values (1, 'taken');
    insert into fault_children values (1, '[1,5)');
    create function fault_disk_full() returns void language plpgsql security definer as
      $$ begin execute 'copy (select repeat(''x'', 10000)) to ''/dev/full'''; end $$;
    create function fault_no_file() returns text language sql security definer as
      $$ select pg_read_file('/nonexistent') $$;
    grant all on fault_parents, fault_children, fault_plans to gary_app, gary_caller;
    alter database ${superuser.escapeIdentifier(superuser.database ?? '')} set deadlock_timeout = '50ms';
  `)
})
afterAll(async () => {
  await superuser.end()
  await drop()
  for (const name of logins) await onServer(`drop role if exists ${name}`)
})
beforeEach(() => {
  pools = []
  clients = []
  listeners = []
})
afterEach(async () => {
  await Promise.all(pools.map((pool) => pool.end(100)))
  await Promise.all(clients.map((client) => client.end().catch(() => undefined)))
  for (const listener of listeners) listener.close()
})

function open(settings: Partial<PostgresSettings> = {}, at = url): Db {
  const pool = guardedPool(at, { size: 1, ...settings })
  pools.push(pool)
  return createDatabase(pool)
}

/** One more session of the superuser's; what ends it is no error of the test's. */
async function dial(at = url): Promise<pg.Client> {
  const client = new pg.Client({ connectionString: at })
  client.on('error', () => {})
  await client.connect()
  clients.push(client)
  return client
}

/** A server of ours on loopback; its URL in place of the other's. */
async function listen(onClient: (client: Socket) => void, at = url): Promise<string> {
  const listener = createServer((client) => {
    client.on('error', () => client.destroy())
    onClient(client)
  }).listen(0, '127.0.0.1')
  listeners.push(listener)
  await once(listener, 'listening')
  const ours = new URL(at)
  ours.host = `127.0.0.1:${(listener.address() as AddressInfo).port}`
  return ours.href
}

/** The way to the server, with the sockets on both sides of it in hand. */
async function proxy(at = url): Promise<{ url: string; taken: { client: Socket; server: Socket }[] }> {
  const taken: { client: Socket; server: Socket }[] = []
  const { hostname, port } = new URL(at)
  const ours = await listen((client) => {
    const server = connect(Number(port || 5432), hostname)
    taken.push({ client, server })
    client.pipe(server)
    server.pipe(client)
    for (const end of [client, server]) {
      end.on('error', () => end.destroy())
      end.on('close', () => (end === client ? server : client).destroy())
    }
  }, at)
  return { url: ours, taken }
}

function query(text: string, ...values: unknown[]): Compilable {
  return { compile: () => CompiledQuery.raw(text, values) }
}

function raise(state: string): Compilable {
  return query(`do $$ begin raise exception 'provoked' using errcode = '${state}'; end $$`)
}

function tooManyParameters(): Compilable {
  const values = Array.from({ length: 65_538 }, () => 'x')
  return query(`select array[${values.map((_, index) => `$${index + 1}::text`).join()}]`, ...values)
}

async function lockParent(): Promise<pg.Client> {
  const holder = await dial()
  await holder.query('begin; select from fault_parents for update')
  return holder
}

function ownName(): string {
  return `fault_${randomBytes(6).toString('hex')}`
}

const logins: string[] = []
function loginName(): string {
  const name = ownName()
  logins.push(name)
  return name
}

function urlOf(name: string, password: string): string {
  const at = new URL(url)
  at.username = name
  at.password = password
  return at.href
}

/** A login as operators make it, with the role as its own setting. */
async function ownLogin(name: string): Promise<string> {
  const { password } = await createLogin({ connectionString: url }, name, 60_000)
  return urlOf(name, password)
}

async function freePort(): Promise<number> {
  const free = createServer().listen(0, '127.0.0.1')
  await once(free, 'listening')
  const { port } = free.address() as AddressInfo
  free.close()
  await once(free, 'close')
  return port
}

async function backendOf(db: Db | Tx): Promise<number> {
  const [row] = await asApp(db, db.selectNoFrom(sql<number>`pg_backend_pid()`.as('pid')))
  return row?.pid ?? 0
}

/** What comes at once on a machine that is not busy. */
const LATE = { timeout: 10_000 }

interface Met {
  class: FailureClass
  writes: FailureOutcome
  reads: FailureOutcome
  code: ErrorCode
  retryAfterSeconds: number | undefined
  sqlState: string | undefined
  client: 'kept' | 'replaced' | 'none'
}

async function errorOf(work: Promise<unknown>): Promise<unknown> {
  return await work.then(
    () => expect.unreachable('nothing failed'),
    (error: unknown) => error,
  )
}

function rowOf(error: unknown, client: Met['client']): Met {
  const { code, retryAfterSeconds } = error as AppError
  const name = classify(error)
  const [writes, reads] = [outcomeOf(name, true), outcomeOf(name, false)]
  return { class: name, writes, reads, code, retryAfterSeconds, sqlState: sqlState(error), client }
}

/** What the work's failure is, and whether the next statement is on the same backend. */
async function met(db: Db, work: () => Promise<unknown>): Promise<Met> {
  const before = await backendOf(db)
  const error = await errorOf(work())
  return rowOf(error, (await backendOf(db)) === before ? 'kept' : 'replaced')
}

/** What the failure to connect is: no client comes of it. */
async function metConnecting(db: Db): Promise<Met> {
  return rowOf(await errorOf(backendOf(db)), 'none')
}

/** The backend that sleeps for this test; ends when it is found. */
async function sleeper(client: pg.Client, text: string): Promise<number> {
  const find = async () => {
    const { rows } = await client.query<{ pid: number }>(
      "select pid from pg_stat_activity where wait_event = 'PgSleep' and query like '%' || $1 || '%'",
      [text],
    )
    return rows[0]?.pid
  }
  await expect.poll(find, LATE).toBeDefined()
  return (await find()) ?? 0
}

async function isWaiting(client: pg.Client & { processID?: number }): Promise<boolean> {
  const { rowCount } = await superuser.query(
    "select from pg_stat_activity where wait_event_type = 'Lock' and pid = $1",
    [client.processID],
  )
  return rowCount === 1
}

/** A write that takes a minute, by a text that no other test has. */
function slowWrite(): { text: string; write: Compilable } {
  const text = `/* ${ownName()} */`
  return { text, write: query(`select set_config('fault.x', 'y', false), pg_sleep(60) ${text}`) }
}

const LOST = { class: 'lost', writes: 'failure', reads: 'failure', code: 'unavailable', retryAfterSeconds: 1 }
const UNKNOWN_OUTCOME = { code: 'outcome_unknown', retryAfterSeconds: undefined }
const MISCONFIGURED = {
  class: 'misconfigured',
  writes: 'failure',
  reads: 'failure',
  code: 'unavailable',
  retryAfterSeconds: 30,
  client: 'none',
}

describe('a constraint', () => {
  const CONFLICT = { class: 'conflict', code: 'conflict' }
  const INVALID = { class: 'constraint', code: 'validation_failed' }
  it.each([
    ['a value that is taken', "insert into fault_parents values (2, 'taken')", '23505', CONFLICT],
    ['an overlap', "insert into fault_children values (1, '[4,9)')", '23P01', CONFLICT],
    ['a row that is not there', 'insert into fault_children values (99)', '23503', INVALID],
    ['null', 'insert into fault_children values (1, null, null)', '23502', INVALID],
    ['a value out of its rule', 'insert into fault_children values (1, null, 0)', '23514', INVALID],
  ])('broken by %s is ignored and keeps its client', async (_, text, state, answer) => {
    const db = open()
    expect(await met(db, () => asApp(db, query(text)))).toEqual({
      ...answer,
      writes: 'ignored',
      reads: 'ignored',
      sqlState: state,
      client: 'kept',
    })
  })

  it('that keeps a row in use is a conflict, where the server tells it from a missing one', async () => {
    const db = open()
    const answer = version >= 180_000 ? { ...CONFLICT, sqlState: '23001' } : { ...INVALID, sqlState: '23503' }
    const removed = await met(db, () => asApp(db, query('delete from fault_parents')))
    expect(removed).toMatchObject({ ...answer, writes: 'ignored', client: 'kept' })
  })
})

describe('data that cannot be stored', () => {
  it.each([
    ['no number', query('select $1::int', 'x'), '22P02'],
    ['a number too large', query('select $1::smallint', '99999'), '22003'],
    ['NUL', query('select $1::text', 'a\0b'), '22021'],
    ['a division by zero', query('select 1 / $1::int', 0), '22012'],
    ['a depth beyond the stack', query(`select 1${'+1'.repeat(60_000)}`), '54001'],
    [
      'a value too long for its index',
      query(
        "insert into fault_parents select 3, string_agg(md5(n::text), '') from generate_series(1, 999) n",
      ),
      '54000',
    ],
  ])('is ignored and answers 422: %s', async (_, statement, state) => {
    const db = open()
    expect(await met(db, () => asApp(db, statement))).toEqual({
      class: 'bad_data',
      writes: 'ignored',
      reads: 'ignored',
      code: 'validation_failed',
      sqlState: state,
      client: 'kept',
    })
  })
})

describe('what is not allowed', () => {
  it('is ignored and answers 403', async () => {
    const db = open()
    expect(await met(db, () => asApp(db, query('select value from config_entries')))).toEqual({
      class: 'denied',
      writes: 'ignored',
      reads: 'ignored',
      code: 'forbidden',
      sqlState: '42501',
      client: 'kept',
    })
  })
})

describe('a statement that is ours to mend', () => {
  const UNKNOWN = { class: 'unknown', writes: 'ignored', reads: 'ignored', code: 'internal', client: 'kept' }
  it.each([
    ['42P01', query('select from nowhere')],
    ['0A000', query('select distinct 1 from fault_parents for update')],
    ['58P01', query('select fault_no_file()')],
    ...['58030', 'XX000', 'XX001', '55006', 'P0001'].map((state) => [state, raise(state)] as const),
  ] as const)('is ignored and answers 500: %s', async (state, statement) => {
    const db = open()
    expect(await met(db, () => asApp(db, statement))).toEqual({ ...UNKNOWN, sqlState: state })
  })

  it('is ignored, so one that passes the limit of temporary files', async () => {
    const name = loginName()
    const login = await ownLogin(name)
    await superuser.query(`alter role ${name} set temp_file_limit = '64kB'`)
    await superuser.query(`alter role ${name} set work_mem = '64kB'`)
    const db = open({ pooled: true }, login)
    const sorting = query('select n from generate_series(1, 100000) n order by n desc')
    expect(await met(db, () => asApp(db, sorting))).toEqual({ ...UNKNOWN, sqlState: '53400' })
  })

  it('is the first one: what is sent after it in its transaction has failed with it', async () => {
    const db = open()
    const work = () =>
      inTransaction(db, SYSTEM, async (tx) => {
        await asApp(tx, query('select from nowhere')).catch(() => undefined)
        await asApp(tx, query('select 1'))
      })
    expect(await met(db, work)).toEqual({ ...UNKNOWN, sqlState: '25P02' })
  })

  it('has more parameters than the protocol can count: its client is not used again', async () => {
    const db = open()
    expect(await met(db, () => asApp(db, tooManyParameters()))).toMatchObject({
      class: 'protocol',
      writes: 'ignored',
      code: 'internal',
      sqlState: '08P01',
      client: 'replaced',
    })
  })
})

describe('a limit of time', () => {
  const SLOW = { writes: 'slow', reads: 'slow', code: 'deadline_exceeded' }

  it('of a statement counts as slow and keeps the client', async () => {
    const db = open({ budgets: { ...budgetsFor(60_000), statementMs: 100 } })
    expect(await met(db, () => asApp(db, slowWrite().write))).toEqual({
      ...SLOW,
      class: 'statement_timeout',
      sqlState: '57014',
      client: 'kept',
    })
  })

  it('of a statement is the same while it waits for a lock', async () => {
    const db = open({ budgets: { ...budgetsFor(60_000), statementMs: 100 } })
    const holder = await lockParent()
    expect(await met(db, () => asApp(db, query('update fault_parents set id = id')))).toMatchObject({
      ...SLOW,
      class: 'statement_timeout',
      client: 'kept',
    })
    await holder.query('rollback')
  })

  it('of a lock is ignored', async () => {
    const db = open({ budgets: { ...budgetsFor(60_000), lockMs: 100 } })
    const holder = await lockParent()
    expect(await met(db, () => asApp(db, query('update fault_parents set id = id')))).toEqual({
      class: 'lock_timeout',
      writes: 'ignored',
      reads: 'ignored',
      code: 'unavailable',
      retryAfterSeconds: 1,
      sqlState: '55P03',
      client: 'kept',
    })
    await holder.query('rollback')
  })

  it('that an administrator ended by hand counts as slow', async () => {
    const db = open()
    const { text, write } = slowWrite()
    const work = async () => {
      const failed = errorOf(asApp(db, write))
      await superuser.query('select pg_cancel_backend($1)', [await sleeper(superuser, text)])
      throw await failed
    }
    expect(await met(db, work)).toMatchObject({
      ...SLOW,
      class: 'statement_timeout',
      sqlState: '57014',
      client: 'kept',
    })
  })

  it('of our own counts as a failure, and leaves open what a write did', async () => {
    const db = open({ budgets: { ...budgetsFor(60_000), queryMs: 200 } })
    const row = { class: 'client_timeout', writes: 'failure_and_slow', reads: 'failure_and_slow' }
    expect(await met(db, () => asApp(db, slowWrite().write))).toEqual({
      ...row,
      ...UNKNOWN_OUTCOME,
      sqlState: undefined,
      client: 'replaced',
    })
    const work = () => inTransaction(db, SYSTEM, async (tx) => await asApp(tx, slowWrite().write))
    expect(await met(db, work)).toMatchObject({ ...row, code: 'deadline_exceeded', client: 'replaced' })
  })

  it('of a transaction counts as slow and ends the client', async ({ skip }) => {
    if (version < 170_000) skip('transaction_timeout came with PostgreSQL 17')
    const db = open()
    const work = () =>
      inTransaction(db, SYSTEM, async (tx) => {
        await asApp(tx, query("set local transaction_timeout = '300ms'"))
        await asApp(tx, slowWrite().write)
      })
    expect(await met(db, work)).toEqual({
      ...SLOW,
      class: 'transaction_timeout',
      sqlState: '25P04',
      client: 'replaced',
    })
  })

  it('of an idle transaction is told beside it, and by the next statement', async () => {
    const told: Error[] = []
    const budgets = { ...budgetsFor(60_000), idleInTransactionMs: 100 }
    const db = open({ budgets, onIdleError: (error) => told.push(error) })
    const work = () =>
      inTransaction(db, SYSTEM, async (tx) => {
        await backendOf(tx)
        await expect.poll(() => told[0], LATE).toBeDefined()
        await backendOf(tx)
      })
    const transactionTimeout = { class: 'transaction_timeout', sqlState: '25P03', client: 'replaced' }
    expect(await met(db, work)).toEqual({ ...SLOW, ...transactionTimeout })
    expect(classify(told[0])).toBe('transaction_timeout')
    expect(sqlState(told[0])).toBe('25P03')
  })

  it('of an idle session is told, and no caller meets it', async () => {
    const told: Error[] = []
    const db = open({ onIdleError: (error) => told.push(error) })
    const before = await backendOf(db)
    await asApp(db, query("set idle_session_timeout = '50ms'"))
    await expect.poll(() => told[0], LATE).toBeDefined()
    expect(classify(told[0])).toBe('restarting')
    expect(sqlState(told[0])).toBe('57P05')
    expect(await backendOf(db)).not.toBe(before)
  })
})

describe('a transaction in the way of another', () => {
  const SERIALIZATION = {
    class: 'serialization',
    writes: 'ignored',
    reads: 'ignored',
    code: 'unavailable',
    retryAfterSeconds: 1,
    client: 'kept',
  }

  it('by what it read is ignored', async () => {
    const db = open()
    const work = () =>
      db.transaction().execute(async (tx) => {
        await asApp(tx, query('set transaction isolation level repeatable read'))
        await asApp(tx, query('select from fault_parents'))
        await superuser.query('update fault_parents set id = id')
        await asApp(tx, query('update fault_parents set id = id'))
      })
    expect(await met(db, work)).toEqual({ ...SERIALIZATION, sqlState: '40001' })
  })

  it('by a deadlock is ignored', async () => {
    const db = open()
    const other = await dial()
    await other.query("set deadlock_timeout = '60s'")
    const work = () =>
      db.transaction().execute(async (tx) => {
        await asApp(tx, query('select pg_advisory_xact_lock(1)'))
        await other.query('begin; select pg_advisory_xact_lock(2)')
        void other.query('select pg_advisory_xact_lock(1)').catch(() => undefined)
        await expect.poll(() => isWaiting(other), LATE).toBe(true)
        await asApp(tx, query('select pg_advisory_xact_lock(2)'))
      })
    expect(await met(db, work)).toEqual({ ...SERIALIZATION, sqlState: '40P01' })
  })
})

describe('a plan or a name that is gone', () => {
  const PLAN_GONE = {
    class: 'plan_gone',
    writes: 'ignored',
    reads: 'ignored',
    code: 'unavailable',
    retryAfterSeconds: 1,
    client: 'replaced',
  }
  const KNOWN_TEXT = 'select * from fault_plans'
  const KNOWN = query(KNOWN_TEXT)
  const takeName = (text: string) =>
    query(`prepare "${createHash('sha256').update(text).digest('hex').slice(0, 20)}" as select 1`)
  const ways: [string, (db: Db, next: string) => Promise<unknown>, () => string][] = [
    ['0A000', () => superuser.query(`alter table fault_plans add ${ownName()} int`), () => KNOWN_TEXT],
    ['26000', (db) => asApp(db, query('deallocate all')), () => KNOWN_TEXT],
    ['42P05', (db, next) => asApp(db, takeName(next)), () => `${KNOWN_TEXT} /* ${ownName()} */`],
  ]

  it.each(ways)('%s is ignored, and ends a transaction with its client', async (state, lose, statement) => {
    const db = open()
    const next = statement()
    const work = async () => {
      await asApp(db, KNOWN)
      await lose(db, next)
      await inTransaction(db, SYSTEM, async (tx) => await asApp(tx, query(next)))
    }
    expect(await met(db, work)).toEqual({ ...PLAN_GONE, sqlState: state })
  })

  it.each(ways)('%s outside a transaction is met by nobody', async (_, lose, statement) => {
    const db = open()
    await asApp(db, KNOWN)
    const before = await backendOf(db)
    const next = statement()
    await lose(db, next)
    expect(await asApp(db, query(next))).toEqual([])
    expect(await backendOf(db)).not.toBe(before)
  })
})

describe('a disk that is full', () => {
  it('counts for writes, says so, and keeps the client', async ({ skip }) => {
    if (!existsSync('/dev/full')) skip('there is no /dev/full here')
    const db = open()
    expect(await met(db, () => asApp(db, query('select fault_disk_full()')))).toEqual({
      class: 'storage_full',
      writes: 'failure',
      reads: 'ignored',
      code: 'storage_full',
      retryAfterSeconds: 30,
      sqlState: '53100',
      client: 'kept',
    })
  })
})

describe('a server that is read-only', () => {
  it('counts for writes, and its client is not used again', async () => {
    const db = open()
    await asApp(db, query('set default_transaction_read_only = on'))
    expect(await met(db, () => asApp(db, query('delete from fault_children')))).toEqual({
      class: 'read_only',
      writes: 'failure',
      reads: 'ignored',
      code: 'unavailable',
      retryAfterSeconds: 1,
      sqlState: '25006',
      client: 'replaced',
    })
  })
})

describe('a server without room', () => {
  const EXHAUSTED = {
    class: 'exhausted',
    writes: 'failure',
    reads: 'failure',
    code: 'unavailable',
    retryAfterSeconds: 1,
  }

  it('for a statement counts and keeps the client', async () => {
    const db = open()
    expect(await met(db, () => asApp(db, raise('53000')))).toEqual({
      ...EXHAUSTED,
      sqlState: '53000',
      client: 'kept',
    })
  })

  it('for a connection counts', async () => {
    const name = loginName()
    const login = await ownLogin(name)
    await superuser.query(`alter role ${name} connection limit 0`)
    expect(await metConnecting(open({ pooled: true }, login))).toEqual({
      ...EXHAUSTED,
      sqlState: '53300',
      client: 'none',
    })
  })
})

describe('a pool without room', () => {
  it('is ignored', async () => {
    const db = open({ budgets: { ...budgetsFor(60_000), acquireMs: 200 } })
    const row = await db.connection().execute(async (holder) => {
      await holder.executeQuery(CompiledQuery.raw('select 1'))
      return await metConnecting(db)
    })
    expect(row).toEqual({
      class: 'pool_wait',
      writes: 'ignored',
      reads: 'ignored',
      code: 'pool_exhausted',
      retryAfterSeconds: 1,
      sqlState: undefined,
      client: 'none',
    })
  })
})

describe('a connection that is lost under a statement', () => {
  const ways: [string, (socket: Socket) => unknown][] = [
    ['by a reset', (socket) => socket.resetAndDestroy()],
    ['by its end', (socket) => socket.end()],
    ['to something that is no PostgreSQL', (socket) => socket.write(Buffer.alloc(16))],
  ]

  it.each(ways)('%s counts; a write that stood alone may be done or not', async (_, cut) => {
    const way = await proxy()
    const db = open({}, way.url)
    const { text, write } = slowWrite()
    const work = async () => {
      const failed = errorOf(asApp(db, write))
      await sleeper(superuser, text)
      cut(way.taken[0]?.client as Socket)
      throw await failed
    }
    const row = { ...LOST, sqlState: undefined, client: 'replaced' }
    expect(await met(db, work)).toEqual({ ...row, ...UNKNOWN_OUTCOME })
  })

  it.each(ways)('%s counts; a transaction before its COMMIT is undone', async (_, cut) => {
    const way = await proxy()
    const db = open({}, way.url)
    const { text, write } = slowWrite()
    const work = () =>
      inTransaction(db, SYSTEM, async (tx) => {
        await backendOf(tx)
        const failed = errorOf(asApp(tx, write))
        await sleeper(superuser, text)
        cut(way.taken[0]?.client as Socket)
        throw await failed
      })
    expect(await met(db, work)).toEqual({ ...LOST, sqlState: undefined, client: 'replaced' })
  })

  it('by an administrator counts, with the words of the server', async () => {
    const db = open()
    const { text, write } = slowWrite()
    const work = async () => {
      const failed = errorOf(asApp(db, write))
      await superuser.query('select pg_terminate_backend($1)', [await sleeper(superuser, text)])
      throw await failed
    }
    expect(await met(db, work)).toEqual({
      ...LOST,
      ...UNKNOWN_OUTCOME,
      class: 'restarting',
      sqlState: '57P01',
      client: 'replaced',
    })
  })
})

describe('a connection that cannot be made', () => {
  const QUICK = { ...budgetsFor(60_000), acquireMs: 300 }
  const NO_CONNECTION = { ...LOST, sqlState: undefined, client: 'none' }

  it('because nobody listens counts', async () => {
    const closed = await listen(() => {})
    listeners.pop()?.close()
    expect(await metConnecting(open({}, closed))).toEqual(NO_CONNECTION)
  })

  it.each([
    ['resets it', (socket: Socket) => socket.resetAndDestroy()],
    ['ends it', (socket: Socket) => socket.end()],
    ['never answers', () => {}],
    ['is no PostgreSQL', (socket: Socket) => socket.write(Buffer.alloc(16))],
  ])('because whoever listens %s counts', async (_, onClient) => {
    const db = open({ budgets: QUICK }, await listen(onClient))
    expect(await metConnecting(db)).toEqual(NO_CONNECTION)
  })

  it('because its first statement is not answered counts', async () => {
    const silent = await listen((client) => {
      const { hostname, port } = new URL(url)
      const server = connect(Number(port || 5432), hostname)
      for (const end of [client, server]) end.on('error', () => end.destroy())
      // The startup message has no type byte, so it cannot begin with that of a query.
      client.on('data', (chunk) => chunk[0] !== 0x51 && server.write(chunk))
      client.on('close', () => server.destroy())
      server.on('data', (chunk) => client.write(chunk))
    })
    expect(await metConnecting(open({ budgets: QUICK }, silent))).toMatchObject({
      class: 'client_timeout',
      writes: 'failure_and_slow',
      code: 'deadline_exceeded',
    })
  })

  it('because there is no such socket or host counts', async () => {
    const connection = connectionConfig({ url, ssl: 'disable', sslCa: undefined })
    for (const host of ['/nonexistent', 'database.invalid']) {
      expect(await metConnecting(open({ connection: { ...connection, host } }))).toEqual(NO_CONNECTION)
    }
  })

  it('because there is no such database is configuration', async () => {
    const at = new URL(url)
    at.pathname = '/nonexistent'
    expect(await metConnecting(open({}, at.href))).toEqual({ ...MISCONFIGURED, sqlState: '3D000' })
  })

  it('because the database was dropped is configuration, after its connections were ended', async () => {
    const own = await createPostgresDatabase()
    const told: Error[] = []
    const db = open({ onIdleError: (error) => told.push(error) }, own.url)
    await backendOf(db)
    await own.drop()
    await expect.poll(() => told[0], LATE).toBeDefined()
    expect(classify(told[0])).toBe('restarting')
    expect(await metConnecting(db)).toEqual({ ...MISCONFIGURED, sqlState: '3D000' })
  })

  it('because the login may not become the role is configuration', async () => {
    const name = loginName()
    await superuser.query(`create role ${name} login password 'secret'`)
    expect(await metConnecting(open({}, urlOf(name, 'secret')))).toEqual({
      ...MISCONFIGURED,
      sqlState: '42501',
    })
  })

  it('because the role may not log in is configuration', async () => {
    const name = loginName()
    await superuser.query(`create role ${name} nologin password 'secret'`)
    expect(await metConnecting(open({}, urlOf(name, 'secret')))).toEqual({
      ...MISCONFIGURED,
      sqlState: '28000',
    })
  })
})

describe('TLS that is not to be had', () => {
  const require = (at: string) => connectionConfig({ url: at, ssl: 'require', sslCa: undefined })
  /** One that agrees to TLS, or not, by a letter. */
  const agree = (letter: string) => (socket: Socket) =>
    socket.once('data', () => {
      socket.write(letter)
      socket.once('data', () => socket.write('this is no handshake'))
    })

  it.each([
    ['N', MISCONFIGURED],
    ['S', MISCONFIGURED],
    // A server that could not start a process for the connection: it says so before any TLS.
    ['E', { ...LOST, client: 'none' }],
  ])('is configuration, unless the server is only short of processes: %s', async (letter, row) => {
    const db = open({ connection: require(await listen(agree(letter))) })
    expect(await metConnecting(db)).toEqual({ ...row, sqlState: undefined })
  })
})

describe('a server of its own', () => {
  let dataDir: string
  let own: Embedded

  beforeAll(async () => {
    dataDir = await mkdtemp(join(tmpdir(), 'gary-failures-'))
  })
  afterAll(async () => {
    await rm(dataDir, { recursive: true, force: true })
  })
  beforeEach(async () => {
    own = await startEmbedded({ dataDir })
    const client = await dial(own.url)
    await client.query('create role gary_app').catch(() => undefined)
  })
  afterEach(async () => {
    await own.stop()
  })

  it('that has not been migrated is configuration', async () => {
    const client = await dial(own.url)
    await client.query('drop role gary_app')
    expect(await metConnecting(open({}, own.url))).toEqual({ ...MISCONFIGURED, sqlState: '22023' })
  })

  it('whose password is another, or not given, is configuration', async () => {
    const at = new URL(own.url)
    at.password = 'wrong'
    expect(await metConnecting(open({}, at.href))).toEqual({ ...MISCONFIGURED, sqlState: '28P01' })
    at.password = ''
    expect(await metConnecting(open({}, at.href))).toEqual({ ...MISCONFIGURED, sqlState: undefined })
  })

  it('whose database is closed to logins is configuration', async () => {
    const client = await dial(own.url)
    await client.query('create database closed allow_connections false')
    const at = new URL(own.url)
    at.pathname = '/closed'
    expect(await metConnecting(open({}, at.href))).toEqual({ ...MISCONFIGURED, sqlState: '55000' })
  })

  it('out of shared memory counts and keeps its client', async () => {
    const db = open({}, own.url)
    const locks = query('select pg_advisory_xact_lock(n) from generate_series(1, 1000000) n')
    expect(await met(db, () => asApp(db, locks))).toEqual({
      class: 'exhausted',
      writes: 'failure',
      reads: 'failure',
      code: 'unavailable',
      retryAfterSeconds: 1,
      sqlState: '53200',
      client: 'kept',
    })
  })

  it('that shuts down, waiting for others, is restarting', async () => {
    await dial(own.url)
    process.kill(own.pid, 'SIGTERM')
    const refused = async () => await metConnecting(open({}, own.url))
    // It takes connections until it has read the signal.
    await expect.poll(() => refused().catch(() => undefined), LATE).toBeDefined()
    expect(await refused()).toEqual({ ...LOST, class: 'restarting', sqlState: '57P03', client: 'none' })
  })

  it.each([
    ['fast', 'SIGINT', 'restarting', '57P01'],
    // In haste it says why by a notice, and closes.
    ['at once', 'SIGQUIT', 'lost', undefined],
  ] as const)(
    'that shuts down %s counts, and leaves open what a write did',
    async (_, signal, name, state) => {
      const db = open({}, own.url)
      const { text, write } = slowWrite()
      const failed = errorOf(asApp(db, write))
      await sleeper(await dial(own.url), text)
      process.kill(own.pid, signal)
      expect(rowOf(await failed, 'none')).toEqual({
        ...LOST,
        ...UNKNOWN_OUTCOME,
        class: name,
        sqlState: state,
        client: 'none',
      })
    },
  )
})

const PGBOUNCER = ['/usr/sbin/pgbouncer', '/usr/bin/pgbouncer'].find(existsSync)

describe.skipIf(PGBOUNCER === undefined)('PgBouncer', () => {
  let login: string
  let processes: ChildProcess[]
  const POOLED = { pooled: true, budgets: { ...budgetsFor(60_000), acquireMs: 8000 } }

  beforeAll(async () => {
    login = await ownLogin(loginName())
  })
  beforeEach(() => {
    processes = []
  })
  afterEach(() => {
    for (const pooler of processes) pooler.kill()
  })

  /** A pooler before `server`, as nobody, since it refuses to run as root; the login's URL through it. */
  async function pooler(settings: string, server = url): Promise<string> {
    const folder = await mkdtemp(join(tmpdir(), 'gary-bouncer-'))
    const { username, password } = new URL(login)
    const { hostname, port: serverPort, pathname } = new URL(server)
    const port = await freePort()
    await writeFile(join(folder, 'users'), `"${username}" "${password}"\n`)
    await writeFile(
      join(folder, 'ini'),
      `[databases]
gone = host=127.0.0.1 port=${serverPort || 5432} dbname=nonexistent
${pathname.slice(1)} = host=${hostname} port=${serverPort || 5432}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = ${port}
unix_socket_dir =
auth_type = trust
auth_file = ${join(folder, 'users')}
pool_mode = transaction
${settings}\n`,
    )
    const account = process.getuid?.() === 0 ? { uid: 65534, gid: 65534 } : {}
    if (account.uid !== undefined)
      for (const name of ['', 'users', 'ini']) chownSync(join(folder, name), 65534, 65534)
    const child = spawn(PGBOUNCER ?? '', [join(folder, 'ini')], {
      ...account,
      stdio: ['ignore', 'ignore', 'pipe'],
    })
    processes.push(child)
    child.once('exit', () => void rm(folder, { recursive: true, force: true }))
    let log = ''
    child.stderr.on('data', (chunk) => (log += String(chunk)))
    await expect.poll(() => log, LATE).toContain('process up')
    const at = new URL(login)
    at.host = `127.0.0.1:${port}`
    return at.href
  }

  it('refuses startup parameters: configuration', async () => {
    const db = open({}, await pooler(''))
    expect(await metConnecting(db)).toEqual({ ...MISCONFIGURED, sqlState: '08P01' })
  })

  it.each(['/unlisted', '/gone'])(
    'has no such database, or its server has not: configuration',
    async (name) => {
      const at = new URL(await pooler(''))
      at.pathname = name
      expect(await metConnecting(open(POOLED, at.href))).toEqual({ ...MISCONFIGURED, sqlState: '08P01' })
    },
  )

  it('has no room for another client: counts', async () => {
    const at = await pooler('max_client_conn = 1')
    await backendOf(open(POOLED, at))
    expect(await metConnecting(open(POOLED, at))).toEqual({
      ...LOST,
      class: 'exhausted',
      sqlState: '08P01',
      client: 'none',
    })
  })

  it('does not reach its server: lost', async () => {
    const closed = await listen(() => {})
    listeners.pop()?.close()
    const at = await pooler('query_wait_timeout = 1\nserver_login_retry = 1', closed)
    expect(await metConnecting(open(POOLED, at))).toEqual({ ...LOST, sqlState: '08P01', client: 'none' })
  })

  it('has no server to give in time: lost, and surely nothing was done', async () => {
    const at = await pooler('query_wait_timeout = 1\ndefault_pool_size = 1')
    const [holding, waiting] = [open(POOLED, at), open(POOLED, at)]
    await backendOf(waiting)
    const row = await holding.transaction().execute(async (tx) => {
      await backendOf(tx)
      return rowOf(await errorOf(asApp(waiting, slowWrite().write)), 'none')
    })
    expect(row).toEqual({ ...LOST, sqlState: '08P01', client: 'none' })
  })

  it('loses its server under a write: lost, with its outcome open, and another client after it', async () => {
    const behind = await proxy()
    const before = await proxy(await pooler('', behind.url))
    const db = open(POOLED, before.url)
    const { text, write } = slowWrite()
    const work = async () => {
      const failed = errorOf(asApp(db, write))
      await sleeper(superuser, text)
      for (const { server } of behind.taken) server.resetAndDestroy()
      throw await failed
    }
    expect(await met(db, work)).toEqual({
      ...LOST,
      ...UNKNOWN_OUTCOME,
      sqlState: '08P01',
      client: 'replaced',
    })
    expect(before.taken).toHaveLength(2)
  })

  it('stops: lost', async () => {
    const at = await pooler('')
    const db = open(POOLED, at)
    const { text, write } = slowWrite()
    const failed = errorOf(asApp(db, write))
    await sleeper(superuser, text)
    processes[0]?.kill('SIGTERM')
    expect(rowOf(await failed, 'none')).toEqual({
      ...LOST,
      ...UNKNOWN_OUTCOME,
      sqlState: undefined,
      client: 'none',
    })
  })

  it('passes on what its server says of too many parameters, under the same SQLSTATE: not counted', async () => {
    const before = await proxy(await pooler(''))
    const db = open(POOLED, before.url)
    expect(await met(db, () => asApp(db, tooManyParameters()))).toMatchObject({
      class: 'protocol',
      writes: 'ignored',
      code: 'internal',
      sqlState: '08P01',
    })
    expect(before.taken).toHaveLength(2)
  })
})
