import pg, { type QueryResult } from 'pg'
import { serialize } from 'pg-protocol'
import { type Flight, Query, type Statement, type Wire, landingOf, write } from './flight.js'

/** It was not run: the server skips what stands behind a statement that fails. */
export class Skipped extends Error {}

/** So many at most: what fails early makes the server skip the others. */
export const MAX_TOGETHER = 8

/**
 * Flights under one Sync that have the same statements ahead of their last one, which are sent once: for reads,
 * whose answers count as soon as they are whole. What fails of itself ends its own flight, and those behind it are
 * `Skipped`; what fails ahead of the first, and a connection that is lost, ends them all. The server is asked to send
 * each answer at once (Flush): a lane that says nothing counts as stuck, and nobody shall wait for a slower one.
 */
export class Formation extends Query {
  readonly #ahead: readonly Pick<Statement, 'text' | 'values'>[]
  readonly #flights: Flight[] = []
  #at = 0

  /** For flights like this one, which still has to join. */
  constructor(statements: readonly Statement[]) {
    super('')
    this.#ahead = statements.slice(0, -1).map(({ text, values }) => ({ text, values: values.slice() }))
    // pg asks a query without one for listeners, and ends its own timer with it.
    this.callback = () => {}
  }

  /** The very same stands ahead of them: the same identity, and what it confirms. */
  takes(statements: readonly Statement[]): boolean {
    return (
      this.#flights.length < MAX_TOGETHER &&
      statements.length === this.#ahead.length + 1 &&
      this.#ahead.every((statement, index) => isSame(statement, statements[index]))
    )
  }

  /** Before it is sent. Resolves and rejects as `fly` does, and rejects with Skipped. */
  join(statements: readonly Statement[]): Promise<QueryResult> {
    const own = this.#flights.length === 0 ? statements : statements.slice(-1)
    return landingOf(own, (flight) => void this.#flights.push(flight))
  }

  override submit(wire: Wire): void {
    const messages: Buffer[] = []
    for (const [index, flight] of this.#flights.entries()) {
      if (index > 0) messages.push(serialize.flush())
      // pg gives a query the parsers of its client only when it is its own.
      flight._result._types = this._result._types
      messages.push(...flight.messages(wire))
    }
    messages.push(serialize.sync())
    write(wire, messages)
  }

  override handleRowDescription(message: unknown): void {
    this.#flights[this.#at]?.handleRowDescription(message)
  }

  override handleDataRow(message: unknown): void {
    this.#flights[this.#at]?.handleDataRow(message)
  }

  override handleCommandComplete(message: unknown, connection: Wire): void {
    const flight = this.#flights[this.#at]
    flight?.handleCommandComplete(message, connection)
    if (flight?.hasLanded !== true) return
    this.#at += 1
    flight.handleReadyForQuery(connection)
  }

  override handleError(error: Error, connection: Wire): void {
    const [failed, ...behind] = this.#flights.slice(this.#at)
    const endsAll = failed?.isAhead === true || !(error instanceof pg.DatabaseError)
    failed?.handleError(error, connection)
    for (const flight of behind) flight.handleError(endsAll ? error : new Skipped(), connection)
    super.handleError(error, connection)
  }

  override handleReadyForQuery(connection: Wire): void {
    for (const flight of this.#flights.slice(this.#at))
      flight.handleError(new Error('Received unexpected end of answers'), connection)
    super.handleReadyForQuery(connection)
  }
}

function isSame({ text, values }: Pick<Statement, 'text' | 'values'>, other: Statement | undefined): boolean {
  return (
    text === other?.text &&
    values.length === other.values.length &&
    values.every((value, at) => value === other.values[at])
  )
}
