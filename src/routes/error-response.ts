import type { Context } from 'hono'
import { HTTPException } from 'hono/http-exception'
import type { ContentfulStatusCode } from 'hono/utils/http-status'
import { classify, sqlState } from '../db/pg-errors.js'
import { AppError, type ErrorCode } from '../errors.js'
import { redactText } from '../security/redact.js'
import { type AppEnv, answer } from './context.js'

/** The only table from code to status. */
const STATUS: Record<ErrorCode, ContentfulStatusCode> = {
  invalid_request: 400,
  unauthenticated: 401,
  invalid_credentials: 401,
  forbidden: 403,
  insufficient_scope: 403,
  password_change_required: 403,
  reauthentication_required: 403,
  not_found: 404,
  method_not_allowed: 405,
  not_acceptable: 406,
  conflict: 409,
  already_done: 409,
  in_progress: 409,
  version_mismatch: 412,
  too_large: 413,
  unsupported_media_type: 415,
  validation_failed: 422,
  precondition_required: 428,
  too_many_requests: 429,
  internal: 500,
  not_supported: 501,
  unavailable: 503,
  pool_exhausted: 503,
  storage_full: 503,
  deadline_exceeded: 504,
  outcome_unknown: 504,
}

const TITLES: Partial<Record<number, string>> = {
  400: 'Bad Request',
  401: 'Unauthorized',
  403: 'Forbidden',
  404: 'Not Found',
  405: 'Method Not Allowed',
  406: 'Not Acceptable',
  409: 'Conflict',
  412: 'Precondition Failed',
  413: 'Content Too Large',
  415: 'Unsupported Media Type',
  422: 'Unprocessable Content',
  428: 'Precondition Required',
  429: 'Too Many Requests',
  500: 'Internal Server Error',
  501: 'Not Implemented',
  503: 'Service Unavailable',
  504: 'Gateway Timeout',
}

/** The database refused what a route had let pass: a gap in its checks, or somebody who looks for one. */
const DENIED = '42501'

/** Hono's own exceptions, by status. */
const HONO_CODES: Partial<Record<number, ErrorCode>> = {
  400: 'invalid_request',
  405: 'method_not_allowed',
  413: 'too_large',
  415: 'unsupported_media_type',
}

/**
 * Any error as application/problem+json (RFC 9457), with the members of the consumer's family beside
 * it. The one place that logs: what is our fault or the database's, once, with its cause.
 */
export function errorResponse(error: unknown, c: Context<AppEnv>): Response {
  const known = asRead(toAppError(error), c)
  const status = STATUS[known.code]
  if (status === 500) c.get('log').error({ err: known.cause ?? error }, 'request failed')
  else if (status > 500 || sqlState(known) === DENIED) logFailure(c, known)
  const { headers, body } = problemOf(known, c.get('requestId'))
  // With a key a retry finds out what became of the change; without one it could make it twice.
  if (known.code === 'outcome_unknown' && c.req.header('idempotency-key') !== undefined)
    headers['retry-after'] ??= '1'
  return answer(c, body, status, headers)
}

/** The same as bytes and headers. */
export function problemOf(
  known: AppError,
  requestId: string,
): { status: ContentfulStatusCode; headers: Record<string, string>; body: string } {
  const status = STATUS[known.code]
  const headers: Record<string, string> = { ...known.headers, 'content-type': 'application/problem+json' }
  if (known.retryAfterSeconds !== undefined)
    headers['retry-after'] = String(Math.max(1, known.retryAfterSeconds))
  if (known.code === 'unauthenticated')
    headers['www-authenticate'] ??= 'Bearer realm="gary", error="invalid_token"'
  const body = JSON.stringify({
    type: 'about:blank',
    title: TITLES[status] ?? 'Error',
    status,
    detail: known.message,
    code: known.code,
    ...(known.errors === undefined ? {} : { errors: known.errors }),
    error: known.code,
    message: known.message,
    timestamp: Date.now() / 1000,
    request_id: requestId,
  })
  return { status, headers, body }
}

/** Without a stack: what a lost or slow database does is no fault in the code, and comes in thousands. */
function logFailure(c: Context<AppEnv>, { code, cause }: AppError): void {
  if (c.get('deadline')?.ended === 'client_gone') c.get('log').info({ code }, 'the client went away')
  // Refused by the circuit: its opening was logged, and the answer has a line of its own.
  else if (cause instanceof Error) {
    const reason = redactText(cause.message)
    c.get('log').warn({ code, failure: classify(cause), sqlstate: sqlState(cause), reason }, 'request failed')
  }
}

/** A read that tells the audit trail of itself may leave that open; of what was asked for nothing is. */
function asRead(error: AppError, c: Context<AppEnv>): AppError {
  if (error.code !== 'outcome_unknown' || (c.req.method !== 'GET' && c.req.method !== 'HEAD')) return error
  const { cause } = error
  return new AppError('unavailable', 'The connection was lost before the answer.', {
    cause,
    retryAfterSeconds: 1,
  })
}

function toAppError(error: unknown): AppError {
  if (error instanceof AppError) return error
  if (error instanceof HTTPException) {
    return new AppError(
      HONO_CODES[error.status] ?? 'internal',
      error.message || 'The request cannot be served.',
      { cause: error },
    )
  }
  return new AppError('internal', 'The request failed.', { cause: error })
}
