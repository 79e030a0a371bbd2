import { readFileSync, readdirSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { DatabaseError } from 'pg'
import { describe, expect, it } from 'vitest'
import {
  type FailureClass,
  type FailureOutcome,
  classify,
  classifyConnect,
  explainConnectFailure,
  meaningOf,
  outcomeOf,
  sqlState,
  toAppError,
  violatesUnique,
} from '../src/db/pg-errors.js'
import { AppError, type ErrorCode } from '../src/errors.js'

// What a server can be made to say is provoked on one in test/postgres/failures.test.ts.

type Fields = Partial<Pick<DatabaseError, 'severity' | 'routine' | 'constraint'>>

/** As PostgreSQL sends it: with the C function that raised it, unlike a pooler. */
function fromServer(code: string, message = 'provoked', fields: Fields = {}): DatabaseError {
  const error = new DatabaseError(message, 100, 'error')
  return Object.assign(error, { severity: 'ERROR', routine: 'exec_stmt_raise', code, ...fields })
}

function fromPooler(message: string): DatabaseError {
  return Object.assign(new DatabaseError(message, 100, 'error'), { severity: 'FATAL', code: '08P01' })
}

function withCode(code: string, message = `connect ${code}`): Error {
  return Object.assign(new Error(message), { code })
}

interface Row {
  writes: FailureOutcome
  reads?: FailureOutcome
  destroy: boolean
  code: ErrorCode
  retryAfterSeconds?: number
  /** Set where it is not absent. */
  flags?: ('evictIdle' | 'unanswered' | 'configuration')[]
}

const MEANS: Record<FailureClass, Row> = {
  lost: {
    writes: 'failure',
    destroy: true,
    code: 'unavailable',
    retryAfterSeconds: 1,
    flags: ['unanswered'],
  },
  restarting: {
    writes: 'failure',
    destroy: true,
    code: 'unavailable',
    retryAfterSeconds: 1,
    flags: ['unanswered'],
  },
  exhausted: { writes: 'failure', destroy: false, code: 'unavailable', retryAfterSeconds: 1 },
  storage_full: {
    writes: 'failure',
    reads: 'ignored',
    destroy: false,
    code: 'storage_full',
    retryAfterSeconds: 30,
  },
  read_only: {
    writes: 'failure',
    reads: 'ignored',
    destroy: true,
    code: 'unavailable',
    retryAfterSeconds: 1,
    flags: ['evictIdle'],
  },
  client_timeout: {
    writes: 'failure_and_slow',
    destroy: true,
    code: 'deadline_exceeded',
    flags: ['evictIdle', 'unanswered'],
  },
  statement_timeout: { writes: 'slow', destroy: false, code: 'deadline_exceeded' },
  cancelled: { writes: 'ignored', destroy: false, code: 'deadline_exceeded' },
  lock_timeout: { writes: 'ignored', destroy: false, code: 'unavailable', retryAfterSeconds: 1 },
  serialization: { writes: 'ignored', destroy: false, code: 'unavailable', retryAfterSeconds: 1 },
  misconfigured: {
    writes: 'failure',
    destroy: true,
    code: 'unavailable',
    retryAfterSeconds: 30,
    flags: ['unanswered', 'configuration'],
  },
  plan_gone: { writes: 'ignored', destroy: true, code: 'unavailable', retryAfterSeconds: 1 },
  transaction_timeout: { writes: 'slow', destroy: true, code: 'deadline_exceeded' },
  refuted: { writes: 'ignored', destroy: false, code: 'unauthenticated' },
  denied: { writes: 'ignored', destroy: false, code: 'forbidden' },
  pool_wait: { writes: 'ignored', destroy: false, code: 'pool_exhausted', retryAfterSeconds: 1 },
  own_side: {
    writes: 'ignored',
    destroy: true,
    flags: ['unanswered'],
    code: 'unavailable',
    retryAfterSeconds: 1,
  },
  conflict: { writes: 'ignored', destroy: false, code: 'conflict' },
  constraint: { writes: 'ignored', destroy: false, code: 'validation_failed' },
  bad_data: { writes: 'ignored', destroy: false, code: 'validation_failed' },
  protocol: { writes: 'ignored', destroy: true, code: 'internal' },
  unknown: { writes: 'ignored', destroy: false, code: 'internal' },
}

describe('what a class means', () => {
  it.each(Object.entries(MEANS) as [FailureClass, Row][])('is as the table has it: %s', (name, row) => {
    const { destroy, evictIdle, unanswered, configuration } = meaningOf(name)
    const flags = { evictIdle, unanswered, configuration }
    const { code, retryAfterSeconds } = toAppError(new Error('provoked'), name, 'none')
    expect({
      writes: outcomeOf(name, true),
      reads: outcomeOf(name, false),
      destroy,
      code,
      retryAfterSeconds,
      flags: Object.entries(flags).flatMap(([flag, value]) => (value === true ? [flag] : [])),
    }).toEqual({ reads: row.writes, flags: [], ...row })
  })
})

const BY_SQLSTATE: Record<string, FailureClass> = {
  '08000': 'lost',
  '08003': 'lost',
  '08006': 'lost',
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
  '23000': 'constraint',
  '23502': 'constraint',
  '23503': 'constraint',
  '23514': 'constraint',
  '22003': 'bad_data',
  '22021': 'bad_data',
  '22P02': 'bad_data',
  '54000': 'bad_data',
  '54001': 'bad_data',
  '08P01': 'protocol',
  // Ours to mend, and no sign of the database's health: a statement that is wrong, one sent after a failed
  // one, a limit of the operator's, a file of the server's, its own bug.
  '0A000': 'unknown',
  '21000': 'unknown',
  '25P02': 'unknown',
  '42P01': 'unknown',
  '53400': 'unknown',
  '55000': 'unknown',
  '55006': 'unknown',
  '58000': 'unknown',
  '58030': 'unknown',
  '58P01': 'unknown',
  P0001: 'unknown',
  XX000: 'unknown',
  XX001: 'unknown',
}

describe('an error of the server', () => {
  it.each(Object.entries(BY_SQLSTATE))('%s is of the class %s', (state, name) => {
    expect(classify(fromServer(state))).toBe(name)
    expect(sqlState(fromServer(state))).toBe(state)
  })

  it('never opens the circuit by a constraint, bad data, a denial or too many parameters', () => {
    for (const state of ['23502', '23503', '23505', '23514', '23P01', '22P02', '54001', '42501', '08P01']) {
      for (const writes of [true, false]) {
        expect(outcomeOf(classify(fromServer(state)), writes), state).toBe('ignored')
      }
    }
  })

  it('0A000 means a plan that is gone only from where plans are checked, in whatever language', () => {
    const gone = fromServer('0A000', 'zwischengespeicherter Plan', { routine: 'RevalidateCachedQuery' })
    expect(classify(gone)).toBe('plan_gone')
    expect(classify(fromServer('0A000', 'cached plan must not change result type'))).toBe('unknown')
  })

  it('counts by its SQLSTATE and not by its words, which a caller may have chosen', () => {
    expect(classify(fromServer('22P02', 'Connection terminated unexpectedly'))).toBe('bad_data')
    expect(classify(fromServer('42P01', 'SASL'))).toBe('unknown')
  })
})

describe('a failure while connecting', () => {
  const AT_CONNECT: Record<string, FailureClass> = {
    '22023': 'misconfigured',
    '42501': 'misconfigured',
    '08P01': 'misconfigured',
    '28P01': 'misconfigured',
    '28000': 'misconfigured',
    '3D000': 'misconfigured',
    // A database closed to logins, a setting or a protocol that the server does not know.
    '55000': 'misconfigured',
    '42704': 'misconfigured',
    '0A000': 'misconfigured',
    XX000: 'misconfigured',
    // Nothing was to be stored.
    '53100': 'exhausted',
    '53300': 'exhausted',
    '57P03': 'restarting',
    '08006': 'lost',
  }
  it.each(Object.entries(AT_CONNECT))('%s is of the class %s', (state, name) => {
    expect(classifyConnect(fromServer(state))).toBe(name)
  })

  it('is not called configuration where nobody refused anything', () => {
    expect(classifyConnect(new Error('the probes did not succeed'))).toBe('unknown')
    expect(classifyConnect(withCode('ECONNREFUSED'))).toBe('lost')
    expect(classifyConnect(withCode('EMFILE'))).toBe('own_side')
    expect(classifyConnect(new Error('timeout exceeded when trying to connect'))).toBe('pool_wait')
  })
})

describe('an error of Node', () => {
  it.each([
    'ECONNREFUSED',
    'ECONNRESET',
    'ECONNABORTED',
    'EPIPE',
    'ETIMEDOUT',
    'EHOSTUNREACH',
    'EHOSTDOWN',
    'ENETUNREACH',
    'ENETDOWN',
    'ENETRESET',
    'ENOTCONN',
    'EADDRNOTAVAIL',
    'ENOTFOUND',
    'EAI_AGAIN',
    'EAI_FAIL',
    'ENOENT',
    'ERR_SOCKET_CLOSED',
    'ERR_SOCKET_CLOSED_BEFORE_CONNECTION',
    'ERR_SOCKET_CONNECTION_TIMEOUT',
    'ERR_STREAM_DESTROYED',
    'ERR_STREAM_PREMATURE_CLOSE',
    'ERR_STREAM_WRITE_AFTER_END',
    'ERR_SSL_DECRYPTION_FAILED_OR_BAD_RECORD_MAC',
    'ERR_SSL_SSLV3_ALERT_BAD_RECORD_MAC',
    'ERR_SSL_UNEXPECTED_EOF_WHILE_READING',
  ])('%s is a lost connection, and no SQLSTATE', (code) => {
    expect(classify(withCode(code))).toBe('lost')
    expect(sqlState(withCode(code))).toBeUndefined()
  })

  it.each(['EMFILE', 'ENFILE', 'ENOBUFS', 'ENOMEM'])('%s is our own shortage, not the database', (code) => {
    expect(classify(withCode(code))).toBe('own_side')
  })

  it.each([
    // Every verdict on a certificate in the manual of node:tls, and those on its fields.
    'UNABLE_TO_GET_ISSUER_CERT',
    'UNABLE_TO_GET_CRL',
    'UNABLE_TO_DECRYPT_CERT_SIGNATURE',
    'UNABLE_TO_DECRYPT_CRL_SIGNATURE',
    'UNABLE_TO_DECODE_ISSUER_PUBLIC_KEY',
    'CERT_SIGNATURE_FAILURE',
    'CRL_SIGNATURE_FAILURE',
    'CERT_NOT_YET_VALID',
    'CERT_HAS_EXPIRED',
    'CRL_NOT_YET_VALID',
    'CRL_HAS_EXPIRED',
    'ERROR_IN_CERT_NOT_BEFORE_FIELD',
    'ERROR_IN_CERT_NOT_AFTER_FIELD',
    'ERROR_IN_CRL_LAST_UPDATE_FIELD',
    'ERROR_IN_CRL_NEXT_UPDATE_FIELD',
    'DEPTH_ZERO_SELF_SIGNED_CERT',
    'SELF_SIGNED_CERT_IN_CHAIN',
    'UNABLE_TO_GET_ISSUER_CERT_LOCALLY',
    'UNABLE_TO_VERIFY_LEAF_SIGNATURE',
    'CERT_CHAIN_TOO_LONG',
    'CERT_REVOKED',
    'INVALID_CA',
    'PATH_LENGTH_EXCEEDED',
    'INVALID_PURPOSE',
    'CERT_UNTRUSTED',
    'CERT_REJECTED',
    'HOSTNAME_MISMATCH',
  ])('%s, a verdict on the certificate, is configuration and is explained', (code) => {
    expect(classifyConnect(withCode(code))).toBe('misconfigured')
    expect(explainConnectFailure(withCode(code))).toContain(`not trusted (${code})`)
  })

  it.each([
    'ERR_TLS_CERT_ALTNAME_INVALID',
    'ERR_TLS_CERT_ALTNAME_FORMAT',
    'ERR_TLS_DH_PARAM_SIZE',
    'ERR_TLS_INVALID_PROTOCOL_VERSION',
    'ERR_TLS_PROTOCOL_VERSION_CONFLICT',
    'ERR_SSL_WRONG_VERSION_NUMBER',
    'ERR_SSL_UNSUPPORTED_PROTOCOL',
    'ERR_SSL_SSLV3_ALERT_HANDSHAKE_FAILURE',
    'ERR_SSL_TLSV1_ALERT_UNKNOWN_CA',
    'ERR_SSL_TLSV13_ALERT_CERTIFICATE_REQUIRED',
    'ERR_OSSL_PEM_NO_START_LINE',
    'EPROTO',
    'EACCES',
  ])('%s is configuration', (code) => {
    expect(classifyConnect(withCode(code))).toBe('misconfigured')
  })
})

/** What each `new Error` of the driver is; `unknown` is a mistake of ours in calling it. */
const DRIVER: Record<string, FailureClass> = {
  'Connection terminated': 'lost',
  'timeout expired': 'lost',
  'Client has encountered a connection error and is not queryable': 'lost',
  'Client was closed and is not queryable': 'lost',
  'Received unexpected ': 'lost',
  'received invalid response: ': 'lost',
  'There was an error establishing an SSL connection': 'lost',
  'Query read timeout': 'client_timeout',
  'timeout exceeded when trying to connect': 'pool_wait',
  'Cannot use a pool after calling end on the pool': 'own_side',
  'The server does not support SSL connections': 'misconfigured',
  SASL: 'misconfigured',
  'Password must be a string': 'misconfigured',
  'Unknown authenticationOk message type ': 'misconfigured',
  // Wrong calls, most of them refused before a byte is written.
  'Client has already been connected. You cannot reuse a client.': 'unknown',
  'Client was passed a null or undefined query': 'unknown',
  'callback is not a function': 'unknown',
  ' not supported in pipeline mode': 'unknown',
  'A query must have either text or a name.': 'unknown',
  'Prepared statements must be unique': 'unknown',
  'Query values must be an array': 'unknown',
  'circular reference detected while preparing ': 'unknown',
  'Release called on client which has already been released to the pool.': 'unknown',
  'Called end on pool more than once': 'unknown',
  'Passing a function as the first parameter to pool.query is not supported': 'unknown',
  'unexpected condition': 'unknown',
  'Unknown state: ': 'unknown',
  'Binary mode not supported yet': 'unknown',
  'first argument must be a Buffer': 'unknown',
  'second argument must be a Buffer': 'unknown',
  'Buffer lengths must match': 'unknown',
  'Buffers cannot be empty': 'unknown',
  // Of the settings, before anything is dialled.
  'sslnegotiation=direct requires SSL to be enabled': 'unknown',
  'Invalid sslnegotiation value: ': 'unknown',
}

/** The driver's own words: the literals behind every `new Error(`, in the files that run. */
function wordsOfDriver(): string[] {
  const require = createRequire(import.meta.url)
  const lib = dirname(require.resolve('pg/lib/utils.js'))
  const files = [
    ...['', 'crypto/'].flatMap((folder) =>
      readdirSync(join(lib, folder))
        .filter((name) => name.endsWith('.js'))
        .map((name) => join(lib, folder, name)),
    ),
    ...['pg-pool', 'pg-cursor'].map((name) => require.resolve(name)),
    join(dirname(require.resolve('pg-protocol')), 'parser.js'),
  ]
  return files.flatMap((file) =>
    [
      ...readFileSync(file, 'utf8').matchAll(
        /new (?:\w+\.)?(?:Type|Database)?Error\(\s*(?:'([^']*)'|`(?:\$\{\w+\})?([^`$]*))/g,
      ),
    ].map(([, quoted, template]) => quoted ?? template ?? ''),
  )
}

describe('an error of the driver', () => {
  it.each(Object.entries(DRIVER))('"%s" is of the class %s', (message, name) => {
    expect(classify(new Error(message))).toBe(name)
  })

  it('is known here, whatever it says', () => {
    const words = wordsOfDriver()
    const starts = Object.keys(DRIVER)
    expect(words.filter((word) => !starts.some((start) => word.startsWith(start)))).toEqual([])
    expect(starts.filter((start) => !words.some((word) => word.startsWith(start)))).toEqual([])
  })

  it('keeps the class of what it hides: the pool puts its own error around the first one', () => {
    const cause = new Error('Connection terminated unexpectedly')
    expect(classify(new Error('Connection terminated due to connection timeout', { cause }))).toBe('lost')
  })
})

/** By PgBouncer 1.18 to 1.25, all of them 08P01 and FATAL. */
const POOLER: Record<string, FailureClass> = {
  'server conn crashed?': 'lost',
  query_wait_timeout: 'lost',
  'client_login_timeout (server down)': 'lost',
  'server login has been failing, try again later (server_login_retry)': 'lost',
  'server login has been failing, cached error: connect failed (server_login_retry)': 'lost',
  'server shutting down': 'lost',
  'pooler is shutting down': 'lost',
  'database removed': 'lost',
  client_idle_timeout: 'lost',
  'server lifetime over': 'lost',
  'query timeout': 'client_timeout',
  query_timeout: 'client_timeout',
  'idle transaction timeout': 'transaction_timeout',
  'transaction timeout': 'transaction_timeout',
  'no more connections allowed (max_client_conn)': 'exhausted',
  'client connections exceeded (max_db_client_connections)': 'exhausted',
  'client connections exceeded (max_user_client_connections)': 'exhausted',
  'bouncer resources exhaustion': 'exhausted',
  'sorry, too many clients already': 'exhausted',
  'too many connections for role "svc"': 'exhausted',
  'unsupported startup parameter: options': 'misconfigured',
  'unsupported startup parameter in options: role': 'misconfigured',
  'no such database: gary': 'misconfigured',
  'no such user': 'misconfigured',
  'database "gary" is disabled': 'misconfigured',
  'database "gary" does not exist': 'misconfigured',
  'role "svc" does not exist': 'misconfigured',
  'role "svc" is not permitted to log in': 'misconfigured',
  'database "gary" is not currently accepting connections': 'misconfigured',
  'permission denied for database "gary"': 'misconfigured',
  'password authentication failed': 'misconfigured',
  'SASL authentication failed': 'misconfigured',
  'server login failed: wrong password type': 'misconfigured',
  'server login has been failing, cached error: password authentication failed for user "svc" (server_login_retry)':
    'misconfigured',
  'no pg_hba.conf entry for host "10.0.0.1"': 'misconfigured',
  'SSL required': 'misconfigured',
  'transaction blocks not allowed in statement pooling mode': 'misconfigured',
  'prepared statement did not exist': 'plan_gone',
}

describe('an error of a pooler', () => {
  it.each(Object.entries(POOLER))('"%s" is of the class %s, connecting or not', (message, name) => {
    expect(classify(fromPooler(message))).toBe(name)
    expect(classifyConnect(fromPooler(message))).toBe(name)
  })

  it('is told from the same SQLSTATE of the server', () => {
    const message = 'bind message supplies 2 parameters, but prepared statement "" requires 65538'
    expect(classify(fromServer('08P01', message, { routine: 'exec_bind_message' }))).toBe('protocol')
  })
})

describe('an error inside others', () => {
  const refused = withCode('ECONNREFUSED')

  it('is found in an AggregateError, and in one inside another', () => {
    expect(classify(new AggregateError([refused, withCode('EADDRNOTAVAIL')]))).toBe('lost')
    expect(classify(new AggregateError([new Error('?'), new AggregateError([refused])]))).toBe('lost')
    expect(classify(new AggregateError([]))).toBe('unknown')
  })

  it('is found behind `cause`, also where causes go in a circle', () => {
    expect(classify(new Error('outer', { cause: new Error('inner', { cause: refused }) }))).toBe('lost')
    const first = new Error('first')
    const second = new Error('second', { cause: first })
    first.cause = second
    expect(classify(first)).toBe('unknown')
  })

  it('is outranked by the code or message of the one around it, and a message by a code', () => {
    expect(classify(Object.assign(fromServer('23505'), { cause: refused }))).toBe('conflict')
    expect(classify(withCode('ECONNRESET', 'Query read timeout'))).toBe('lost')
    expect(classify(withCode('ERR_OF_OURS', 'Query read timeout'))).toBe('client_timeout')
    expect(classify(withCode('EPIPE', 'This socket has been ended by the other party'))).toBe('lost')
    expect(classify(withCode('ETIMEDOUT', 'read ETIMEDOUT'))).toBe('lost')
  })

  it('is met as whatever was thrown', () => {
    for (const thrown of [undefined, null, 'ECONNREFUSED', 7, {}, Object.create(null), () => 1]) {
      expect(classify(thrown)).toBe('unknown')
      expect(classifyConnect(thrown)).toBe('unknown')
      expect(sqlState(thrown)).toBeUndefined()
      expect(toAppError(thrown, 'unknown', 'open')).toMatchObject({ code: 'internal' })
    }
    expect(classify({ code: 'ECONNRESET' })).toBe('lost')
    expect(classify({ code: 53300 })).toBe('unknown')
  })
})

describe('the answer', () => {
  it('keeps the class it was made with, which its cause would not tell', () => {
    const role = fromServer('22023', 'role "gary_app" does not exist')
    expect(classify(toAppError(role, classifyConnect(role), 'none'))).toBe('misconfigured')
    const stopped = toAppError(fromServer('57014'), 'cancelled', 'none')
    expect(classify(stopped)).toBe('cancelled')
    expect(classify(new Error('outer', { cause: stopped }))).toBe('cancelled')
  })

  it('has the class of its cause where others made it, and none of its own without', () => {
    expect(classify(new AppError('conflict', 'taken', { cause: fromServer('23505') }))).toBe('conflict')
    expect(classify(new AppError('unavailable', 'The service is shutting down.'))).toBe('unknown')
  })

  it('passes an AppError on as it is', () => {
    const error = new AppError('not_found', 'gone')
    expect(toAppError(error, 'lost', 'open')).toBe(error)
  })

  it('keeps SQLSTATE and constraint within reach', () => {
    const error = toAppError(fromServer('23505', 'taken', { constraint: 'names_key' }), 'conflict', 'none')
    expect(sqlState(error)).toBe('23505')
    expect(violatesUnique(error, 'names_key')).toBe(true)
    expect(violatesUnique(error, 'other_key')).toBe(false)
  })

  it('holds nothing of what the server or driver said', () => {
    for (const name of Object.keys(MEANS) as FailureClass[]) {
      for (const outcome of ['none', 'open'] as const) {
        expect(toAppError(new Error('secret at 10.0.0.1'), name, outcome).message).not.toContain('secret')
      }
    }
  })
})

describe('the outcome of a write', () => {
  const open = (error: unknown) => toAppError(error, classify(error), 'open').code

  it('is unknown when the answer was lost on its way', () => {
    for (const error of [
      new Error('Connection terminated unexpectedly'),
      new Error('Connection terminated'),
      new Error('Query read timeout'),
      new Error('Received unexpected commandComplete message from backend.'),
      withCode('ECONNRESET'),
      withCode('EPIPE'),
      withCode('ERR_SSL_SSLV3_ALERT_BAD_CERTIFICATE'),
      fromServer('57P01', 'terminating connection', { severity: 'FATAL' }),
      fromPooler('server conn crashed?'),
      fromPooler('query timeout'),
    ]) {
      expect(open(error), error.message).toBe('outcome_unknown')
      expect(toAppError(error, classify(error), 'none').code, error.message).not.toBe('outcome_unknown')
    }
  })

  it('is known when the server answered with an error: it undid the whole', () => {
    for (const state of ['57014', '55P03', '40001', '40P01', '53100', '53200', '25006', '23505', 'XX000']) {
      expect(open(fromServer(state)), state).not.toBe('outcome_unknown')
    }
  })

  it('is unknown when the server broke down over it: its log may have it', () => {
    for (const state of ['53100', '58030', 'XX000']) {
      expect(open(fromServer(state, 'could not write', { severity: 'PANIC' })), state).toBe('outcome_unknown')
    }
  })

  it('is known when nothing of it was sent', () => {
    expect(open(new Error('Client has encountered a connection error and is not queryable'))).toBe(
      'unavailable',
    )
    expect(open(new Error('Client was closed and is not queryable'))).toBe('unavailable')
    expect(open(fromPooler('query_wait_timeout'))).toBe('unavailable')
    expect(open(new Error('timeout exceeded when trying to connect'))).toBe('pool_exhausted')
  })
})

describe('the sentence for an operator', () => {
  it.each([
    [fromPooler('unsupported startup parameter: options'), 'DATABASE_POOLED=true'],
    [withCode('EMFILE'), 'no file descriptor left'],
    [withCode('ERR_SSL_WRONG_VERSION_NUMBER', 'C0:error:0A00010B'), 'no agreement on TLS'],
    [new AggregateError([withCode('ECONNREFUSED', 'connect ECONNREFUSED 10.0.0.1:5432')]), 'no connection'],
    [withCode('ENOTFOUND', 'getaddrinfo ENOTFOUND db.internal'), 'host name is unknown'],
  ])('names what to do and no address: %s', (error, words) => {
    expect(explainConnectFailure(error)).toContain(words)
    expect(explainConnectFailure(error)).not.toMatch(/10\.0\.0\.1|db\.internal/)
  })
})
