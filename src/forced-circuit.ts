import type { Compilable } from 'kysely'
import { asApp } from './db/as-caller.js'
import { type Correlation, recordSystemEvent } from './db/audit.js'
import { createDatabase } from './db/database.js'
import type { ConnectionSource } from './db/source.js'
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
    try {
      for (let [next] = pending; next !== undefined; [next] = pending) {
        await asApp(db, next)
        pending.shift()
      }
    } catch {
      // The failure is counted where the connection is; the command itself is in the log already.
      retry = setTimeout(() => void flush(), RETRY_MS).unref()
    } finally {
      flushing = false
    }
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
