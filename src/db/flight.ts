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
  /** True: it is of several requests, for a lane alone, where it waits for no lock. False: it shares no Sync. */
  isShared?: boolean
}

/** The same, parsed anew: where a name would not be known. */
export function unnamed(statement: Statement): Statement {
  return { ...statement, name: undefined }
}

/** What a flight writes to and builds on in pg; it is pinned exactly for their sake. */
export interface Wire {
  stream: Writable
  on(event: 'parseComplete', listener: () => void): void
}

/** What pg makes of a RowDescription: the same for every answer with these columns. */
interface Columns {
  fields: unknown
  _parsers: unknown
  _prebuiltEmptyResultObject: unknown
}

/** The parsers of its client among it. */
interface PgResult extends Columns {
  _types: unknown
}

declare class PgQuery {
  constructor(text: string)
  _result: PgResult
  _accumulateRows: boolean
  callback: (error: Error | null, result?: QueryResult) => void
  submit(connection: Wire): void
  handleRowDescription(message: unknown): void
  handleDataRow(message: unknown): void
  handleCommandComplete(message: unknown, connection: Wire): void
  handleError(error: Error, connection: Wire): void
  handleReadyForQuery(connection: Wire): void
}
export const Query = pg.Query as unknown as typeof PgQuery

/** A text that a connection prepares, or has prepared. */
interface Parse {
  name: string
  /** Whose Parse it is, while that is unanswered. */
  flight: Flight | undefined
  /** What Describe answered: a prepared statement's columns never change (0A000 otherwise). */
  columns?: Columns
}

/** What a connection holds prepared, and the Parse messages it has not answered yet, in their order. */
interface Preparations {
  byName: Map<string, Parse>
  unanswered: Parse[]
}
const preparations = new WeakMap<Wire, Preparations>()

/**
 * Several statements under one Sync: one round trip and, outside a transaction, one implicit
 * transaction. The server skips everything behind a statement that fails, so the last one never runs
 * without the ones before it (BEGIN, who asks). Answers with the result of the last one.
 *
 * It extends the Query of the same pg, because the client accepts only that class in pipeline mode.
 * Protocol: PostgreSQL manual, 55.2.3 Extended Query.
 */
export class Flight extends Query {
  readonly #statements: readonly Statement[]
  readonly #values: unknown[][]
  #ahead: number
  #held: Preparations | undefined
  #last: Parse | undefined
  #hasLanded = false

  constructor(statements: readonly Statement[], callback: PgQuery['callback']) {
    super(statements.at(-1)?.text ?? '')
    this.callback = callback
    this.#statements = statements
    this.#ahead = statements.length - 1
    // Before anything is written: a value that cannot be sent must not leave half a message behind.
    this.#values = statements.map((statement) => statement.values.map((value) => utils.prepareValue(value)))
  }

  override submit(wire: Wire): void {
    write(wire, [...this.messages(wire), serialize.sync()])
  }

  /** All of it but the Sync. */
  messages(wire: Wire): Buffer[] {
    const held = preparationsOn(wire)
    this.#held = held
    const messages: Buffer[] = []
    for (const [index, statement] of this.#statements.entries()) {
      const parse = this.#prepare(held, messages, statement)
      messages.push(serialize.bind({ statement: parse.name, values: this.#values[index] ?? [] }))
      if (index === this.#statements.length - 1) this.#describe(messages, parse)
      messages.push(serialize.execute())
    }
    return messages
  }

  /** Nothing of its last statement has been answered yet, nor all of what is ahead of that. */
  get isAhead(): boolean {
    return this.#ahead > 0
  }

  /** Its last statement is done; whether what it changed stays is for the Sync to say. */
  get hasLanded(): boolean {
    return this.#hasLanded
  }

  /**
   * What to bind. A name counts once the server has taken it: one that another flight is still preparing fails with
   * that flight, whatever it fails of, so until then its text is parsed anew, without a name.
   */
  #prepare(held: Preparations, messages: Buffer[], { text, name = '' }: Statement): Parse {
    const known = held.byName.get(name)
    if (known !== undefined && (known.flight === undefined || known.flight === this)) return known
    const parse: Parse = { name: known === undefined ? name : '', flight: this }
    held.unanswered.push(parse)
    if (parse.name !== '') held.byName.set(name, parse)
    messages.push(serialize.parse({ text, name: parse.name }))
    return parse
  }

  /** Columns that are known need not be described again. */
  #describe(messages: Buffer[], parse: Parse): void {
    this.#last = parse
    if (parse.columns === undefined) messages.push(serialize.describe({ type: 'P' }))
    else {
      Object.assign(this._result, parse.columns)
      this._accumulateRows = true
    }
  }

  override handleRowDescription(message: unknown): void {
    super.handleRowDescription(message)
    const { fields, _parsers, _prebuiltEmptyResultObject } = this._result
    if (this.#last !== undefined) this.#last.columns = { fields, _parsers, _prebuiltEmptyResultObject }
  }

  override handleDataRow(message: unknown): void {
    if (this.#ahead === 0) super.handleDataRow(message)
  }

  override handleCommandComplete(message: unknown, connection: Wire): void {
    if (this.#ahead > 0) this.#ahead -= 1
    else {
      super.handleCommandComplete(message, connection)
      this.#hasLanded = true
    }
  }

  override handleError(error: Error, connection: Wire): void {
    // The answers come in order: what of this flight is still unanswered is what failed, or was skipped.
    const { byName, unanswered } = this.#held ?? { byName: new Map<string, Parse>(), unanswered: [] }
    while (unanswered[0]?.flight === this) {
      const parse = unanswered.shift() as Parse
      if (byName.get(parse.name) === parse) byName.delete(parse.name)
    }
    super.handleError(error, connection)
  }
}

/** One write: each costs more than all the messages together. A dead stream fails its queries itself. */
export function write(wire: Wire, messages: Buffer[]): void {
  if (wire.stream.writable) wire.stream.write(Buffer.concat(messages))
}

function preparationsOn(wire: Wire): Preparations {
  let held = preparations.get(wire)
  if (held === undefined) {
    const made: Preparations = { byName: new Map(), unanswered: [] }
    preparations.set(wire, (held = made))
    wire.on('parseComplete', () => {
      const parse = made.unanswered.shift()
      if (parse !== undefined) parse.flight = undefined
    })
  }
  return held
}

/**
 * Sends the statements in one write; resolves with the last one's result, rejects with the first error. On a client
 * in pipeline mode it does not wait for the flights before it.
 */
export function fly(client: pg.ClientBase, statements: readonly Statement[]): Promise<QueryResult> {
  return landingOf(statements, (flight) => void client.query(flight as unknown as pg.Submittable))
}

/** Rejects without a flight when a value cannot be sent. */
export function landingOf(
  statements: readonly Statement[],
  take: (flight: Flight) => void,
): Promise<QueryResult> {
  return new Promise((resolve, reject) => {
    const flight = new Flight(statements, (error, result) => {
      if (error === null || error === undefined) resolve(result as QueryResult)
      else reject(error)
    })
    take(flight)
  })
}
