import { type Logger, pino } from 'pino'
import { redactText } from './security/redact.js'

/**
 * One JSON line an entry on stdout, with `message` and `level` as words, as log collectors read them.
 * Whatever an error says goes through the redaction of credentials first.
 */
export function createLogger(level: string): Logger {
  return pino({
    level,
    messageKey: 'message',
    base: null,
    timestamp: pino.stdTimeFunctions.isoTime,
    formatters: { level: (label) => ({ level: label }) },
    serializers: { err: describeError },
  })
}

/** Name, code and words of an error and of what caused it; never its enumerable rest (queries, values). */
function describeError(error: unknown): object {
  if (!(error instanceof Error)) return { message: redactText(String(error)) }
  const { code } = error as { code?: unknown }
  return {
    type: error.name,
    message: redactText(error.message),
    ...(typeof code === 'string' ? { code } : {}),
    stack: redactText(error.stack ?? ''),
    ...(error.cause === undefined ? {} : { cause: describeError(error.cause) }),
  }
}
