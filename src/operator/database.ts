import { connectionConfig } from '../db/connection.js'
import { type Db, createDatabase } from '../db/database.js'
import { createPostgresSources } from '../db/postgres-source.js'
import { assertSafe } from '../db/safety.js'
import type { Env } from '../env.js'
import { AppError } from '../errors.js'
import { limitsOf, streamBudgets } from '../limits.js'

const LIFETIME_MS = 30 * 60_000
const END_MS = 1000

/**
 * The database as the service has it, by the same roles and limits, on one connection for as long as `work` takes.
 * Rejects as the service would refuse to start: unreachable, not migrated, not safe.
 */
export async function withDatabase<T>(env: Env, work: (db: Db) => Promise<T>): Promise<T> {
  const { DATABASE_URL: url } = env
  if (url === undefined) throw new AppError('invalid_request', 'DATABASE_URL: is not set')
  const limits = limitsOf(env)
  const { requests, streams } = createPostgresSources({
    ...limits,
    connection: connectionConfig({ url, ssl: env.DATABASE_SSL, sslCa: env.DATABASE_SSL_CA }),
    size: 1,
    streams: { size: 1, budgets: streamBudgets(limits.budgets) },
    lanes: 0,
    prepare: env.DATABASE_PREPARE && !env.DATABASE_POOLED,
    pooled: env.DATABASE_POOLED,
    applicationName: 'gary-zero-operator',
    lifetimeMs: LIFETIME_MS,
    onIdleError: () => {},
    onTransition: () => {},
    onAttemptFailed: () => {},
  })
  try {
    const db = createDatabase(requests)
    await assertSafe(db)
    return await work(db)
  } finally {
    await Promise.all([requests.end(END_MS), streams.end(END_MS)])
  }
}
