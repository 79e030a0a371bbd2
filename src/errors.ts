/**
 * Every code a caller can meet, with its HTTP status in routes/error-response.ts.
 * The list is the contract: a code is never reused for another meaning.
 */
export type ErrorCode =
  | 'invalid_request'
  | 'unauthenticated'
  | 'invalid_credentials'
  | 'forbidden'
  | 'insufficient_scope'
  | 'password_change_required'
  | 'reauthentication_required'
  | 'not_found'
  | 'method_not_allowed'
  | 'not_acceptable'
  | 'conflict'
  | 'already_done'
  | 'in_progress'
  | 'version_mismatch'
  | 'too_large'
  | 'unsupported_media_type'
  | 'validation_failed'
  | 'precondition_required'
  | 'too_many_requests'
  | 'internal'
  | 'not_supported'
  | 'unavailable'
  | 'pool_exhausted'
  | 'storage_full'
  | 'deadline_exceeded'
  | 'outcome_unknown'

/** One fault of the input: `path` is a JSON Pointer into it ('' is the whole). */
export interface FieldError {
  path: string
  message: string
}

export interface AppErrorOptions {
  /** Whole seconds until a retry makes sense; at least 1. */
  retryAfterSeconds?: number
  errors?: FieldError[]
  headers?: Record<string, string>
  cause?: unknown
}

/**
 * The one error that reaches a caller as it is: `message` is written for the caller and holds no
 * SQL, host, stack or value. Anything else thrown becomes `internal` with a neutral sentence.
 */
export class AppError extends Error {
  override readonly name = 'AppError'
  readonly code: ErrorCode
  readonly retryAfterSeconds: number | undefined
  readonly errors: FieldError[] | undefined
  readonly headers: Record<string, string>

  constructor(code: ErrorCode, message: string, options: AppErrorOptions = {}) {
    super(message, 'cause' in options ? { cause: options.cause } : undefined)
    this.code = code
    this.retryAfterSeconds = options.retryAfterSeconds
    this.errors = options.errors
    this.headers = options.headers ?? {}
  }
}

/** 422 for one fault of the input. */
export function validationFailed(path: string, message: string): AppError {
  return new AppError('validation_failed', message, { errors: [{ path, message }] })
}

/** 404 in the words every route uses, so that a hidden row reads like a missing one. */
export function notFound(what = 'resource'): AppError {
  return new AppError('not_found', `The ${what} does not exist or is not visible to you.`)
}
