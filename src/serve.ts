import type { RequestListener, Server } from 'node:http'
import type { Logger } from 'pino'
import { connectionConfig } from './db/connection.js'
import { explainConnectFailure } from './db/pg-errors.js'
import { createPostgresSources } from './db/postgres-source.js'
import type { ConnectionSource } from './db/source.js'
import type { Env } from './env.js'
import { AppError } from './errors.js'
import { type Limits, limitsOf, streamBudgets } from './limits.js'
import type { BreakerEvent } from './resilience/circuit-breaker.js'
import { closeServer, createService, listen } from './service.js'

/** Reports and exports have connections of their own. */
const STREAM_CONNECTIONS = 2
const LIFETIME_MS = 30 * 60_000
/** While the database stays lost, one attempt in so many is logged: about one line a minute. */
const LOGGED_ATTEMPTS = 200

export interface Serving {
  port: number
  /** True when the service is ready, false when it was stopped before; rejects when it must not serve. */
  ready: Promise<boolean>
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
  const limits = limitsOf(env)
  const { main, streams } = url === null ? await memorySources() : postgresSources(env, limits, url, log)
  let port = env.PORT
  const service = createService({
    env,
    source: main,
    streamSource: streams,
    requestMs: limits.requestMs,
    log,
    checkRoles: url !== null,
    onSetupToken: (token) => onSetupToken(token, port),
  })
  const server = await listenOn(service.createListener(), env)
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

interface Sources {
  main: ConnectionSource
  streams: ConnectionSource
}

async function memorySources(): Promise<Sources> {
  const { MemorySource } = await import('./db/memory.js')
  const main = new MemorySource()
  return { main, streams: main }
}

function postgresSources(env: Env, limits: Limits, url: string, log: Logger): Sources {
  // A pooler would hand each flight to another connection; the pool itself keeps one at least.
  const lanes = env.DATABASE_POOLED ? 0 : Math.min(env.DATABASE_LANES, env.DATABASE_POOL_SIZE - 1)
  const { requests, streams } = createPostgresSources({
    ...limits,
    connection: connectionConfig({ url, ssl: env.DATABASE_SSL, sslCa: env.DATABASE_SSL_CA }),
    size: env.DATABASE_POOL_SIZE - lanes,
    lanes,
    prepare: env.DATABASE_PREPARE && !env.DATABASE_POOLED,
    streams: { size: STREAM_CONNECTIONS, budgets: streamBudgets(limits.budgets) },
    pooled: env.DATABASE_POOLED,
    applicationName: 'gary-zero-service',
    lifetimeMs: LIFETIME_MS,
    onIdleError: (error) =>
      log.warn({ reason: explainConnectFailure(error) }, 'a database connection was lost'),
    onTransition: (event) => logTransition(log, event),
    onAttemptFailed: (error, attempt) => {
      if (attempt % LOGGED_ATTEMPTS === 1)
        log.warn({ reason: explainConnectFailure(error), attempt }, 'waiting for the database')
    },
  })
  return { main: requests, streams }
}

function logTransition(log: Logger, { from, to, reason }: BreakerEvent): void {
  log[to === 'closed' ? 'info' : 'warn']({ from, to, reason }, 'circuit')
}

type Listening = { server: Server; port: number }

/** A machine without IPv6 has no `::`; the default then falls back to IPv4. */
async function listenOn(listener: RequestListener, env: Env): Promise<Listening> {
  try {
    return await listen(listener, env.HOST, env.PORT)
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if (env.HOST === '::' && (code === 'EAFNOSUPPORT' || code === 'EADDRNOTAVAIL'))
      return await listen(listener, '0.0.0.0', env.PORT)
    if (code === 'EADDRINUSE')
      throw new AppError('invalid_request', `PORT: ${env.PORT} is taken by another process`)
    if (code === 'EACCES')
      throw new AppError('invalid_request', `PORT: this user may not listen on ${env.PORT}`)
    throw error
  }
}
