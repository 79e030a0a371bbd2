import { randomUUID } from 'node:crypto'
import type { Context, MiddlewareHandler } from 'hono'
import type { ContentfulStatusCode } from 'hono/utils/http-status'
import type { Caller } from '../db/as-caller.js'
import type { Correlation } from '../db/audit.js'
import type { SessionUser } from '../db/sessions.js'
import { Deadline } from '../db/deadline.js'
import { type TrustedProxy, clientAddress } from './client-address.js'

/** The part of a logger that routes use; pino's satisfies it. */
export interface Log {
  info(fields: object, message: string): void
  warn(fields: object, message: string): void
  error(fields: object, message: string): void
  child(fields: Record<string, unknown>): Log
}

/** What every request carries along. To be read by c.get: c.var makes an object of all of it each time. */
export interface AppEnv {
  Variables: {
    requestId: string
    correlation: Correlation
    log: Log
    /** How long this request is worked on; part of its caller. */
    deadline: Deadline
    /** Ends the deadline. Stands still while a body arrives, and for streams. */
    deadlineTimer: DeadlineTimer
    caller: Caller
    /** Only behind requireCaller and for a session's own routes. */
    session: SessionUser
    /** Where a body of audit data had NUL or lone surrogates; set by jsonBody. */
    replacedAt: string[]
  }
  Bindings: {
    incoming?: { socket?: { remoteAddress?: string } }
    outgoing?: {
      once(event: 'close', listener: () => void): unknown
      setHeader(name: string, value: string): unknown
    }
  }
}

export interface DeadlineTimer {
  stop(): void
  /** The whole time once more. */
  restart(): void
}

const CORRELATION_ID = /^[A-Za-z0-9._:-]{1,128}$/

/** Ids of a request that are told again, beside X-Request-ID. */
export const ECHOED = ['x-trace-id', 'x-span-id', 'x-session-id'] as const
/** Beside every answer, unless it says otherwise itself. */
export const ALWAYS: Readonly<Record<string, string>> = {
  'cache-control': 'private, no-cache',
  'x-content-type-options': 'nosniff',
}

/** What a client may call its request; null for anything else. */
export function correlationId(value: unknown): string | null {
  return typeof value === 'string' && CORRELATION_ID.test(value) ? value : null
}

/**
 * Gives the request its ids (X-Request-ID made when absent or malformed) and echoes them; ends its deadline
 * after `requestMs`, or when its client goes away; logs the answer in one line: never a header, a body or a
 * query string, which could hold secrets.
 */
export function requestContext(
  log: Log,
  { requestMs, trustedProxy }: { requestMs: number; trustedProxy: TrustedProxy },
): MiddlewareHandler<AppEnv> {
  return async function requestContext(c, next) {
    const started = performance.now()
    const id = (name: string): string | null => correlationId(c.req.header(name))
    const requestId = id('x-request-id') ?? randomUUID()
    const correlation: Correlation = {
      requestId,
      traceId: id('x-trace-id'),
      spanId: id('x-span-id'),
      sessionId: id('x-session-id'),
      ipAddress: clientAddress(c, trustedProxy),
      userAgent: c.req.header('user-agent')?.slice(0, 512) ?? null,
      endpoint: `${c.req.method} ${c.req.path}`.slice(0, 512),
    }
    c.set('requestId', requestId)
    c.set('correlation', correlation)
    const own = logWith(log, requestId)
    c.set('log', own)
    const deadline = new Deadline()
    const timer = timerOf(deadline, requestMs)
    c.set('deadline', deadline)
    c.set('deadlineTimer', timer)
    const outgoing = c.env?.outgoing
    // After the answer it comes too, and finds nobody listening.
    outgoing?.once('close', () => deadline.end('client_gone'))
    // Before the answer is made: a header set behind it makes Hono build the answer again.
    setHeader(c, 'x-request-id', requestId)
    if (correlation.traceId !== null) setHeader(c, 'x-trace-id', correlation.traceId)
    if (correlation.spanId !== null) setHeader(c, 'x-span-id', correlation.spanId)
    if (correlation.sessionId !== null) setHeader(c, 'x-session-id', correlation.sessionId)
    for (const name in ALWAYS) setHeader(c, name, ALWAYS[name] as string)
    await next()
    timer.stop()
    log.info(
      {
        request_id: requestId,
        method: c.req.method,
        path: c.req.path,
        status: c.res.status,
        duration_ms: Math.round(performance.now() - started),
      },
      'request',
    )
  }
}

/**
 * For the answer to come, whatever it will be. Straight onto Node's where there is one: Headers of the web's kind are
 * made, checked and read again, which costs a request as much as its routing. Not for what a secret under an
 * Idempotency-Key is known by (keptOf): that header belongs to its answer.
 */
export function setHeader(c: Context<AppEnv>, name: string, value: string): void {
  const outgoing = c.env?.outgoing
  if (outgoing === undefined) c.header(name, value)
  else outgoing.setHeader(name, value)
}

/** `c.body` with several headers, for the same reason; those of setHeader are beside them. */
export function answer(
  c: Context<AppEnv>,
  body: string,
  status: ContentfulStatusCode,
  headers: Record<string, string>,
): Response {
  return c.env?.outgoing === undefined
    ? c.body(body, status, headers)
    : new Response(body, { status, headers })
}

/** What `log.child` would write, made only when something is written: a child costs every request 3 us. */
function logWith(log: Log, requestId: string): Log {
  const fields = { request_id: requestId }
  return {
    info: (more, message) => log.info({ ...fields, ...more }, message),
    warn: (more, message) => log.warn({ ...fields, ...more }, message),
    error: (more, message) => log.error({ ...fields, ...more }, message),
    child: (more) => log.child({ ...fields, ...more }),
  }
}

function timerOf(deadline: Deadline, requestMs: number): DeadlineTimer {
  const start = () => setTimeout(() => deadline.end('expired'), requestMs).unref()
  let timer = start()
  return {
    stop: () => clearTimeout(timer),
    restart() {
      clearTimeout(timer)
      timer = start()
    },
  }
}
