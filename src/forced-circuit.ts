import type { Compilable } from 'kysely'
import { asApp } from './db/as-caller.js'
import { type Correlation, recordSystemEvent } from './db/audit.js'
import { createDatabase } from './db/database.js'
import { PASSING, sqlState } from './db/pg-errors.js'
import type { ConnectionSource } from './db/source.js'
import { AppError } from './errors.js'
import type { Log } from './routes/context.js'

export type ForcedState = 'open' | 'closed' | 'auto'

/** Commands that wait for the database to be audited; an operator gives a handful. */
const MAX_PENDING = 100
const RETRY_MS = 2000

/**
 * An operator's hand on this replica's circuit. The command never needs the database: it is logged at once, and audited with
 * its own time as soon as the database takes it, past the circuit that it may have opened.
 */
export function createForcedCircuit(source: ConnectionSource, log: Log) {
  const db = createDatabase({ connect: () => source.connectPastCircuit() })
  const pending: Compilable<unknown>[] = []
  let retry: NodeJS.Timeout | undefined
  let flushing = false

  async function flush(): Promise<void> {
    if (flushing) return
    flushing = true
    for (let [next] = pending; next !== undefined; [next] = pending) {
      const error = await asApp(db, next).then(
        () => undefined,
        (error: unknown) => error,
      )
      // The failure is counted where the connection is; the command itself is in the log already.
      if (error instanceof AppError && PASSING.has(error.code)) {
        retry = setTimeout(() => void flush(), RETRY_MS).unref()
        break
      }
      // A unique violation is its own row, of an attempt whose answer was lost.
      if (error !== undefined && sqlState(error) !== '23505')
        log.error({ err: error }, 'a forced circuit could not be audited')
      pending.shift()
    }
    flushing = false
  }

  return {
    /** Throws `not_supported` where there is no circuit (in memory). */
    force(to: ForcedState, correlation: Correlation): void {
      source.forceCircuit(to)
      log.warn({ to, request_id: correlation.requestId }, 'the circuit was forced by an operator')
      if (pending.length === MAX_PENDING) pending.shift()
      pending.push(
        recordSystemEvent(db, {
          correlation,
          eventType: 'system_event',
          level: 'warning',
          action: 'circuit.force',
          target: 'circuit',
          message: `Circuit forced: ${to}`,
          metadata: { state: to },
        }),
      )
      void flush()
    },
    stop: (): void => clearTimeout(retry),
  }
}
