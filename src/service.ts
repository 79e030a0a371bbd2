import { createHmac, randomBytes } from 'node:crypto'
import { type RequestListener, type Server, createServer } from 'node:http'
import type { Duplex } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import { getRequestListener } from '@hono/node-server'
import { type AppDeps, createApp } from './app.js'
import { createDatabase } from './db/database.js'
import { PASSING, classify, explainConnectFailure, meaningOf } from './db/pg-errors.js'
import { assertSafe } from './db/safety.js'
import type { ConnectionSource } from './db/source.js'
import type { Env } from './env.js'
import { AppError } from './errors.js'
import { ensureFirstOwner, ensureServiceUser, parseServiceKeys } from './first-start.js'
import { createForcedCircuit } from './forced-circuit.js'
import { startPruning } from './jobs/prune.js'
import { type HealthState, databaseState } from './routes/health.js'
import { RecentCallers } from './routes/recent-callers.js'
import { refuseEarly } from './routes/refuse-early.js'
import { bucketNames } from './routes/sign-in.js'
import { createPasswords } from './security/passwords.js'
import { parseEncryptionKeys } from './security/secret-box.js'
import type { Log } from './routes/context.js'

export interface ServiceOptions {
  env: Env
  source: ConnectionSource
  /** For streams: a slow reader must not hold a connection that others wait for. */
  streamSource: ConnectionSource
  /** How long a request is worked on. */
  requestMs: number
  log: Log
  /** False in memory, where there are no roles to check. */
  checkRoles: boolean
  /** Told once, when there is no user yet. */
  onSetupToken: (token: string) => void
}

/** How old the database's last answer may be for the service to count as ready. */
const ANSWER_MAX_AGE_MS = 10_000

/** The app over its sources, and what brings it to readiness; nothing is listened on yet. */
export function createService(options: ServiceOptions) {
  const { env, source, streamSource, log } = options
  const db = createDatabase(source)
  const streams = createDatabase(streamSource)
  const passwords = createPasswords({
    cost: env.BCRYPT_COST,
    minLength: env.PASSWORD_MIN_LENGTH,
    threads: env.HASHING_THREADS,
  })
  const ring = env.ENCRYPTION_KEY === undefined ? null : parseEncryptionKeys(env.ENCRYPTION_KEY)
  const circuit = createForcedCircuit(source, log)
  const stopPruning = startPruning(db, log, env.SESSION_IDLE_MINUTES * 60)
  let phase: 'starting' | 'serving' | 'draining' = 'starting'

  /** From what is known already: neither a full pool nor a lost database can hold it up. */
  const health = (): HealthState => {
    const found = source.health()
    const passes = found.breaker === null || /^(forced_)?closed$/.test(found.breaker.state)
    // Memory answers always, and in no time.
    const answers = found.breaker === null || (found.sinceAnswerMs ?? Infinity) < ANSWER_MAX_AGE_MS
    return {
      status: phase === 'serving' ? (passes && answers ? 'ok' : 'unavailable') : phase,
      database: databaseState(found),
    }
  }

  const deps: AppDeps = {
    db,
    streams,
    passwords,
    health,
    streamHealth: () => databaseState(streamSource.health()),
    forceCircuit: circuit.force,
    operationsToken: env.OPERATIONS_TOKEN ?? null,
    requestMs: options.requestMs,
    log,
    hmac: keyedHash(env.ENCRYPTION_KEY),
    bucketName: bucketNames(ring),
    ring,
    trustedProxy: env.TRUST_PROXY,
    sessionTtlSeconds: env.SESSION_HOURS * 3600,
    sessionIdleSeconds: env.SESSION_IDLE_MINUTES * 60,
    recentCallers: new RecentCallers(),
  }

  /** Tries until the database is there; false when it was told to stop. Rejects when serving from it would be unsafe. */
  async function becomeReady(signal: AbortSignal): Promise<boolean> {
    for (let attempt = 0; !signal.aborted; attempt += 1) {
      try {
        await prepare()
        phase = phase === 'starting' ? 'serving' : phase
        return phase === 'serving'
      } catch (error) {
        if (!(error instanceof AppError) || !PASSING.has(error.code)) throw error
        if (meaningOf(classify(error)).breaker === 'failure') {
          await source.recovered()
        } else {
          const reason = explainConnectFailure(error.cause ?? error)
          if (attempt % 10 === 0) log.warn({ reason }, 'waiting for the database')
          await sleep(Math.min(250 * 2 ** Math.min(attempt, 3), 1000), undefined, { signal }).catch(
            () => undefined,
          )
        }
      }
    }
    return false
  }

  async function prepare(): Promise<void> {
    if (options.checkRoles) await assertSafe(db)
    const { AUTH_LOGIN: username, AUTH_PASSWORD: password } = env
    const owner = username === undefined || password === undefined ? undefined : { username, password }
    const token = await ensureFirstOwner(db, passwords, owner)
    await ensureServiceUser(
      db,
      env.SERVICE_API_KEY === undefined ? [] : parseServiceKeys(env.SERVICE_API_KEY),
    )
    if (token !== null) options.onSetupToken(token)
  }

  const app = createApp(deps)

  return {
    app,
    /** For a server of node:http. Makes the globals Request and Response the adapter's, which are faster. */
    createListener(): RequestListener {
      const answer = getRequestListener(app.fetch)
      return (incoming, outgoing) => {
        if (!refuseEarly(deps, incoming, outgoing)) void answer(incoming, outgoing)
      }
    },
    becomeReady,
    /** From now on not ready, and no new connection to the database is waited for. */
    drain: (): void => void (phase = 'draining'),
    end: async (timeoutMs: number): Promise<void> => {
      circuit.stop()
      stopPruning()
      await Promise.all([source.end(timeoutMs), streamSource.end(timeoutMs), passwords.close()])
    },
  }
}

/** Listens; resolves with the port when the socket is open. */
export async function listen(
  listener: RequestListener,
  host: string,
  port: number,
): Promise<{ server: Server; port: number }> {
  const server = createServer(listener)
  // The platform's edge keeps idle connections for 60 s: ours must not be the first to close.
  server.keepAliveTimeout = 65_000
  server.headersTimeout = 66_000
  server.on('clientError', (error: NodeJS.ErrnoException, socket) => answerMalformed(error.code, socket))
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject)
    server.listen(port, host, resolve)
  })
  const address = server.address()
  return { server, port: typeof address === 'object' && address !== null ? address.port : port }
}

/** What Node's parser refuses never reaches the app; it is a problem document all the same. */
function answerMalformed(code: string | undefined, socket: Duplex): void {
  if (!socket.writable || code === 'ECONNRESET') return void socket.destroy()
  const [status, title] =
    code === 'HPE_HEADER_OVERFLOW' ? [431, 'Request Header Fields Too Large'] : [400, 'Bad Request']
  const detail = 'The request is not well-formed HTTP.'
  const body = JSON.stringify({
    type: 'about:blank',
    title,
    status,
    detail,
    code: 'invalid_request',
    error: 'invalid_request',
    message: detail,
    timestamp: Date.now() / 1000,
  })
  socket.end(
    `HTTP/1.1 ${status} ${title}\r\ncontent-type: application/problem+json\r\ncontent-length: ${Buffer.byteLength(body)}\r\nconnection: close\r\n\r\n${body}`,
  )
}

/** Stops accepting, lets requests finish, and cuts what is left when `timeoutMs` is over. */
export async function closeServer(server: Server, timeoutMs: number): Promise<void> {
  const cut = setTimeout(() => server.closeAllConnections(), timeoutMs)
  // A kept-alive connection becomes idle when its request is done, and would then hold the server open.
  server.prependListener('request', (_, answer) => answer.setHeader('connection', 'close'))
  const sweep = setInterval(() => server.closeIdleConnections(), 500)
  await new Promise<void>((resolve) => server.close(() => resolve()))
  clearInterval(sweep)
  clearTimeout(cut)
}

/** Without ENCRYPTION_KEY the key lives as long as the process: equal names are then equal until a restart. */
function keyedHash(encryptionKey: string | undefined): (text: string) => string {
  const key = encryptionKey ?? randomBytes(32)
  return (text) => createHmac('sha256', key).update(`audit-username:${text}`).digest('hex').slice(0, 32)
}
