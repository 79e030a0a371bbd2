import type { BreakerSnapshot } from '../resilience/circuit-breaker.js'
import type { Deadline } from './deadline.js'
import type { Statement } from './flight.js'
import type { FailureClass } from './pg-errors.js'

export interface Result {
  command: string
  rowCount: number | null
  rows: unknown[]
}

/** No lane takes a shared statement now, or the one that did has stopped it: nothing was done. */
export class NoLane extends Error {}

/** One database connection, checked out: the engines differ behind this and nowhere else. */
export interface SourceConnection {
  /**
   * Sends the statements together; answers with the last one's result. When the deadline ends before the
   * answer, the server is asked to stop, and it rejects with an AppError if nothing was changed.
   */
  execute(statements: readonly Statement[], deadline?: Deadline): Promise<Result>
  /** Reads in batches of at most `batchSize` rows, a COPY as pieces of CSV; inside a transaction. */
  stream(statement: Statement, batchSize: number, deadline?: Deadline): AsyncIterable<unknown[]>
  /** Once, always. A connection that is not idle and clean does not come back. */
  release(): void
}

export interface SourceHealth {
  pool: { total: number; idle: number; waiting: number; limit: number }
  /** Shared connections beside the pool; null where there are none. */
  lanes: { ready: number; inFlight: number; limit: number } | null
  /** null where there is no server to lose. */
  breaker: BreakerSnapshot | null
  /** Until the database is looked for again; null when it is not lost. */
  nextProbeMs: number | null
  /** Milliseconds since the database last answered anything; null before the first answer. */
  sinceAnswerMs: number | null
  lastError: { class: FailureClass; sinceMs: number } | null
}

/** Where connections come from: guarded-pool.ts for PostgreSQL, memory.ts for pg-mem. */
export interface ConnectionSource {
  /**
   * One flight outside a transaction, on whatever connection there is for it: short statements of many callers may
   * share one. Answers and rejects as SourceConnection.execute does.
   */
  run(statements: readonly Statement[], deadline?: Deadline): Promise<Result>
  /** Waits no longer than the deadline for one. */
  connect(deadline?: Deadline): Promise<SourceConnection>
  /** The same past the circuit: for what must be tried whatever its state. */
  connectPastCircuit(): Promise<SourceConnection>
  health(): SourceHealth
  /** To be called when the database turned out not to be there. True once it is back, false at the end. */
  recovered(): Promise<boolean>
  /** By an operator's command: refuse all, let all pass, or decide by what happens. */
  forceCircuit(to: 'open' | 'closed' | 'auto'): void
  /** Ends within `timeoutMs`, whatever the database does. */
  end(timeoutMs: number): Promise<void>
}
