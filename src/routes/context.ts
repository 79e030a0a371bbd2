import { randomUUID } from 'node:crypto'
import type { MiddlewareHandler } from 'hono'
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

/** What every request carries along. */
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
    const id = (name: string): string | null => {
      const value = c.req.header(name)
      return value !== undefined && CORRELATION_ID.test(value) ? value : null
    }
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
    // Straight onto the answer where there is one: Headers made and read again cost more than the routing. Else
    // before the answer is made, or Hono would build it twice.
    const answerWith = (name: string, value: string): void =>
      outgoing === undefined ? c.header(name, value) : void outgoing.setHeader(name, value)
    answerWith('x-request-id', requestId)
    if (correlation.traceId !== null) answerWith('x-trace-id', correlation.traceId)
    if (correlation.spanId !== null) answerWith('x-span-id', correlation.spanId)
    if (correlation.sessionId !== null) answerWith('x-session-id', correlation.sessionId)
    answerWith('cache-control', 'private, no-cache')
    answerWith('x-content-type-options', 'nosniff')
    await next()
    timer.stop()
    own.info(
      {
        method: c.req.method,
        path: c.req.path,
        status: c.res.status,
        duration_ms: Math.round(performance.now() - started),
      },
      'request',
    )
  }
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
