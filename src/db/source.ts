import type { Statement } from './flight.js'

export interface Result {
  command: string
  rowCount: number | null
  rows: unknown[]
}

/** One database connection, checked out: the engines differ behind this and nowhere else. */
export interface SourceConnection {
  /** Sends the statements together; answers with the last one's result. */
  execute(statements: readonly Statement[]): Promise<Result>
  /** Reads in batches of at most `batchSize` rows; inside a transaction. */
  stream(statement: Statement, batchSize: number): AsyncIterable<unknown[]>
  /** Once, always. A connection that is not idle and clean does not come back. */
  release(): void
}

export interface SourceStats {
  total: number
  idle: number
  waiting: number
  limit: number
  /** Milliseconds since the database last answered anything; null before the first answer. */
  sinceAnswerMs: number | null
}

/** Where connections come from: guarded-pool.ts for PostgreSQL, memory.ts for pg-mem. */
export interface ConnectionSource {
  connect(): Promise<SourceConnection>
  stats(): SourceStats
  /** Ends within `timeoutMs`, whatever the database does. */
  end(timeoutMs: number): Promise<void>
}
