import { randomBytes } from 'node:crypto'
import { CompiledQuery, sql } from 'kysely'
import pg from 'pg'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import { SYSTEM, asApp, asCaller } from '../../src/db/as-caller.js'
import { createLogin } from '../../src/db/create-login.js'
import { createDatabase } from '../../src/db/database.js'
import { sqlState } from '../../src/db/pg-errors.js'
import { safetyFaults } from '../../src/db/safety.js'
import { createPostgresDatabase, guardedPool } from '../engine.js'

const ROLES = ['gary_app', 'gary_caller', 'gary_jobs', 'gary_analyst']
const TIMEOUT_MS = 30_000

let url: string
let drop: () => Promise<void>
let superuser: pg.Client
let name: string

beforeAll(async () => {
  ;({ url, drop } = await createPostgresDatabase())
  superuser = new pg.Client({ connectionString: url })
  await superuser.connect()
})
afterAll(async () => {
  await superuser.end()
  await drop()
})
beforeEach(() => {
  name = `login_${randomBytes(6).toString('hex')}`
})
afterEach(async () => {
  await superuser.query(`drop role if exists ${name}`)
})

async function make(): Promise<string> {
  const { password } = await createLogin({ connectionString: url }, name, TIMEOUT_MS)
  const own = new URL(url)
  own.username = name
  own.password = password
  return own.href
}

async function withClient<T>(at: string, work: (client: pg.Client) => Promise<T>): Promise<T> {
  const client = new pg.Client({ connectionString: at })
  await client.connect()
  try {
    return await work(client)
  } finally {
    await client.end()
  }
}

async function stateOf(work: Promise<unknown>): Promise<string> {
  return await work.then(
    () => 'none',
    (error: unknown) => sqlState(error) ?? String(error),
  )
}

describe('a login made for the service', () => {
  it('can become the four roles and nothing else', async () => {
    const { rows } = await superuser.query<{ role: string }>('select rolname as role from pg_roles')
    await withClient(await make(), async (client) => {
      const possible: string[] = []
      for (const { role } of rows) {
        if ((await stateOf(client.query(`set role ${client.escapeIdentifier(role)}`))) === 'none')
          possible.push(role)
      }
      expect(possible.filter((role) => role !== name).sort()).toEqual(ROLES.toSorted())
    })
  })

  it('inherits nothing: as itself it reads no table and runs no function of ours', async () => {
    await withClient(await make(), async (client) => {
      await client.query('set role none')
      for (const table of [
        'auth_users',
        'auth_sessions',
        'config_entries',
        'audit_events',
        'auth_throttle',
      ]) {
        expect.soft(await stateOf(client.query(`select 1 from ${table}`)), table).toBe('42501')
      }
      expect(await stateOf(client.query('select * from reports.logins'))).toBe('42501')
      expect(await stateOf(client.query('select gary.user_id()'))).toBe('42501')
      expect(await stateOf(client.query('create table mine (a int)'))).toBe('42501')
      for (const role of ROLES) {
        const { rows } = await client.query(
          `select pg_has_role($1, 'USAGE') as uses, pg_has_role($1, 'MEMBER') as member`,
          [role],
        )
        expect.soft(rows, role).toEqual([{ uses: false, member: true }])
      }
    })
    const { rows } = await superuser.query(
      `select rolsuper or rolbypassrls or rolcreatedb or rolcreaterole or rolreplication or rolinherit as more
         from pg_roles where rolname = $1`,
      [name],
    )
    expect(rows).toEqual([{ more: false }])
  })

  it('begins as gary_app with the limits of the timeout, by its own settings', async () => {
    await withClient(await make(), async (client) => {
      const { rows } = await client.query(
        `select current_user, session_user, current_setting('statement_timeout') as statement,
          current_setting('lock_timeout') as lock, current_setting('idle_in_transaction_session_timeout') as idle,
          current_setting('TimeZone') as zone`,
      )
      expect(rows).toEqual([
        {
          current_user: 'gary_app',
          session_user: name,
          statement: '10s',
          lock: '3s',
          idle: '15s',
          zone: 'UTC',
        },
      ])
    })
  })

  it.each([true, false])('serves behind the guarded pool, pooled: %s', async (pooled) => {
    const pool = guardedPool(await make(), { pooled, size: 1 })
    const db = createDatabase(pool)
    try {
      const who = () => db.selectNoFrom([sql`current_user`.as('name'), sql<string>`now()`.as('now')])
      expect(await asApp(db, who())).toMatchObject([{ name: 'gary_app' }])
      expect(await asCaller(db, SYSTEM, who())).toMatchObject([{ name: 'gary_caller' }])
      expect(await asApp(db, who())).toMatchObject([{ name: 'gary_app' }])
      const [row] = await asApp(db, {
        compile: () => CompiledQuery.raw('select now() as now') as CompiledQuery<{ now: string }>,
      })
      expect(row?.now).toMatch(/Z$/)
      expect(await asApp(db, safetyFaults())).toEqual([])
    } finally {
      await pool.end(1000)
    }
  })
})

describe('renewing a login', () => {
  it('gives a new password, and the old one opens nothing any more', async ({ skip }) => {
    const old = await make()
    const renewed = await make()
    expect(new URL(renewed).password).not.toBe(new URL(old).password)
    expect(new URL(renewed).password).toHaveLength(32)
    await withClient(renewed, async (client) => await client.query('select 1'))
    const wrong = new URL(renewed)
    wrong.password = 'wrong'
    if ((await stateOf(withClient(wrong.href, async () => {}))) === 'none')
      skip('this server trusts every login')
    expect(await stateOf(withClient(old, async () => {}))).toBe('28P01')
  })

  it('brings back the settings of one that was changed by hand', async () => {
    await make()
    await superuser.query(`alter role ${name} inherit; alter role ${name} set statement_timeout = 0`)
    await withClient(await make(), async (client) => {
      expect((await client.query('show statement_timeout')).rows).toEqual([{ statement_timeout: '10s' }])
      expect((await client.query("select pg_has_role('gary_caller', 'USAGE') as uses")).rows).toEqual([
        { uses: false },
      ])
    })
  })

  it.each([
    ['is a superuser', 'superuser'],
    ['may create roles', 'createrole'],
    ['may create databases', 'createdb'],
    ['bypasses row-level security', 'bypassrls'],
    ['is a member of another role', 'in role pg_read_all_data'],
  ])('is refused for one that %s, which stays as it was', async (_, attribute) => {
    await superuser.query(`create role ${name} login ${attribute} password 'old'`)
    const before = await superuser.query('select * from pg_authid where rolname = $1', [name])
    await expect(make()).rejects.toMatchObject({ code: 'conflict' })
    expect((await superuser.query('select * from pg_authid where rolname = $1', [name])).rows).toEqual(
      before.rows,
    )
  })
})

describe('a name', () => {
  it.each([
    'gary_app',
    'gary_x',
    'pg_monitor',
    '',
    'A',
    '7a',
    'a-b',
    'a"; drop table x; --',
    'ä',
    'a'.repeat(64),
  ])('is refused before anything is asked of the server: %j', async (bad) => {
    const nowhere = { host: '127.0.0.1', port: 1 }
    await expect(createLogin(nowhere, bad, TIMEOUT_MS)).rejects.toMatchObject({ code: 'invalid_request' })
  })
})
