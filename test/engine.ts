import { randomBytes } from 'node:crypto'
import pg from 'pg'
import { connectionConfig } from '../src/db/connection.js'
import type { GuardedPool } from '../src/db/guarded-pool.js'
import { MemorySource } from '../src/db/memory.js'
import { budgetsFor } from '../src/db/pool.js'
import { type PostgresSettings, createPostgresSources } from '../src/db/postgres-source.js'
import type { ConnectionSource } from '../src/db/source.js'
import type { BreakerOptions } from '../src/resilience/circuit-breaker.js'

/** Which database this run is on. */
export const engine = process.env['TEST_ENGINE'] === 'memory' ? 'memory' : 'postgres'

export interface TestDatabase {
  source: ConnectionSource
  /** A superuser's URL of this database; null in memory. */
  url: string | null
  /** All rows of a statement, past every policy: as the superuser. */
  read(text: string): Promise<unknown[]>
  drop(): Promise<void>
}

/** TEST_LANES=0: everything through the pool. In a pool of one no lane may hide who holds its only connection. */
export const LANES = Number(
  process.env['TEST_LANES'] ?? (process.env['TEST_POOL_SIZE'] === undefined ? 2 : 0),
)

/** An empty, migrated database of one's own on the engine of this run. */
export async function createTestDatabase(settings: Partial<PostgresSettings> = {}): Promise<TestDatabase> {
  if (engine === 'memory') {
    const source = new MemorySource()
    const read = async (text: string): Promise<unknown[]> => {
      const connection = await source.connect()
      try {
        return (await connection.execute([{ text, values: [], name: undefined }])).rows
      } finally {
        connection.release()
      }
    }
    return { source, url: null, read, drop: async () => {} }
  }
  const { url, drop } = await createPostgresDatabase()
  const source = guardedPool(await serviceUrl(url), { lanes: LANES, ...settings })
  return {
    source,
    url,
    async read(text) {
      const client = new pg.Client({ connectionString: url })
      await client.connect()
      try {
        return (await client.query<object>(text)).rows
      } finally {
        await client.end()
      }
    },
    async drop() {
      await source.end(1000)
      await drop()
    },
  }
}

/** A pool as the service has it, with shorter limits and without lanes; `settings` overrides any. */
export function guardedPool(url: string, settings: Partial<PostgresSettings> = {}): GuardedPool {
  return guardedPools(url, settings).requests
}

/** The same with the pool for streams beside it. */
export function guardedPools(
  url: string,
  settings: Partial<PostgresSettings> = {},
): { requests: GuardedPool; streams: GuardedPool } {
  return createPostgresSources({
    connection: connectionConfig({ url, ssl: 'disable', sslCa: undefined }),
    // TEST_POOL_SIZE=1: whoever waits for a second connection while holding the first waits for ever.
    size: Number(process.env['TEST_POOL_SIZE'] ?? 5),
    lanes: 0,
    prepare: settings.pooled !== true,
    streams: { size: 2, budgets: budgetsFor(10_000) },
    budgets: budgetsFor(10_000),
    pooled: false,
    applicationName: 'gary-test',
    lifetimeMs: 60_000,
    slowMs: 5000,
    // Errors that a test provokes on purpose must not close the way for the statements after them.
    breaker: { ...BREAKER, minCalls: 1_000_000 },
    reconnectCapMs: 200,
    misconfiguredCapMs: 1000,
    onIdleError: () => {},
    onTransition: () => {},
    onAttemptFailed: () => {},
    ...settings,
  })
}

/** The breaker as the service has it by default, with short waits. */
export const BREAKER: BreakerOptions = {
  failureRate: 0.5,
  slowRate: 0.8,
  minCalls: 10,
  windowMs: 10_000,
  buckets: 10,
  probes: 3,
  probeDeadlineMs: 4000,
  waitBaseMs: 200,
  waitCapMs: 1000,
}

/** A copy of the migrated template on the run's server. */
export async function createPostgresDatabase(): Promise<{ url: string; drop: () => Promise<void> }> {
  const name = `gary_test_${randomBytes(6).toString('hex')}`
  await onServer(`create database ${name} template ${process.env['TEST_TEMPLATE'] ?? ''}`)
  const url = new URL(process.env['TEST_POSTGRES_URL'] ?? '')
  url.pathname = `/${name}`
  return { url: url.href, drop: () => onServer(`drop database if exists ${name} with (force)`) }
}

/** One statement as the superuser, outside any database of a test. */
export async function onServer(text: string): Promise<void> {
  const client = new pg.Client({ connectionString: process.env['TEST_POSTGRES_URL'] })
  await client.connect()
  try {
    // The template is copied by one test at a time: CREATE DATABASE refuses a template in use.
    await client.query("select pg_advisory_lock(hashtext('gary-test'))")
    await client.query(text)
  } finally {
    await client.end()
  }
}

/** TEST_LOGIN=dedicated: the suite connects with a login of `create-login`, not as the superuser. */
async function serviceUrl(url: string): Promise<string> {
  if (process.env['TEST_LOGIN'] !== 'dedicated') return url
  const { createLogin } = await import('../src/db/create-login.js')
  const name = `svc_${randomBytes(6).toString('hex')}`
  const { password } = await createLogin({ connectionString: url }, name, 10_000)
  const own = new URL(url)
  own.username = name
  own.password = password
  return own.href
}
