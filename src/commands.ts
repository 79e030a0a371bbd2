import { randomBytes } from 'node:crypto'
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import type { Client } from 'pg'
import { describeAdoption, finishAdoption } from './db/adopt-finish.js'
import { connectionConfig } from './db/connection.js'
import { createLogin } from './db/create-login.js'
import { type MigrateOptions, migrate } from './db/migrate.js'
import { underLock, whenUnlocked } from './db/migration-lock.js'
import { type Env, readEnv } from './env.js'
import { AppError } from './errors.js'
import { parseServiceKeys, setupLine } from './first-start.js'
import { createLogger } from './logger.js'
import { MIGRATIONS } from './migrations.js'
import { OPERATOR_USAGE, isOperators, runOperator } from './operator/run.js'
import { username } from './routes/schemas.js'
import { assertPasswordReadable } from './security/passwords.js'
import { type KeyRing, parseEncryptionKeys } from './security/secret-box.js'
import { type Serving, serve } from './serve.js'

const MIGRATE_WAIT_MS = 120_000
const ADOPT_WAIT_MS = 30_000
const TO_TERMINAL = { log: say, warn: (line: string) => say(`warning: ${line}`) }

const USAGE = `usage: node dist/main.js <command>
  serve                 the service, on DATABASE_URL
  migrate               bring the database to the schema of this version; safe from several replicas at once
  adopt                 the state of a database whose tables were taken over from the older application
  adopt --finish        end the time side by side: the older application must not be started again
  create-login <name>   a login for the service that can do nothing else; prints its password once
  dev                   service and private PostgreSQL in DATA_DIR (or DATABASE_URL), migrated
  dev --memory          the same API over memory; nothing is kept

operators' commands, on DATABASE_URL; --json prints one line of JSON, and what is missing is asked for on a terminal:
${OPERATOR_USAGE}
`

/** To be told what ends the process in order, from now on. */
type OnStop = (stop: () => void) => void

/** Runs a command of the process's arguments; the exit code is 0 for done, 1 for failed, 2 for wrong usage. */
export async function runCommand(args: string[], onStop: OnStop): Promise<void> {
  const [command, ...rest] = args
  if (isOperators(args)) {
    process.exitCode = await runOperator(args, process, environment)
    return
  }
  if (command === 'serve' && rest.length === 0)
    return await runService(environment(), requireUrl(environment()), onStop)
  if (command === 'migrate' && rest.length === 0) return await runMigrate(environment())
  if (command === 'adopt' && rest.length === 0) return await runAdopt(environment(), describeAdoption)
  if (command === 'adopt' && rest[0] === '--finish' && rest.length === 1) {
    const env = environment()
    return await runAdopt(env, (client) => finishAdoption(client, keyRing(env)))
  }
  if (command === 'create-login' && rest.length === 1)
    return await runCreateLogin(environment(), rest[0] ?? '')
  if (command === 'dev' && rest.length === 0) return await runDev(environment({ LOG_LEVEL: 'warn' }), onStop)
  if (command === 'dev' && rest[0] === '--memory' && rest.length === 1)
    return await runMemory(environment({ LOG_LEVEL: 'warn' }), onStop)
  process.stderr.write(USAGE)
  process.exitCode = 2
}

function environment(defaults: Record<string, string> = {}): Env {
  return readEnv(
    { ...defaults, ...process.env },
    {
      ENCRYPTION_KEY: parseEncryptionKeys,
      SERVICE_API_KEY: parseServiceKeys,
      AUTH_LOGIN: (name) => username.parse(name),
      AUTH_PASSWORD: assertPasswordReadable,
      DATABASE_URL: (url) => connectionConfig({ url, ssl: 'disable', sslCa: undefined }),
    },
  )
}

function requireUrl(env: Env): string {
  if (env.DATABASE_URL !== undefined) return env.DATABASE_URL
  throw new AppError(
    'invalid_request',
    'DATABASE_URL: is not set (the command dev starts a database of its own)',
  )
}

async function runMigrate(env: Env): Promise<void> {
  const log = createLogger(env.LOG_LEVEL)
  const stopping = new AbortController()
  for (const signal of ['SIGTERM', 'SIGINT'] as const)
    process.once(signal, () => stopping.abort(new Error(`stopped by ${signal}`)))
  await migrateTo(env, env.DATABASE_UNPOOLED_URL ?? requireUrl(env), {
    log: (message) => log.info(message),
    warn: (message) => log.warn(message),
    signal: stopping.signal,
  })
}

async function migrateTo(
  env: Env,
  url: string,
  told: Pick<MigrateOptions, 'log' | 'warn' | 'signal'>,
): Promise<void> {
  const { log } = told
  const { applied, unknown } = await migrate({
    ...told,
    pgConfig: connectionConfig({ url, ssl: env.DATABASE_SSL, sslCa: env.DATABASE_SSL_CA }),
    folder: MIGRATIONS,
    waitMs: MIGRATE_WAIT_MS,
    adoption: { ownerName: env.AUTH_LOGIN, ring: keyRing(env) },
  })
  if (unknown.length > 0) log(`the database is newer than this version: ${unknown.join(', ')}`)
  log(applied.length === 0 ? 'the database is up to date' : `applied ${applied.length} migrations`)
}

/** For an operator at a terminal: plain lines. */
async function runAdopt(env: Env, work: (client: Client) => Promise<string[]>): Promise<void> {
  const url = env.DATABASE_UNPOOLED_URL ?? requireUrl(env)
  const pgConfig = connectionConfig({ url, ssl: env.DATABASE_SSL, sslCa: env.DATABASE_SSL_CA })
  const options = { pgConfig, log: say, waitMs: ADOPT_WAIT_MS }
  const lines = await underLock(options, (lock) => whenUnlocked(lock, options, () => work(lock)))
  for (const line of lines) say(line)
}

function keyRing(env: Env): KeyRing | null {
  return env.ENCRYPTION_KEY === undefined ? null : parseEncryptionKeys(env.ENCRYPTION_KEY)
}

async function runCreateLogin(env: Env, name: string): Promise<void> {
  const url = env.DATABASE_UNPOOLED_URL ?? requireUrl(env)
  const pgConfig = connectionConfig({ url, ssl: env.DATABASE_SSL, sslCa: env.DATABASE_SSL_CA })
  const { password } = await createLogin(pgConfig, name, env.DATABASE_TIMEOUT * 1000)
  process.stdout.write(`login ${name} made; its password, shown once:\n${password}\n`)
}

/** Serves until a signal; the second signal, and the drain time, end the process at once with code 0. */
async function runService(env: Env, url: string, onStop: OnStop): Promise<void> {
  const log = createLogger(env.LOG_LEVEL)
  const serving = await serve(env, url, log, (token, port) =>
    log.warn({ setup: setupLine(token, port) }, 'no user yet: create the first owner'),
  )
  log.info({ port: serving.port }, 'listening')
  onStop(stopping(serving, env, async () => {}))
  if (await serving.ready) log.info({}, 'ready')
}

function stopping(serving: Serving, env: Env, afterStop: () => Promise<void>): () => void {
  let begun = false
  return () => {
    if (begun) process.exit(0)
    begun = true
    setTimeout(() => process.exit(0), env.DRAIN_SECONDS * 1000).unref()
    void serving
      .stop()
      .then(afterStop)
      .finally(() => process.exit(0))
  }
}

async function runDev(env: Env, onStop: OnStop): Promise<void> {
  if (env.DATABASE_URL !== undefined) {
    await migrateTo(env, env.DATABASE_UNPOOLED_URL ?? env.DATABASE_URL, TO_TERMINAL)
    return await runDevService(env, env.DATABASE_URL, onStop)
  }
  if (env.NODE_ENV === 'production') {
    throw new AppError(
      'invalid_request',
      'DATABASE_URL: is not set, and NODE_ENV=production takes no embedded database',
    )
  }
  const dataDir = resolve(env.DATA_DIR)
  mkdirSync(dataDir, { recursive: true })
  const ENCRYPTION_KEY = env.ENCRYPTION_KEY ?? keptKey(join(dataDir, 'encryption-key'))
  const { startEmbedded } = await import('./db/embedded.js')
  const database = await startEmbedded({ dataDir: join(dataDir, 'postgres'), log: say })
  try {
    await migrateTo({ ...env, ENCRYPTION_KEY }, database.url, TO_TERMINAL)
    await runDevService({ ...env, ENCRYPTION_KEY }, database.url, onStop, () => database.stop())
  } catch (error) {
    await database.stop()
    throw error
  }
}

async function runMemory(env: Env, onStop: OnStop): Promise<void> {
  const ENCRYPTION_KEY = env.ENCRYPTION_KEY ?? `memory:${randomBytes(32).toString('base64')}`
  await runDevService({ ...env, ENCRYPTION_KEY }, null, onStop)
}

async function runDevService(
  env: Env,
  url: string | null,
  onStop: OnStop,
  afterStop: () => Promise<void> = async () => {},
): Promise<void> {
  const log = createLogger(env.LOG_LEVEL)
  let setup = ''
  const serving = await serve(env, url, log, (token, port) => (setup = setupLine(token, port)))
  onStop(stopping(serving, env, afterStop))
  await serving.ready
  const base = `http://localhost:${serving.port}`
  const signIn =
    setup === '' ? 'sign in:' : 'create the first owner (the token is good for an hour), then sign in:'
  say(`
The service listens on ${base}   (${url === null ? 'in memory: nothing is kept' : 'PostgreSQL'})
  ${signIn}
${setup === '' ? '' : `    ${setup}\n`}    curl -s ${base}/v1/auth/login -H 'content-type: application/json' -d '{"username":"me","password":"..."}'
  look around: ${base}/openapi.json  ${base}/health
  stop with Ctrl-C
`)
}

/** Made once and kept beside the data it protects: fit for development, not for production. */
function keptKey(file: string): string {
  if (!existsSync(file)) writeFileSync(file, `dev:${randomBytes(32).toString('base64')}\n`, { mode: 0o600 })
  return readFileSync(file, 'utf8').trim()
}

function say(line: string): void {
  process.stdout.write(`${line}\n`)
}
