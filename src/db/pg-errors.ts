import { AppError, type ErrorCode } from '../errors.js'

/** How a failure counts for the circuit breaker. */
export type FailureOutcome = 'failure' | 'failure_and_slow' | 'slow' | 'ignored'

/** What a failure means to the breaker, to the client it happened on, and to the caller. */
export interface Meaning {
  breaker: FailureOutcome
  /** It counts for a statement that writes; a read is ignored. */
  writesOnly?: true
  /** The client must not be used again. */
  destroy: boolean
  /** Where it counts, the idle clients are suspect as well: they lead to the same server, the same way. */
  evictIdle?: true
  /** The answer did not come: the server may have done the work all the same. */
  unanswered?: true
  /** Nothing to wait for: it ends when somebody changes a setting. */
  configuration?: true
  code: ErrorCode
  message: string
  retryAfterSeconds?: number
}

const LOST = 'The database cannot be reached at the moment.'

/** One row a class of failure. SQLSTATEs: PostgreSQL manual, appendix A. */
const MEANINGS = {
  lost: {
    breaker: 'failure',
    destroy: true,
    unanswered: true,
    code: 'unavailable',
    message: LOST,
    retryAfterSeconds: 1,
  },
  restarting: {
    breaker: 'failure',
    destroy: true,
    unanswered: true,
    code: 'unavailable',
    message: LOST,
    retryAfterSeconds: 1,
  },
  exhausted: {
    breaker: 'failure',
    destroy: false,
    code: 'unavailable',
    message: 'The database has no room for another connection or for this statement.',
    retryAfterSeconds: 1,
  },
  storage_full: {
    breaker: 'failure',
    writesOnly: true,
    destroy: false,
    code: 'storage_full',
    message: 'The database has no disk space left; nothing was changed.',
    retryAfterSeconds: 30,
  },
  read_only: {
    breaker: 'failure',
    writesOnly: true,
    destroy: true,
    evictIdle: true,
    code: 'unavailable',
    message: 'The database server reached is read-only; nothing was changed.',
    retryAfterSeconds: 1,
  },
  client_timeout: {
    breaker: 'failure_and_slow',
    destroy: true,
    evictIdle: true,
    unanswered: true,
    code: 'deadline_exceeded',
    message: 'The database did not answer in time.',
  },
  statement_timeout: {
    breaker: 'slow',
    destroy: false,
    code: 'deadline_exceeded',
    message: 'The statement took too long and was stopped; nothing was changed.',
  },
  /** The same SQLSTATE, asked for by ourselves: only who asked can tell. */
  cancelled: {
    breaker: 'ignored',
    destroy: false,
    code: 'deadline_exceeded',
    message: 'The statement was stopped; nothing was changed.',
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
    unanswered: true,
    configuration: true,
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
  /** A credential that was good a moment ago; raised by the service's own function (claims.ts). */
  refuted: {
    breaker: 'ignored',
    destroy: false,
    code: 'unauthenticated',
    message: 'The credential is not valid or no longer valid.',
  },
  denied: { breaker: 'ignored', destroy: false, code: 'forbidden', message: 'You may not do this.' },
  pool_wait: {
    breaker: 'ignored',
    destroy: false,
    code: 'pool_exhausted',
    message: 'All database connections are busy.',
    retryAfterSeconds: 1,
  },
  /** No connection for a reason on our side of it; clients that are connected go on working. */
  own_side: {
    breaker: 'ignored',
    destroy: true,
    unanswered: true,
    code: 'unavailable',
    message: 'The service cannot open another database connection at the moment.',
    retryAfterSeconds: 1,
  },
  conflict: {
    breaker: 'ignored',
    destroy: false,
    code: 'conflict',
    message: 'The change is in conflict with what is stored.',
  },
  constraint: {
    breaker: 'ignored',
    destroy: false,
    code: 'validation_failed',
    message: 'The change breaks a rule of what may be stored.',
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
  '57P01': 'restarting',
  '57P02': 'restarting',
  '57P03': 'restarting',
  '57P04': 'restarting',
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
  '26000': 'plan_gone',
  '42P05': 'plan_gone',
  '25P03': 'transaction_timeout',
  '25P04': 'transaction_timeout',
  '42501': 'denied',
  GZ401: 'refuted',
  '28P01': 'misconfigured',
  '28000': 'misconfigured',
  '3D000': 'misconfigured',
  '23001': 'conflict',
  '23505': 'conflict',
  '23P01': 'conflict',
  '54000': 'bad_data',
  '54001': 'bad_data',
}

/** Where the SQLSTATE itself is not listed. */
const SQLSTATE_CLASSES: Record<string, FailureClass> = {
  '08': 'lost',
  '22': 'bad_data',
  '23': 'constraint',
}

/** What Node says of a socket, a name, or a file of ours. */
const SYSTEM_CODES: Record<string, FailureClass> = {
  ECONNREFUSED: 'lost',
  ECONNRESET: 'lost',
  ECONNABORTED: 'lost',
  EPIPE: 'lost',
  ETIMEDOUT: 'lost',
  EHOSTUNREACH: 'lost',
  EHOSTDOWN: 'lost',
  ENETUNREACH: 'lost',
  ENETDOWN: 'lost',
  ENETRESET: 'lost',
  ENOTCONN: 'lost',
  // Also what `localhost` is told of ::1 where there is no IPv6.
  EADDRNOTAVAIL: 'lost',
  ENOTFOUND: 'lost',
  EAI_AGAIN: 'lost',
  EAI_FAIL: 'lost',
  // No socket file: no server.
  ENOENT: 'lost',
  ERR_SOCKET_CLOSED: 'lost',
  ERR_SOCKET_CLOSED_BEFORE_CONNECTION: 'lost',
  ERR_SOCKET_CONNECTION_TIMEOUT: 'lost',
  ERR_STREAM_DESTROYED: 'lost',
  ERR_STREAM_PREMATURE_CLOSE: 'lost',
  ERR_STREAM_WRITE_AFTER_END: 'lost',
  // Bytes that went wrong on the way, not a certificate.
  ERR_SSL_DECRYPTION_FAILED_OR_BAD_RECORD_MAC: 'lost',
  ERR_SSL_SSLV3_ALERT_BAD_RECORD_MAC: 'lost',
  ERR_SSL_UNEXPECTED_EOF_WHILE_READING: 'lost',
  EACCES: 'misconfigured',
  EMFILE: 'own_side',
  ENFILE: 'own_side',
  ENOBUFS: 'own_side',
  ENOMEM: 'own_side',
  EIO: 'own_side',
  EPERM: 'own_side',
}

/** OpenSSL's verdicts on a certificate, as Node names them (manual of node:tls, X509 certificate error codes). */
const CERTIFICATE_CODES = new Set([
  'CERT_CHAIN_TOO_LONG',
  'CERT_HAS_EXPIRED',
  'CERT_NOT_YET_VALID',
  'CERT_REJECTED',
  'CERT_REVOKED',
  'CERT_SIGNATURE_FAILURE',
  'CERT_UNTRUSTED',
  'CRL_HAS_EXPIRED',
  'CRL_NOT_YET_VALID',
  'CRL_SIGNATURE_FAILURE',
  'DEPTH_ZERO_SELF_SIGNED_CERT',
  'ERROR_IN_CERT_NOT_AFTER_FIELD',
  'ERROR_IN_CERT_NOT_BEFORE_FIELD',
  'ERROR_IN_CRL_LAST_UPDATE_FIELD',
  'ERROR_IN_CRL_NEXT_UPDATE_FIELD',
  'HOSTNAME_MISMATCH',
  'INVALID_CA',
  'INVALID_PURPOSE',
  'PATH_LENGTH_EXCEEDED',
  'SELF_SIGNED_CERT_IN_CHAIN',
  'UNABLE_TO_DECODE_ISSUER_PUBLIC_KEY',
  'UNABLE_TO_DECRYPT_CERT_SIGNATURE',
  'UNABLE_TO_DECRYPT_CRL_SIGNATURE',
  'UNABLE_TO_GET_CRL',
  'UNABLE_TO_GET_ISSUER_CERT',
  'UNABLE_TO_GET_ISSUER_CERT_LOCALLY',
  'UNABLE_TO_VERIFY_LEAF_SIGNATURE',
])

/** What pg and pg-pool say without a code (pg 8.23: client.js, connection.js; pg-pool 3.14: index.js). */
const MESSAGES: [start: string, FailureClass][] = [
  ['timeout exceeded when trying to connect', 'pool_wait'],
  ['Query read timeout', 'client_timeout'],
  ['Connection terminated', 'lost'],
  ['Client has encountered a connection error', 'lost'],
  ['Client was closed', 'lost'],
  ['timeout expired', 'lost'],
  // What came is not what a PostgreSQL server says next: nothing behind it can be read.
  ['Received unexpected', 'lost'],
  ['received invalid response', 'lost'],
  // The server could not make a process for us: it is busy, not without TLS.
  ['There was an error establishing an SSL connection', 'lost'],
  ['The server does not support SSL', 'misconfigured'],
  ['SASL', 'misconfigured'],
  ['Password must be a string', 'misconfigured'],
  ['Unknown authenticationOk', 'misconfigured'],
  ['Cannot use a pool after calling end', 'own_side'],
]

/**
 * PgBouncer (1.18 to 1.25: objects.c, client.c, janitor.c) sends 08P01 for everything, also with the words of
 * a server that refused it. What is not listed says that it lost its server, or has none to give.
 */
const POOLER_MESSAGES: [RegExp, FailureClass][] = [
  [/unsupported (options )?startup|transaction blocks not allowed/, 'misconfigured'],
  [/no such (database|user)|(database|role) ".*" (is disabled|is not|does not exist)/, 'misconfigured'],
  [/authentication failed|login failed|login rejected|SSL required|pg_hba|permission/, 'misconfigured'],
  [/no more connections allowed|connections exceeded|resources exhaustion/, 'exhausted'],
  [/too many (clients|connections)|connection slots/, 'exhausted'],
  [/^query.timeout$/, 'client_timeout'],
  [/transaction timeout/, 'transaction_timeout'],
  [/prepared statement (did not exist|name is already in use)/, 'plan_gone'],
]

/** What a database that is not there, or busy, answers with; all else is a fault that waiting does not cure. */
export const PASSING: ReadonlySet<ErrorCode> = new Set<ErrorCode>([
  'unavailable',
  'pool_exhausted',
  'storage_full',
  'deadline_exceeded',
  'outcome_unknown',
])

/** The class an AppError was made with, which its cause alone would not tell (connecting, cancelling). */
const classes = new WeakMap<AppError, FailureClass>()

/** The error, its causes and the parts of an AggregateError, outermost first, each once. */
function layers(error: unknown): unknown[] {
  const found = new Set([error])
  // A Set's iteration meets what is added on the way.
  for (const layer of found) {
    if (layer instanceof AggregateError) for (const part of layer.errors) found.add(part)
    if (layer instanceof Error && layer.cause !== undefined) found.add(layer.cause)
  }
  return [...found]
}

function codeOf(error: unknown): string | undefined {
  return typeof error === 'object' && error !== null && 'code' in error && typeof error.code === 'string'
    ? error.code
    : undefined
}

/** Five characters, unlike E and four letters (EPIPE), which are the system's. */
function isSqlState(code: string): boolean {
  return /^(?!E[A-Z]{4})[0-9A-Z]{5}$/.test(code)
}

function isTls(code: string): boolean {
  return CERTIFICATE_CODES.has(code) || /^(ERR_(TLS|SSL|OSSL)_|EPROTO$)/.test(code)
}

/**
 * Class of a failure while connecting, where no statement of a caller can be at fault: what the server refuses
 * then (the role, a startup parameter, a database closed to logins) is a matter of configuration.
 */
export function classifyConnect(error: unknown): FailureClass {
  const name = classify(error)
  if (name === 'storage_full') return 'exhausted'
  if (name === 'denied' || name === 'bad_data' || name === 'protocol') return 'misconfigured'
  const isRefusal = name === 'unknown' && layers(error).some((layer) => sqlState(layer) !== undefined)
  return isRefusal ? 'misconfigured' : name
}

/** Class of a failure of a statement, by SQLSTATE, system code or the driver's message, in that order. */
export function classify(error: unknown): FailureClass {
  for (const layer of layers(error)) {
    const name = classOf(layer)
    if (name !== undefined) return name
  }
  return 'unknown'
}

function classOf(error: unknown): FailureClass | undefined {
  if (error instanceof AppError) return classes.get(error)
  const code = codeOf(error)
  const message = error instanceof Error ? error.message : ''
  if (code !== undefined && isSqlState(code)) return classOfServerError(code, message, error)
  if (code !== undefined) {
    const name = SYSTEM_CODES[code] ?? (isTls(code) ? 'misconfigured' : undefined)
    if (name !== undefined) return name
  }
  return MESSAGES.find(([start]) => message.startsWith(start))?.[1]
}

function classOfServerError(code: string, message: string, error: unknown): FailureClass | undefined {
  // Unlike the message, the name of the C function that raised it is the same in every language.
  const routine = (error as { routine?: string }).routine
  if (code === '08P01') {
    if (routine !== undefined) return 'protocol'
    return POOLER_MESSAGES.find(([pattern]) => pattern.test(message))?.[1] ?? 'lost'
  }
  if (code === '0A000') return routine === 'RevalidateCachedQuery' ? 'plan_gone' : undefined
  return SQLSTATES[code] ?? SQLSTATE_CLASSES[code.slice(0, 2)]
}

export function meaningOf(name: FailureClass): Meaning {
  return MEANINGS[name]
}

/** How the failure of a statement counts; `writes`: it was to change something. */
export function outcomeOf(name: FailureClass, writes: boolean): FailureOutcome {
  const { breaker, writesOnly }: Meaning = MEANINGS[name]
  return writesOnly === true && !writes ? 'ignored' : breaker
}

/**
 * The failure as the caller may see it, with the original as `cause`.
 *
 * `outcome` says what is known of the statement's effect: 'none' when it cannot have been applied (a
 * read, or a transaction whose COMMIT was not sent), 'open' when a lost answer leaves that unknown.
 */
export function toAppError(error: unknown, name: FailureClass, outcome: 'none' | 'open'): AppError {
  if (error instanceof AppError) return error
  const { code, message, retryAfterSeconds, unanswered }: Meaning = MEANINGS[name]
  const isOpen = outcome === 'open' && (unanswered === true || isPanic(error)) && !wasNeverSent(error)
  const known = isOpen
    ? new AppError(
        'outcome_unknown',
        'The connection was lost before the answer: the change may or may not have been made.',
        { cause: error },
      )
    : new AppError(code, message, {
        cause: error,
        ...(retryAfterSeconds === undefined ? {} : { retryAfterSeconds }),
      })
  classes.set(known, name)
  return known
}

/**
 * True where the statement surely did nothing, though its connection is lost: pg refuses one on a client that
 * it knows to be lost before a byte is written, and a pooler without a server to give hands none of it on.
 */
export function wasNeverSent(error: unknown): boolean {
  if (!(error instanceof Error)) return false
  return error.message.endsWith('is not queryable') || error.message === 'query_wait_timeout'
}

/** A server that breaks down over a COMMIT (a full disk under its log) may find it done when it recovers. */
function isPanic(error: unknown): boolean {
  return error instanceof Error && 'severity' in error && error.severity === 'PANIC'
}

/** SQLSTATE of the server's error, also behind an AppError; undefined where the server sent none. */
export function sqlState(error: unknown): string | undefined {
  if (error instanceof AppError) return sqlState(error.cause)
  const code = codeOf(error)
  return code !== undefined && isSqlState(code) ? code : undefined
}

/** True when the error is a unique violation (23505) of that constraint. */
export function violatesUnique(error: unknown, constraint: string): boolean {
  if (error instanceof AppError) return violatesUnique(error.cause, constraint)
  return sqlState(error) === '23505' && (error as { constraint?: string }).constraint === constraint
}

/** What an operator should know of a refused connection: one sentence, without password or address. */
export function explainConnectFailure(error: unknown): string {
  const inner: unknown = error instanceof AggregateError ? (error.errors[0] ?? error) : error
  const code = codeOf(inner) ?? ''
  const message = inner instanceof Error ? inner.message : String(inner)
  if (message.startsWith('The server does not support SSL')) {
    return 'the server has no TLS, and DATABASE_SSL asks for it (DATABASE_SSL=disable allows plaintext)'
  }
  if (code === 'ERR_TLS_CERT_ALTNAME_INVALID') {
    return "the server's certificate is for another host name (DATABASE_SSL=verify-ca checks the authority only)"
  }
  if (CERTIFICATE_CODES.has(code)) {
    return `the server's certificate is not trusted (${code}); give its authority in DATABASE_SSL_CA, or set DATABASE_SSL=require to skip the check`
  }
  if (isTls(code)) return `no agreement on TLS (${code})`
  if (code === '28P01' || message.startsWith('SASL')) return 'the password or user name was refused'
  if (code === '3D000') return 'the database named in the URL does not exist'
  if (code === '22023' || code === '42501') {
    return 'the login cannot become the service role gary_app: run the migrations first (command migrate)'
  }
  if (code === '08P01' && message.startsWith('unsupported startup parameter')) {
    return 'the pooler refuses startup parameters (DATABASE_POOLED=true sends none; use a login of create-login)'
  }
  if (code === 'ENOTFOUND') return 'the host name is unknown (ENOTFOUND)'
  if (code === 'EMFILE') return 'this process has no file descriptor left (EMFILE)'
  return code === '' ? message : `${code}: ${SYSTEM_CODES[code] === undefined ? message : 'no connection'}`
}
