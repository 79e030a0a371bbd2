import { classify, explainConnectFailure, meaningOf, sqlState } from '../db/pg-errors.js'
import { AppError } from '../errors.js'
import { redactText } from '../security/redact.js'
import { printable } from './printing.js'

/** Of a schema that is older than this version: no such table, column or function. A right that is missing is one too. */
const MISSING = new Set<string | undefined>(['42P01', '42703', '42883'])

/** Why a command failed, in one line without stack or secret. */
export function failureLine(error: unknown): string {
  return printable(
    sentence(error)
      .replace(/:\s*\n\s*/g, ': ')
      .replace(/\s*\n\s*/g, '; '),
  )
}

function sentence(error: unknown): string {
  const failure = classify(error)
  if (MISSING.has(sqlState(error)) || failure === 'denied')
    return 'The database is not as this version needs it: run the command migrate.'
  if (!(error instanceof AppError)) return redactText(error instanceof Error ? error.message : String(error))
  const { cause } = error
  if (cause === undefined) return error.message
  // The one connection that a command has is not taken by another: it could not be made.
  if (failure === 'pool_wait') return 'The database cannot be reached: no connection in time.'
  if (meaningOf(failure).breaker === 'failure')
    return `${error.message.replace(/\.$/, '')} (${explainConnectFailure(cause)}).`
  if (error.code === 'internal' && cause instanceof Error)
    return `${error.message} (${redactText(cause.message)})`
  return error.message
}
