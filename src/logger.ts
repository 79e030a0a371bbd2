import { type Logger, pino } from 'pino'
import { redactText } from './security/redact.js'

/** As much is written without waiting for the end of the turn. In characters. */
const WRITTEN_AT_ONCE = 8192
/** So much is kept of what cannot be written (a full disk); what comes then is lost. In bytes. */
const KEPT_AT_MOST = 1024 * 1024

/**
 * One JSON line an entry on stdout, with `message` and `level` as words, as log collectors read them.
 * Whatever an error says goes through the redaction of credentials first.
 */
export function createLogger(level: string, fd = 1): Logger {
  return pino(
    {
      level,
      messageKey: 'message',
      base: null,
      timestamp: pino.stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
      serializers: { err: describeError },
    },
    turnsOf(fd),
  )
}

/**
 * The lines of one turn of the event loop in one write, which costs as much as all else about a line. What a kill
 * could lose is that turn's; an exit, also by an error, loses nothing.
 */
function turnsOf(fd: number): { write(line: string): void } {
  const out = pino.destination({
    dest: fd,
    sync: true,
    minLength: WRITTEN_AT_ONCE,
    maxLength: KEPT_AT_MOST,
  })
  // There is no place left to tell of it, and the service goes on without its log.
  out.on('error', () => {})
  let flushes = false
  const flush = (): void => {
    flushes = false
    // Not flushSync: that waits for the disk, and for ever for a reader that is gone.
    out.flush()
  }
  process.on('exit', flush)
  return {
    write(line) {
      out.write(line)
      if (!flushes) setImmediate(flush)
      flushes = true
    },
  }
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
