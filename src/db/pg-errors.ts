import { AppError, type ErrorCode } from '../errors.js'

/** What a failure means to the breaker, to the client it happened on, and to the caller. */
interface Meaning {
  breaker: 'failure' | 'failure_and_slow' | 'slow' | 'ignored'
  /** The client must not be used again. */
  destroy: boolean
  code: ErrorCode
  message: string
  retryAfterSeconds?: number
}

const LOST = 'The database cannot be reached at the moment.'

/** One row a class of failure. SQLSTATEs: PostgreSQL manual, appendix A. */
const MEANINGS = {
  lost: { breaker: 'failure', destroy: true, code: 'unavailable', message: LOST, retryAfterSeconds: 1 },
  restarting: { breaker: 'failure', destroy: true, code: 'unavailable', message: LOST, retryAfterSeconds: 1 },
  exhausted: {
    breaker: 'failure',
    destroy: false,
    code: 'unavailable',
    message: 'The database has no room for another connection or for this statement.',
    retryAfterSeconds: 1,
  },
  storage_full: {
    breaker: 'failure',
    destroy: false,
    code: 'storage_full',
    message: 'The database has no disk space left; nothing was changed.',
    retryAfterSeconds: 30,
  },
  read_only: {
    breaker: 'failure',
    destroy: true,
    code: 'unavailable',
    message: 'The database server reached is read-only; nothing was changed.',
    retryAfterSeconds: 1,
  },
  client_timeout: {
    breaker: 'failure_and_slow',
    destroy: true,
    code: 'deadline_exceeded',
    message: 'The database did not answer in time.',
  },
  statement_timeout: {
    breaker: 'slow',
    destroy: false,
    code: 'deadline_exceeded',
    message: 'The statement took too long and was stopped; nothing was changed.',
  },
  lock_timeout: {
    breaker: 'ignored',
    destroy: false,
    code: 'unavailable',
    message: 'Another change holds the same row; nothing was changed.',
    retryAfterSeconds: 1,
  },
  serialization: {
    breaker: 'ignored',
    destroy: false,
    code: 'unavailable',
    message: 'Concurrent changes were in conflict; nothing was changed.',
    retryAfterSeconds: 1,
  },
  misconfigured: {
    breaker: 'failure',
    destroy: true,
    code: 'unavailable',
    message: LOST,
    retryAfterSeconds: 30,
  },
  plan_gone: {
    breaker: 'ignored',
    destroy: true,
    code: 'unavailable',
    message: 'The schema changed under the statement; nothing was changed.',
    retryAfterSeconds: 1,
  },
  transaction_timeout: {
    breaker: 'slow',
    destroy: true,
    code: 'deadline_exceeded',
    message: 'The transaction took too long and was stopped; nothing was changed.',
  },
  denied: { breaker: 'ignored', destroy: false, code: 'forbidden', message: 'You may not do this.' },
  pool_wait: {
    breaker: 'ignored',
    destroy: false,
    code: 'pool_exhausted',
    message: 'All database connections are busy.',
    retryAfterSeconds: 1,
  },
  constraint: {
    breaker: 'ignored',
    destroy: false,
    code: 'conflict',
    message: 'The change is in conflict with what is stored.',
  },
  bad_data: {
    breaker: 'ignored',
    destroy: false,
    code: 'validation_failed',
    message: 'A value cannot be stored as it is.',
  },
  protocol: { breaker: 'ignored', destroy: true, code: 'internal', message: 'The request failed.' },
  unknown: { breaker: 'ignored', destroy: false, code: 'internal', message: 'The request failed.' },
} satisfies Record<string, Meaning>

export type FailureClass = keyof typeof MEANINGS

const SQLSTATES: Record<string, FailureClass> = {
  '08P01': 'protocol',
  '57P01': 'restarting',
  '57P02': 'restarting',
  '57P03': 'restarting',
  '57P05': 'restarting',
  '53000': 'exhausted',
  '53200': 'exhausted',
  '53300': 'exhausted',
  '53100': 'storage_full',
  '25006': 'read_only',
  '57014': 'statement_timeout',
  '55P03': 'lock_timeout',
  '40001': 'serialization',
  '40P01': 'serialization',
  '0A000': 'plan_gone',
  '26000': 'plan_gone',
  '42P05': 'plan_gone',
  '25P03': 'transaction_timeout',
  '25P04': 'transaction_timeout',
  '42501': 'denied',
  '28P01': 'misconfigured',
  '28000': 'misconfigured',
  '3D000': 'misconfigured',
  '54001': 'bad_data',
}

/** Codes that only Node and OpenSSL raise. */
const SYSTEM_CODES: Record<string, FailureClass> = {
  ECONNREFUSED: 'lost',
  ECONNRESET: 'lost',
  EPIPE: 'lost',
  ETIMEDOUT: 'lost',
  EHOSTUNREACH: 'lost',
  ENETUNREACH: 'lost',
  ENOTFOUND: 'lost',
  EAI_AGAIN: 'lost',
  ENOENT: 'lost',
  SELF_SIGNED_CERT_IN_CHAIN: 'misconfigured',
  DEPTH_ZERO_SELF_SIGNED_CERT: 'misconfigured',
  UNABLE_TO_VERIFY_LEAF_SIGNATURE: 'misconfigured',
  UNABLE_TO_GET_ISSUER_CERT: 'misconfigured',
  UNABLE_TO_GET_ISSUER_CERT_LOCALLY: 'misconfigured',
  CERT_HAS_EXPIRED: 'misconfigured',
  CERT_NOT_YET_VALID: 'misconfigured',
  CERT_SIGNATURE_FAILURE: 'misconfigured',
  ERR_TLS_CERT_ALTNAME_INVALID: 'misconfigured',
}

/** What pg and pg-pool say without a code (pg 8.23: client.js, connection.js; pg-pool 3.14: index.js). */
const MESSAGES: [start: string, FailureClass][] = [
  ['timeout exceeded when trying to connect', 'pool_wait'],
  ['Query read timeout', 'client_timeout'],
  ['Connection terminated', 'lost'],
  ['Client has encountered a connection error', 'lost'],
  ['Client was closed', 'lost'],
  ['Cannot use a pool after calling end', 'lost'],
  ['timeout expired', 'lost'],
  ['The server does not support SSL', 'misconfigured'],
  ['There was an error establishing an SSL connection', 'misconfigured'],
  ['SASL', 'misconfigured'],
  ['password authentication failed', 'misconfigured'],
]

function hasCode(error: unknown): error is { code: string } {
  return typeof error === 'object' && error !== null && 'code' in error && typeof error.code === 'string'
}

/** Class of a failure while connecting: a role that is missing or refused is a matter of configuration. */
export function classifyConnect(error: unknown): FailureClass {
  const state = sqlState(error)
  if (state === '22023' || state === '42501' || state === '08P01') return 'misconfigured'
  return classify(error)
}

/** Class of a failure of a statement, by SQLSTATE, system code or the driver's message, in that order. */
export function classify(error: unknown): FailureClass {
  if (error instanceof AggregateError) {
    const classes = error.errors.map(classify)
    return classes.find((name) => name !== 'unknown') ?? 'unknown'
  }
  if (error instanceof AppError && error.cause !== undefined) return classify(error.cause)
  if (hasCode(error)) {
    const known = SQLSTATES[error.code] ?? SYSTEM_CODES[error.code]
    if (known !== undefined) return known
    if (/^[0-9A-Z]{5}$/.test(error.code)) {
      if (error.code.startsWith('08')) return 'lost'
      if (error.code.startsWith('23')) return 'constraint'
      if (error.code.startsWith('22')) return 'bad_data'
    }
  }
  const message = error instanceof Error ? error.message : ''
  return MESSAGES.find(([start]) => message.startsWith(start))?.[1] ?? 'unknown'
}

export function meaningOf(name: FailureClass): Meaning {
  return MEANINGS[name]
}

/**
 * The failure as the caller may see it, with the original as `cause`.
 *
 * `outcome` says what is known of the statement's effect: 'none' when it cannot have been applied (a
 * read, or a transaction whose COMMIT was not sent), 'open' when a lost answer leaves that unknown.
 */
export function toAppError(error: unknown, name: FailureClass, outcome: 'none' | 'open'): AppError {
  if (error instanceof AppError) return error
  const unanswered = name === 'lost' || name === 'client_timeout' || name === 'restarting'
  if (outcome === 'open' && unanswered && !wasNeverSent(error)) {
    return new AppError(
      'outcome_unknown',
      'The connection was lost before the answer: the change may or may not have been made.',
      {
        cause: error,
      },
    )
  }
  const { code, message, retryAfterSeconds }: Meaning = MEANINGS[name]
  return new AppError(code, message, {
    cause: error,
    ...(retryAfterSeconds === undefined ? {} : { retryAfterSeconds }),
  })
}

/** pg refuses a statement on a client that it knows to be lost, before a byte of it is written. */
function wasNeverSent(error: unknown): boolean {
  return error instanceof Error && error.message.endsWith('is not queryable')
}

/** SQLSTATE of the server's error, also behind an AppError; undefined where the server sent none. */
export function sqlState(error: unknown): string | undefined {
  if (error instanceof AppError) return sqlState(error.cause)
  return hasCode(error) && /^[0-9A-Z]{5}$/.test(error.code) && !(error.code in SYSTEM_CODES)
    ? error.code
    : undefined
}

/** True when the error is a unique violation (23505) of that constraint. */
export function violatesUnique(error: unknown, constraint: string): boolean {
  if (error instanceof AppError) return violatesUnique(error.cause, constraint)
  return sqlState(error) === '23505' && (error as { constraint?: string }).constraint === constraint
}

/** What an operator should know of a refused connection: one sentence, without password or address. */
export function explainConnectFailure(error: unknown): string {
  const inner: unknown = error instanceof AggregateError ? (error.errors[0] ?? error) : error
  const code = hasCode(inner) ? inner.code : ''
  const message = inner instanceof Error ? inner.message : String(inner)
  if (message.startsWith('The server does not support SSL')) {
    return 'the server has no TLS, and DATABASE_SSL asks for it (DATABASE_SSL=disable allows plaintext)'
  }
  if (code === 'ERR_TLS_CERT_ALTNAME_INVALID') {
    return "the server's certificate is for another host name (DATABASE_SSL=verify-ca checks the authority only)"
  }
  if (SYSTEM_CODES[code] === 'misconfigured') {
    return `the server's certificate is not trusted (${code}); give its authority in DATABASE_SSL_CA, or set DATABASE_SSL=require to skip the check`
  }
  if (code === '28P01' || message.startsWith('SASL')) return 'the password or user name was refused'
  if (code === '3D000') return 'the database named in the URL does not exist'
  if (code === '22023' || code === '42501') {
    return 'the login cannot become the service role gary_app: run the migrations first (command migrate)'
  }
  if (code === 'ENOTFOUND') return 'the host name is unknown (ENOTFOUND)'
  return code === '' ? message : `${code}: ${SYSTEM_CODES[code] === undefined ? message : 'no connection'}`
}
