import type { Writable } from 'node:stream'
import pg, { type QueryResult } from 'pg'
import utils from 'pg/lib/utils.js'
import { serialize } from 'pg-protocol'

export interface Statement {
  text: string
  values: readonly unknown[]
  /** Prepared under this name once a connection; undefined: parsed anew each time. */
  name: string | undefined
  /** May change data: what its failure means can depend on that. */
  writes?: boolean
}

/** What a flight writes to and builds on in pg; it is pinned exactly for their sake. */
interface Wire {
  stream: Writable
  on(event: 'parseComplete', listener: () => void): void
  off(event: 'parseComplete', listener: () => void): void
}

declare class PgQuery {
  constructor(config: { text: string })
  callback: (error: Error | null, result?: QueryResult) => void
  submit(connection: Wire): void
  handleDataRow(message: unknown): void
  handleCommandComplete(message: unknown, connection: Wire): void
  handleError(error: Error, connection: Wire): void
  handleReadyForQuery(connection: Wire): void
}
const Query = pg.Query as unknown as typeof PgQuery

/** Names that a connection is known to hold: only ParseComplete is believed. */
const preparedNames = new WeakMap<Wire, Set<string>>()

/**
 * Several statements under one Sync: one round trip and, outside a transaction, one implicit
 * transaction. The server skips everything behind a statement that fails, so the last one never runs
 * without the ones before it (BEGIN, who asks). Answers with the result of the last one.
 *
 * It extends the Query of the same pg, because the client accepts only that class in pipeline mode.
 * Protocol: PostgreSQL manual, 55.2.3 Extended Query.
 */
class Flight extends Query {
  readonly #statements: readonly Statement[]
  readonly #values: unknown[][]
  #ahead: number
  readonly #parsing: string[] = []
  #connection: Wire | undefined
  readonly #onParseComplete = (): void => {
    const name = this.#parsing.shift()
    if (name && this.#connection !== undefined) preparedOn(this.#connection).add(name)
  }

  constructor(statements: readonly Statement[], callback: PgQuery['callback']) {
    super({ text: statements.at(-1)?.text ?? '' })
    this.callback = callback
    this.#statements = statements
    this.#ahead = statements.length - 1
    // Before anything is written: a value that cannot be sent must not leave half a message behind.
    this.#values = statements.map((statement) => statement.values.map((value) => utils.prepareValue(value)))
  }

  override submit(wire: Wire): void {
    this.#connection = wire
    wire.on('parseComplete', this.#onParseComplete)
    const prepared = preparedOn(wire)
    const messages: Buffer[] = []
    for (const [index, { text, name = '' }] of this.#statements.entries()) {
      // Twice in one flight (an identity, in a transaction that has one): parsed by the first of the two.
      if (name === '' || !(prepared.has(name) || this.#parsing.includes(name))) {
        this.#parsing.push(name)
        messages.push(serialize.parse({ text, name }))
      }
      messages.push(serialize.bind({ statement: name, values: this.#values[index] ?? [] }))
      if (index === this.#statements.length - 1) messages.push(serialize.describe({ type: 'P' }))
      messages.push(serialize.execute())
    }
    messages.push(serialize.sync())
    // One write: each costs more than all the messages together. A dead stream fails its queries itself.
    if (wire.stream.writable) wire.stream.write(Buffer.concat(messages))
  }

  override handleDataRow(message: unknown): void {
    if (this.#ahead === 0) super.handleDataRow(message)
  }

  override handleCommandComplete(message: unknown, connection: Wire): void {
    if (this.#ahead > 0) this.#ahead -= 1
    else super.handleCommandComplete(message, connection)
  }

  override handleError(error: Error, connection: Wire): void {
    this.#connection?.off('parseComplete', this.#onParseComplete)
    super.handleError(error, connection)
  }

  override handleReadyForQuery(connection: Wire): void {
    this.#connection?.off('parseComplete', this.#onParseComplete)
    super.handleReadyForQuery(connection)
  }
}

function preparedOn(connection: Wire): Set<string> {
  let names = preparedNames.get(connection)
  if (names === undefined) preparedNames.set(connection, (names = new Set()))
  return names
}

/** Sends the statements in one write; resolves with the last one's result, rejects with the first error. */
export function fly(client: pg.ClientBase, statements: readonly Statement[]): Promise<QueryResult> {
  return new Promise((resolve, reject) => {
    const flight = new Flight(statements, (error, result) => {
      if (error === null || error === undefined) resolve(result as QueryResult)
      else reject(error)
    })
    client.query(flight as unknown as pg.Submittable)
  })
}
