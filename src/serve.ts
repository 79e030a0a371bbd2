import type { Server } from 'node:http'
import type { Logger } from 'pino'
import { connectionConfig } from './db/connection.js'
import { GuardedPool } from './db/guarded-pool.js'
import { type Budgets, budgetsFor, createPool } from './db/pool.js'
import type { Env } from './env.js'
import { AppError } from './errors.js'
import { closeServer, createService, listen } from './service.js'

/** Reports and exports may run this long, on connections of their own. */
const STREAM_MS = 600_000
const STREAM_CONNECTIONS = 2
const LIFETIME_MS = 30 * 60_000

export interface Serving {
  port: number
  /** Settles when the service is ready; rejects when it must not serve. */
  ready: Promise<void>
  /** Drains and ends within DRAIN_SECONDS, whatever the database does. */
  stop(): Promise<void>
}

/** The service over PostgreSQL at `url`, or in memory when that is null. */
export async function serve(
  env: Env,
  url: string | null,
  log: Logger,
  onSetupToken: (token: string, port: number) => void,
): Promise<Serving> {
  const main =
    url === null
      ? new (await import('./db/memory.js')).MemorySource()
      : postgres(env, url, log, env.DATABASE_POOL_SIZE, budgetsFor(env.DATABASE_TIMEOUT * 1000))
  const streams = url === null ? main : postgres(env, url, log, STREAM_CONNECTIONS, streamBudgets(env))
  let port = env.PORT
  const service = createService({
    env,
    source: main,
    streamSource: streams,
    log,
    checkRoles: url !== null,
    onSetupToken: (token) => onSetupToken(token, port),
  })
  const server = await listenOn(service.app.fetch, env)
  port = server.port
  const stopping = new AbortController()
  const ready = service.becomeReady(stopping.signal)

  return {
    port,
    ready,
    async stop() {
      stopping.abort()
      service.drain()
      const drainMs = env.DRAIN_SECONDS * 1000
      const started = performance.now()
      await closeServer(server.server, drainMs * 0.8)
      await service.end(Math.max(0, drainMs * 0.95 - (performance.now() - started)))
    },
  }
}

function postgres(env: Env, url: string, log: Logger, size: number, budgets: Budgets): GuardedPool {
  const pool = createPool({
    connection: connectionConfig({ url, ssl: env.DATABASE_SSL, sslCa: env.DATABASE_SSL_CA }),
    size,
    budgets,
    pooled: env.DATABASE_POOLED,
    applicationName: 'gary-zero-service',
    lifetimeMs: LIFETIME_MS,
    onIdleError: (error) => log.warn({ err: error }, 'a database connection was lost'),
  })
  return new GuardedPool(pool, size)
}

function streamBudgets(env: Env): Budgets {
  const budgets = budgetsFor(env.DATABASE_TIMEOUT * 1000)
  return { ...budgets, statementMs: STREAM_MS, queryMs: STREAM_MS + 1000, idleInTransactionMs: STREAM_MS }
}

type Listening = { server: Server; port: number }

/** A machine without IPv6 has no `::`; the default then falls back to IPv4. */
async function listenOn(fetch: Parameters<typeof listen>[0], env: Env): Promise<Listening> {
  try {
    return await listen(fetch, env.HOST, env.PORT)
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if (env.HOST === '::' && (code === 'EAFNOSUPPORT' || code === 'EADDRNOTAVAIL'))
      return await listen(fetch, '0.0.0.0', env.PORT)
    if (code === 'EADDRINUSE')
      throw new AppError('invalid_request', `PORT: ${env.PORT} is taken by another process`)
    if (code === 'EACCES')
      throw new AppError('invalid_request', `PORT: this user may not listen on ${env.PORT}`)
    throw error
  }
}
