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
}

/** What pg makes of a RowDescription: the same for every answer with these columns. */
interface Columns {
  fields: unknown
  _parsers: unknown
  _prebuiltEmptyResultObject: unknown
}

declare class PgQuery {
  constructor(text: string)
  _result: Columns
  _accumulateRows: boolean
  callback: (error: Error | null, result?: QueryResult) => void
  submit(connection: Wire): void
  handleRowDescription(message: unknown): void
  handleDataRow(message: unknown): void
  handleCommandComplete(message: unknown, connection: Wire): void
  handleError(error: Error, connection: Wire): void
  handleReadyForQuery(connection: Wire): void
}
const Query = pg.Query as unknown as typeof PgQuery

/** One Parse message and what became of it. */
interface Parse {
  name: string
  flight: Flight
  state: 'sent' | 'complete' | 'failed'
  failure?: Error
  /** What Describe answered: a prepared statement's columns never change (0A000 otherwise). */
  columns?: Columns
}

/** What a connection holds prepared, and the Parse messages it has not answered yet, in their order. */
interface Preparations {
  byName: Map<string, Parse>
  unanswered: Parse[]
}
const preparations = new WeakMap<Wire, Preparations>()

/** A Bind that names a statement which is not there (PostgreSQL manual, appendix A). */
const NO_SUCH_STATEMENT = '26000'

/**
 * Several statements under one Sync: one round trip and, outside a transaction, one implicit
 * transaction. The server skips everything behind a statement that fails, so the last one never runs
 * without the ones before it (BEGIN, who asks). Answers with the result of the last one.
 *
 * On a shared connection names are parsed ahead of everything else in the flight, where nothing can have failed yet:
 * so whoever comes next may count on a name as soon as its Parse is written, whatever becomes of the flight that
 * brought it. Elsewhere each is parsed in its place: behind BEGIN, which must not be skipped for its sake.
 *
 * It extends the Query of the same pg, because the client accepts only that class in pipeline mode.
 * Protocol: PostgreSQL manual, 55.2.3 Extended Query.
 */
class Flight extends Query {
  readonly #statements: readonly Statement[]
  readonly #values: unknown[][]
  readonly #isShared: boolean
  #ahead: number
  #held: Preparations | undefined
  /** Names that an earlier flight is still preparing. */
  #reliesOn: Parse[] = []

  constructor(statements: readonly Statement[], isShared: boolean, callback: PgQuery['callback']) {
    super(statements.at(-1)?.text ?? '')
    this.callback = callback
    this.#statements = statements
    this.#isShared = isShared
    this.#ahead = statements.length - 1
    // Before anything is written: a value that cannot be sent must not leave half a message behind.
    this.#values = statements.map((statement) => statement.values.map((value) => utils.prepareValue(value)))
  }

  override submit(wire: Wire): void {
    const held = preparationsOn(wire)
    this.#held = held
    const messages: Buffer[] = []
    if (this.#isShared) for (const statement of this.#statements) this.#prepare(held, messages, statement)
    for (const [index, statement] of this.#statements.entries()) {
      const { name = '' } = statement
      if (name === '') this.#parse(held, messages, statement)
      else if (!this.#isShared) this.#prepare(held, messages, statement)
      messages.push(serialize.bind({ statement: name, values: this.#values[index] ?? [] }))
      if (index === this.#statements.length - 1) this.#describe(held, messages, name)
      messages.push(serialize.execute())
    }
    messages.push(serialize.sync())
    // One write: each costs more than all the messages together. A dead stream fails its queries itself.
    if (wire.stream.writable) wire.stream.write(Buffer.concat(messages))
  }

  #prepare(held: Preparations, messages: Buffer[], statement: Statement): void {
    const { name } = statement
    if (name === undefined) return
    const known = held.byName.get(name)
    if (known === undefined) held.byName.set(name, this.#parse(held, messages, statement))
    else if (known.state === 'sent') this.#reliesOn.push(known)
  }

  #parse(held: Preparations, messages: Buffer[], { text, name = '' }: Statement): Parse {
    const parse: Parse = { name, flight: this, state: 'sent' }
    held.unanswered.push(parse)
    messages.push(serialize.parse({ text, name }))
    return parse
  }

  /** Columns that are known need not be described again. */
  #describe(held: Preparations, messages: Buffer[], name: string): void {
    const columns = held.byName.get(name)?.columns
    if (columns === undefined) messages.push(serialize.describe({ type: 'P' }))
    else {
      Object.assign(this._result, columns)
      this._accumulateRows = true
    }
  }

  override handleRowDescription(message: unknown): void {
    super.handleRowDescription(message)
    const { fields, _parsers, _prebuiltEmptyResultObject } = this._result
    const parse = this.#held?.byName.get(this.#statements.at(-1)?.name ?? '')
    if (parse !== undefined) parse.columns = { fields, _parsers, _prebuiltEmptyResultObject }
  }

  override handleDataRow(message: unknown): void {
    if (this.#ahead === 0) super.handleDataRow(message)
  }

  override handleCommandComplete(message: unknown, connection: Wire): void {
    if (this.#ahead > 0) this.#ahead -= 1
    else super.handleCommandComplete(message, connection)
  }

  override handleError(error: Error, connection: Wire): void {
    // The answers come in order: what of this flight is still unanswered is what failed, or was skipped.
    const { byName, unanswered } = this.#held ?? { byName: new Map<string, Parse>(), unanswered: [] }
    while (unanswered[0]?.flight === this) {
      const parse = unanswered.shift() as Parse
      Object.assign(parse, { state: 'failed', failure: error })
      if (byName.get(parse.name) === parse) byName.delete(parse.name)
    }
    const missing = (error as { code?: string }).code === NO_SUCH_STATEMENT
    super.handleError(missing ? (this.#failureReliedOn() ?? error) : error, connection)
  }

  /** Why the name is not there, in the words of whoever was to prepare it. */
  #failureReliedOn(): Error | undefined {
    return this.#reliesOn.find(({ state }) => state === 'failed')?.failure
  }
}

function preparationsOn(wire: Wire): Preparations {
  let held = preparations.get(wire)
  if (held === undefined) {
    const made: Preparations = { byName: new Map(), unanswered: [] }
    preparations.set(wire, (held = made))
    wire.on('parseComplete', () => {
      const parse = made.unanswered.shift()
      if (parse !== undefined) parse.state = 'complete'
    })
  }
  return held
}

/**
 * Sends the statements in one write; resolves with the last one's result, rejects with the first error. On a client
 * in pipeline mode it does not wait for the flights before it.
 */
export function fly(client: pg.ClientBase, statements: readonly Statement[]): Promise<QueryResult> {
  return new Promise((resolve, reject) => {
    const isShared = (client as { pipeline?: boolean }).pipeline === true
    const flight = new Flight(statements, isShared, (error, result) => {
      if (error === null || error === undefined) resolve(result as QueryResult)
      else reject(error)
    })
    client.query(flight as unknown as pg.Submittable)
  })
}
