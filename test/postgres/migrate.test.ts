import { execFile, spawn } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { createServer, connect as dial, type AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { inspect } from 'node:util'
import pg from 'pg'
import { parseIntoClientConfig } from 'pg-connection-string'
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import { type MigrateOptions, type MigrateResult, migrate, pendingMigrations } from '../../src/db/migrate.js'
import { MigrationError } from '../../src/db/migration-error.js'

const serverUrl = process.env['TEST_POSTGRES_URL'] ?? '' // set by test/postgres-server.ts
const root = resolve(import.meta.dirname, '../..')
const USERS = '20260101000000_tables_users'
const PETS = '20260101000001_tables_pets'

// The service's migrate in a process of its own, so that it can be killed; vite reads the TypeScript.
const childScript = `
import { createServer } from 'vite'
const server = { middlewareMode: true, ws: false, watch: null }
const vite = await createServer({ configFile: false, logLevel: 'error', appType: 'custom', server })
const { migrate } = await vite.ssrLoadModule('/src/db/migrate.ts')
const result = await migrate({ ...JSON.parse(process.argv[1]), log() {} })
console.log(JSON.stringify(result))
process.exit()
`

let admin: pg.Client
let url: URL
let database: string
let project: string
let folder: string
let logged: string[]

function options(more: Partial<MigrateOptions> = {}): MigrateOptions {
  const pgConfig = parseIntoClientConfig(url.href)
  return { pgConfig, folder, waitMs: 0, log: (line) => logged.push(line), ...more }
}

async function addMigration(name: string, sql: string): Promise<void> {
  await mkdir(join(folder, name), { recursive: true })
  await writeFile(join(folder, name, 'migration.sql'), sql)
}

async function query<Row extends pg.QueryResultRow>(sql: string, on = url.href): Promise<Row[]> {
  const client = new pg.Client(parseIntoClientConfig(on))
  await client.connect()
  try {
    return (await client.query<Row>(sql)).rows
  } finally {
    await client.end()
  }
}

function history(on?: string): Promise<{ migration_name: string; checksum: string; state: string }[]> {
  return query(
    `SELECT migration_name, checksum, CASE WHEN rolled_back_at IS NOT NULL THEN 'rolled back'
       WHEN finished_at IS NULL THEN 'unfinished' ELSE 'applied' END AS state
     FROM _prisma_migrations ORDER BY started_at, migration_name`,
    on,
  )
}

async function states(): Promise<string[]> {
  return (await history()).map((row) => `${row.migration_name} ${row.state}`)
}

async function tables(): Promise<string[]> {
  const rows = await query<{ name: string }>(
    `SELECT relname AS name FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
     AND relname <> '_prisma_migrations' ORDER BY 1`,
  )
  return rows.map((row) => row.name)
}

function startChild() {
  const { pgConfig, waitMs } = options()
  const argument = JSON.stringify({ pgConfig, folder, waitMs })
  const args = ['--input-type=module', '-e', childScript, argument]
  return spawn(process.execPath, args, { cwd: root, stdio: ['ignore', 'pipe', 'inherit'] })
}

/** Resolves once the child has been killed in the middle of a statement that matches. */
async function killDuring(child: ReturnType<typeof startChild>, statement: string): Promise<number> {
  for (;;) {
    const [row] = await query<{ pid: number }>(
      `SELECT pid FROM pg_stat_activity WHERE datname = '${database}' AND state = 'active'
       AND pid <> pg_backend_pid() AND query LIKE '%${statement}%'`,
    )
    if (row) {
      child.kill('SIGKILL')
      await once(child, 'exit')
      return row.pid
    }
    await sleep(20)
  }
}

function prisma(args: string[], on = url.href): Promise<{ code: number; output: string }> {
  const env: NodeJS.ProcessEnv = { ...process.env, DATABASE_UNPOOLED_URL: on, NO_COLOR: '1' }
  env['CHECKPOINT_DISABLE'] = '1' // no look for newer versions
  delete env['PRISMA_SCHEMA_ENGINE_BINARY'] // prisma.config.ts has to set it
  const cli = join(root, 'node_modules/prisma/build/index.js')
  return new Promise((done) => {
    execFile(process.execPath, [cli, ...args], { cwd: project, env }, (error, stdout, stderr) =>
      done({ code: typeof error?.code === 'number' ? error.code : error ? -1 : 0, output: stdout + stderr }),
    )
  })
}

describe('migrations on a real server', { timeout: 60_000 }, () => {
  beforeAll(async () => {
    admin = new pg.Client(parseIntoClientConfig(serverUrl))
    await admin.connect()
  })

  afterAll(() => admin?.end())

  beforeEach(async () => {
    logged = []
    database = `migrate_${randomUUID().replaceAll('-', '')}`
    await admin.query(`CREATE DATABASE ${database}`)
    url = new URL(serverUrl)
    url.pathname = `/${database}`
    project = await mkdtemp(join(tmpdir(), 'migrate-'))
    folder = join(project, 'migrations')
    await addMigration(USERS, 'CREATE TABLE users (id integer PRIMARY KEY);\n')
    await addMigration(PETS, 'CREATE TABLE pets (id integer PRIMARY KEY);\n')
    await writeFile(join(folder, 'migration_lock.toml'), 'provider = "postgresql"\n')
    const config = `import config from ${JSON.stringify(join(root, 'prisma.config.ts'))}
      export default { ...config, schema: 'schema.prisma', migrations: { path: 'migrations' } }`
    await writeFile(join(project, 'prisma.config.ts'), config)
    const models = 'model users {\n id Int @id\n}\nmodel pets {\n id Int @id\n}\n'
    await writeFile(join(project, 'schema.prisma'), `datasource db {\n provider = "postgresql"\n}\n${models}`)
    return async () => {
      await admin.query(`DROP DATABASE IF EXISTS ${database} WITH (FORCE)`)
      await rm(project, { recursive: true })
    }
  })

  it('applies everything to an empty database, and nothing the second time', async () => {
    expect(await migrate(options())).toEqual({ applied: [USERS, PETS], unknown: [] })
    expect(await tables()).toEqual(['pets', 'users'])
    expect(await migrate(options())).toEqual({ applied: [], unknown: [] })
    expect(await states()).toEqual([`${USERS} applied`, `${PETS} applied`])
    expect(logged).toEqual([`applying migration ${USERS}`, `applying migration ${PETS}`])
  })

  it('tells which migrations a database lacks', async () => {
    const client = new pg.Client(parseIntoClientConfig(url.href))
    await client.connect()
    expect(await pendingMigrations(client, folder)).toEqual([USERS, PETS])
    await migrate(options())
    expect(await pendingMigrations(client, folder)).toEqual([])
    await addMigration('20260101000002_more', 'SELECT 1')
    expect(await pendingMigrations(client, folder)).toEqual(['20260101000002_more'])
    await client.end()
  })

  it('names migrations of a newer version and works on', async () => {
    await migrate(options())
    await rm(join(folder, PETS), { recursive: true })
    expect(await migrate(options())).toEqual({ applied: [], unknown: [PETS] })
  })

  it('applies each migration once when four processes and two calls start together', async () => {
    await addMigration('20260101000002_slow', 'CREATE TABLE slow (id integer); SELECT pg_sleep(0.5);')
    const children = [1, 2, 3, 4].map(async () => {
      const child = startChild()
      const chunks: Buffer[] = await child.stdout.toArray()
      return JSON.parse(Buffer.concat(chunks).toString()) as MigrateResult
    })
    const results = await Promise.all([...children, migrate(options()), migrate(options())])
    const applied = results.flatMap((result) => result.applied)
    expect(applied.sort()).toEqual([USERS, PETS, '20260101000002_slow'])
    expect(await states()).toEqual([`${USERS} applied`, `${PETS} applied`, '20260101000002_slow applied'])
  })

  it('runs functions and DO blocks with semicolons in their bodies, and a file that ends in a comment', async () => {
    await addMigration(
      '20260101000002_server_functions',
      `CREATE FUNCTION twice(n integer) RETURNS integer LANGUAGE plpgsql AS $body$
       BEGIN n := n * 2; RETURN n; END; $body$;
       DO $$ BEGIN INSERT INTO users VALUES (twice(21)); INSERT INTO pets VALUES (1); END $$; -- 'end`,
    )
    await migrate(options())
    expect(await query('SELECT id FROM users')).toEqual([{ id: 42 }])
  })

  it('lets no setting of one file reach the next one or the bookkeeping', async () => {
    const role = `${database}_role`
    // Long enough for the rest of its own file on a busy machine, and too short for the next one.
    const settings = "SET search_path = ''; SET TIME ZONE 'Asia/Tokyo'; SET statement_timeout = 250"
    await addMigration('20260101000002_settings', `CREATE ROLE ${role}; SET ROLE ${role}; ${settings};`)
    await addMigration(
      '20260101000003_next',
      'CREATE TABLE next AS SELECT current_user AS name FROM pg_sleep(0.5);',
    )
    try {
      expect((await migrate(options())).applied).toHaveLength(4)
      expect(await query('SELECT name = session_user AS same FROM next')).toEqual([{ same: true }])
    } finally {
      await admin.query(`DROP ROLE ${role}`)
    }
  })

  it('runs a file whose only statement refuses a transaction', async () => {
    await addMigration('20260101000002_index', 'CREATE INDEX CONCURRENTLY pets_id ON pets (id);')
    expect((await migrate(options())).applied).toContain('20260101000002_index')
    expect((await states()).at(-1)).toBe('20260101000002_index applied')
  })

  it('leaves nothing of a failing migration, names it and the reason, and succeeds once it is mended', async () => {
    await addMigration(PETS, 'CREATE TABLE pets (id integer);\nINSERT INTO pets\nVALUES (1), (nope);\n')
    const error: unknown = await migrate(options()).catch((error: unknown) => error)
    expect(error).toBeInstanceOf(MigrationError)
    expect(error).toMatchObject({
      code: 'failed',
      message: `Migration ${PETS} failed: ERROR: column "nope" does not exist (SQLSTATE 42703), line 3`,
    })
    expect(await tables()).toEqual(['users'])
    expect(await states()).toEqual([`${USERS} applied`, `${PETS} rolled back`])

    await addMigration(PETS, 'CREATE TABLE pets (id integer PRIMARY KEY);\n')
    expect(await migrate(options())).toEqual({ applied: [PETS], unknown: [] })
    expect((await prisma(['migrate', 'status'])).output).toContain('Database schema is up to date')
  })

  it('refuses a file that leaves its transaction open', async () => {
    await addMigration(PETS, 'BEGIN; CREATE TABLE pets (id integer);')
    await expect(migrate(options())).rejects.toThrow(`Migration ${PETS} failed: ERROR: The file leaves`)
    expect(await tables()).toEqual(['users'])
  })

  it('refuses a file that was changed after it was applied', async () => {
    await migrate(options())
    await addMigration(USERS, 'CREATE TABLE users (id bigint);')
    await addMigration('20260101000002_more', 'CREATE TABLE more (id integer);')
    await expect(migrate(options())).rejects.toMatchObject({
      code: 'edited',
      message: expect.stringContaining(USERS),
    })
    expect(await tables()).toEqual(['pets', 'users'])
  })

  it('finishes after a kill, waiting for the statement that the server still runs', async () => {
    await addMigration(PETS, 'CREATE TABLE pets (id integer PRIMARY KEY); SELECT pg_sleep(2);')
    await killDuring(startChild(), 'pg_sleep')
    expect(await states()).toEqual([`${USERS} applied`, `${PETS} unfinished`])
    expect(await migrate(options())).toEqual({ applied: [], unknown: [] })
    expect(logged).toContain('waiting for a migration that runs elsewhere')
    expect(await tables()).toEqual(['pets', 'users'])
    expect(await states()).toEqual([`${USERS} applied`, `${PETS} applied`])
  })

  it('runs a migration again that died with its process and its server session', async () => {
    await addMigration(PETS, 'CREATE TABLE pets (id integer PRIMARY KEY); SELECT pg_sleep(2);')
    const backend = await killDuring(startChild(), 'pg_sleep')
    await admin.query('SELECT pg_terminate_backend($1)', [backend])
    expect(await migrate(options())).toEqual({ applied: [PETS], unknown: [] })
    expect(await states()).toEqual([`${USERS} applied`, `${PETS} rolled back`, `${PETS} applied`])
  })

  it('stops when it loses the connection that holds its lock', async () => {
    await addMigration(PETS, 'SELECT pg_sleep(2); CREATE TABLE pets (id integer PRIMARY KEY);')
    const running = migrate(options()).catch((error: unknown) => error)
    while (!logged.includes(`applying migration ${PETS}`)) await sleep(20)
    await admin.query(
      `SELECT pg_terminate_backend(pid) FROM pg_locks JOIN pg_database d ON d.oid = database
       WHERE locktype = 'advisory' AND objid = 1734439545 AND datname = '${database}'`,
    )
    expect(await running).toMatchObject({ code: 'failed', message: 'The connection with the lock was lost.' })
    expect((await migrate(options())).unknown).toEqual([])
    expect(await tables()).toEqual(['pets', 'users'])
  })

  it("outlasts a holder of the engine's lock for longer than the engine waits", async () => {
    const locked = 'SELECT pg_advisory_lock(72707369)'
    const [first, second] = [1, 2].map(() => new pg.Client(parseIntoClientConfig(url.href)))
    await Promise.all([first?.connect(), second?.connect()])
    await first?.query(locked)
    const running = migrate(options())
    while (logged.length === 0) await sleep(20)
    await sleep(200)
    const behind = second?.query(locked) // gets it between the service's two uses of it
    await sleep(200)
    await first?.end()
    await behind
    await sleep(11_000)
    await second?.end()
    expect(await running).toEqual({ applied: [USERS, PETS], unknown: [] })
    expect(logged.filter((line) => line.startsWith('waiting'))).toHaveLength(2)
  })

  it('waits for a database that is not there yet', async () => {
    const forwarder = createServer((socket) => {
      const onward = dial(Number(url.port || 5432), url.hostname)
      socket.pipe(onward).pipe(socket)
      for (const end of [socket, onward]) end.on('error', () => end.destroy())
    })
    const port = await freePort()
    const { pgConfig } = options()
    const running = migrate(options({ pgConfig: { ...pgConfig, host: '127.0.0.1', port }, waitMs: 30_000 }))
    await sleep(1_000)
    forwarder.listen(port, '127.0.0.1')
    expect((await running).applied).toEqual([USERS, PETS])
    expect(logged[0]).toContain('waiting for the database')
    forwarder.close()
  })

  it('gives up waiting after its time, and at once when aborted', async () => {
    const pgConfig = { ...options().pgConfig, host: '127.0.0.1', port: await freePort() }
    const startedAt = Date.now()
    await expect(migrate(options({ pgConfig, waitMs: 1_000 }))).rejects.toMatchObject({ code: 'unreachable' })
    expect(Date.now() - startedAt).toBeLessThan(2_000)

    const signal = AbortSignal.timeout(300)
    const aborted: unknown = await migrate(options({ pgConfig, waitMs: 30_000, signal })).catch(
      (e: unknown) => e,
    )
    expect(aborted).toBe(signal.reason)
    expect(Date.now() - startedAt).toBeLessThan(4_000)
  })

  it('ends at once when aborted behind a lock or within a migration', async () => {
    await addMigration(PETS, 'SELECT pg_sleep(2.5); CREATE TABLE pets (id integer PRIMARY KEY);')
    const stop = new AbortController()
    const first = migrate(options({ signal: stop.signal })).catch((error: unknown) => error)
    while (!logged.includes(`applying migration ${PETS}`)) await sleep(20)
    const signal = AbortSignal.timeout(300)
    expect(await migrate(options({ signal })).catch((error: unknown) => error)).toBe(signal.reason)

    const abortedAt = Date.now()
    stop.abort(new Error('stopping'))
    expect(await first).toMatchObject({ message: 'stopping' })
    expect(Date.now() - abortedAt).toBeLessThan(1_500)
    await migrate(options())
    expect(await tables()).toEqual(['pets', 'users'])
  })

  it('fails at once for a missing database and for a wrong password, which it never shows', async ({
    skip,
  }) => {
    const { pgConfig } = options()
    const wrong = { ...pgConfig, password: 'wrong-and-secret' }
    const missing = options({ pgConfig: { ...pgConfig, database: 'nowhere' }, waitMs: 30_000 })
    const startedAt = Date.now()
    await expect(migrate(missing)).rejects.toMatchObject({ code: 'refused', message: /database "nowhere"/ })
    const error: unknown = await migrate(options({ pgConfig: wrong, waitMs: 30_000 })).catch(
      (e: unknown) => e,
    )
    expect(Date.now() - startedAt).toBeLessThan(5_000)
    if (!(error instanceof Error)) skip('this server trusts every login')
    expect(error).toMatchObject({ code: 'refused', message: /password or user name was refused/ })
    expect(inspect(error, { depth: 9 })).not.toContain(wrong.password)
  })

  it('keeps the history as the CLI does, and the CLI agrees', async () => {
    const other = `${database}_cli`
    const otherUrl = new URL(url)
    otherUrl.pathname = `/${other}`
    try {
      // The CLI makes the missing database, too.
      const deployed = await prisma(['migrate', 'deploy'], otherUrl.href)
      expect(deployed).toMatchObject({ code: 0, output: expect.stringContaining('successfully applied') })
      await migrate(options())
      expect(await history()).toEqual(await history(otherUrl.href))
      const status = await prisma(['migrate', 'status'])
      expect(status).toMatchObject({ code: 0, output: expect.stringContaining('schema is up to date') })
      expect((await migrate(options({ pgConfig: parseIntoClientConfig(otherUrl.href) }))).applied).toEqual([])
    } finally {
      await admin.query(`DROP DATABASE IF EXISTS ${other} WITH (FORCE)`)
    }
  })

  it('finds drift between schema and migrations, and leaves no shadow database', async () => {
    const diff = [
      'migrate',
      'diff',
      '--from-migrations',
      'migrations',
      '--to-schema',
      'schema.prisma',
      '--exit-code',
    ]
    expect(await prisma(diff)).toMatchObject({ code: 0, output: expect.stringContaining('No difference') })
    await addMigration(
      PETS,
      `CREATE TABLE pets (id integer PRIMARY KEY CHECK (id > 0), name text);
       ALTER TABLE pets ADD CONSTRAINT pets_user FOREIGN KEY (id) REFERENCES users ON DELETE CASCADE;`,
    )
    expect(await prisma(diff)).toMatchObject({
      code: 2,
      output: expect.stringContaining('Removed column `name`'),
    })
    expect(await tables()).toEqual([])
    const shadows = await admin.query(
      "SELECT datname FROM pg_database WHERE datname LIKE 'prisma_migrate_shadow%'",
    )
    expect(shadows.rows).toEqual([])
  })

  it('makes the next migration with `migrate dev`', async () => {
    await migrate(options())
    const models = 'model users {\n id Int @id\n name String?\n}\nmodel pets {\n id Int @id\n}\n'
    await writeFile(join(project, 'schema.prisma'), `datasource db {\n provider = "postgresql"\n}\n${models}`)
    expect(await prisma(['migrate', 'dev', '--name', 'tables_names'])).toMatchObject({ code: 0 })
    expect((await states()).at(-1)).toMatch(/^\d+_tables_names applied$/)
    expect(await migrate(options())).toEqual({ applied: [], unknown: [] })
  })
})

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  server.close()
  await once(server, 'close')
  return port
}
