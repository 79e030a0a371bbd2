import { fileURLToPath } from 'node:url'
import { type Compilable, CompiledQuery } from 'kysely'
import pg from 'pg'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { JOBS, SYSTEM, asApp, asCaller } from '../../src/db/as-caller.js'
import { connectionConfig } from '../../src/db/connection.js'
import { createLogin } from '../../src/db/create-login.js'
import { type Db, createDatabase } from '../../src/db/database.js'
import { migrate } from '../../src/db/migrate.js'
import { safetyFaults } from '../../src/db/safety.js'
import { guardedPool } from '../engine.js'
import { SERVERS, startServer } from './own-server.js'

const MIGRATIONS = fileURLToPath(new URL('../../prisma/migrations', import.meta.url))

function raw<R = Record<string, unknown>>(text: string): Compilable<R> {
  return { compile: () => CompiledQuery.raw(text) as CompiledQuery<R> }
}

describe.each(SERVERS)('an owner login that is no superuser, on %s', (native) => {
  let server: Awaited<ReturnType<typeof startServer>>
  let superuser: pg.Client

  beforeAll(async () => {
    server = await startServer(native)
    superuser = new pg.Client({ connectionString: server.url })
    await superuser.connect()
    await superuser.query('create role deployer login createrole nosuperuser nocreatedb nobypassrls')
    await superuser.query('create database first owner deployer')
    await superuser.query('create database second owner deployer')
  })
  afterAll(async () => {
    await superuser?.end()
    await server?.stop()
  })

  function urlOf(database: string, login = 'deployer'): string {
    const url = new URL(server.url)
    url.pathname = `/${database}`
    url.username = login
    return url.href
  }

  async function migrated(database: string): Promise<string[]> {
    const pgConfig = connectionConfig({ url: urlOf(database), ssl: 'disable', sslCa: undefined })
    return (await migrate({ pgConfig, folder: MIGRATIONS, log: () => {}, waitMs: 5000 })).applied
  }

  async function serve(url: string, pooled: boolean, work: (db: Db) => Promise<void>): Promise<void> {
    const pool = guardedPool(url, { pooled })
    try {
      await work(createDatabase(pool))
    } finally {
      await pool.end(1000)
    }
  }

  it('migrates one database, and a second one whose roles are there already', async () => {
    const first = await migrated('first')
    expect(first.length).toBeGreaterThanOrEqual(2)
    expect(await migrated('second')).toEqual(first)
    expect(await migrated('first')).toEqual([])
  })

  it.each(['first', 'second'])('serves, and without a fault: %s', async (database) => {
    await serve(urlOf(database), false, async (db) => {
      expect(await asApp(db, safetyFaults())).toEqual([])
      expect(await asApp(db, raw('select current_user as name'))).toEqual([{ name: 'gary_app' }])
      expect(await asCaller(db, SYSTEM, raw('select count(*)::int as n from auth_users'))).toEqual([{ n: 0 }])
      expect(await asCaller(db, JOBS, raw('select gary.keep_audit_partitions(4) as made'))).toEqual([
        { made: 1 },
      ])
      const analyst = { ...SYSTEM, databaseRole: 'gary_analyst' as const }
      expect(await asCaller(db, analyst, raw('select user_id from reports.logins'))).toEqual([])
      await expect(asApp(db, raw('select 1 from audit_events'))).rejects.toMatchObject({ code: 'forbidden' })
    })
  })

  it('lets later migrations alter what the first ones made', async () => {
    const client = new pg.Client({ connectionString: urlOf('first') })
    await client.connect()
    try {
      await client.query(
        'alter table auth_users add column later int; alter table auth_users drop column later',
      )
      await client.query(
        'alter table audit_events add column later int; alter table audit_events drop column later',
      )
      await client.query('create or replace view reports.later with (security_barrier) as select 1 as one')
      await client.query('alter view reports.later owner to gary_reporting; drop view reports.later')
      await client.query(
        'create function gary.later() returns int language sql begin atomic select 1; end; drop function gary.later()',
      )
    } finally {
      await client.end()
    }
  })

  it('makes a login for the service, which serves behind a pooler', async () => {
    await createLogin({ connectionString: urlOf('first') }, 'service', 30_000)
    await serve(urlOf('first', 'service'), true, async (db) => {
      expect(await asApp(db, safetyFaults())).toEqual([])
      expect(await asCaller(db, SYSTEM, raw('select current_user as name'))).toEqual([
        { name: 'gary_caller' },
      ])
    })
    await createLogin({ connectionString: urlOf('first') }, 'service', 30_000)
  })
})
