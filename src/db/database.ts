import {
  type CompiledQuery,
  type DatabaseConnection,
  type Driver,
  Kysely,
  PostgresAdapter,
  PostgresIntrospector,
  PostgresQueryCompiler,
  type QueryResult,
  type RootOperationNode,
  type Transaction,
  type TransactionSettings,
} from 'kysely'
import { AppError } from '../errors.js'
import { type Caller, identityStatement } from './as-caller.js'
import type { Statement } from './flight.js'
import { classify, toAppError } from './pg-errors.js'
import type { ConnectionSource, Result, SourceConnection } from './source.js'
import type { DB } from './types.js'

/** The database, outside a transaction. */
export type Db = Kysely<DB>
/** Inside a transaction: what must not run alone asks for this. */
export type Tx = Transaction<DB>

/** A query that carries the identity it runs under; made by as-caller.ts. */
export interface IdentifiedQuery<R = unknown> extends CompiledQuery<R> {
  readonly caller: Caller
}

/** Kysely over a source of connections; `destroy` is the source's own end, not Kysely's. */
export function createDatabase(source: ConnectionSource): Db {
  return new Kysely<DB>({
    dialect: {
      createAdapter: () => new PostgresAdapter(),
      createDriver: () => new SourceDriver(source),
      createIntrospector: (db) => new PostgresIntrospector(db),
      createQueryCompiler: () => new PostgresQueryCompiler(),
    },
  })
}

class SourceDriver implements Driver {
  readonly #source: ConnectionSource

  constructor(source: ConnectionSource) {
    this.#source = source
  }

  async init(): Promise<void> {}

  async acquireConnection(): Promise<SourceDatabaseConnection> {
    return new SourceDatabaseConnection(await this.#source.connect())
  }

  async beginTransaction(connection: SourceDatabaseConnection, settings: TransactionSettings): Promise<void> {
    connection.begin(settings)
  }

  async commitTransaction(connection: SourceDatabaseConnection): Promise<void> {
    await connection.commit()
  }

  async rollbackTransaction(connection: SourceDatabaseConnection): Promise<void> {
    await connection.rollback()
  }

  async releaseConnection(connection: SourceDatabaseConnection): Promise<void> {
    connection.release()
  }

  async destroy(): Promise<void> {}
}

const COMMIT: Statement = { text: 'commit', values: [], name: 'commit' }
const ROLLBACK: Statement = { text: 'rollback', values: [], name: undefined }

class SourceDatabaseConnection implements DatabaseConnection {
  readonly #connection: SourceConnection
  /** BEGIN and identity travel with the first statement that follows them. */
  #ahead: Statement[] = []
  #inTransaction = false

  constructor(connection: SourceConnection) {
    this.#connection = connection
  }

  begin(settings: TransactionSettings): void {
    const text = `begin${settings.accessMode === 'read only' ? ' read only' : ''}`
    this.#ahead.push({ text, values: [], name: text })
    this.#inTransaction = true
  }

  async executeQuery<R>(query: CompiledQuery | IdentifiedQuery): Promise<QueryResult<R>> {
    const statement = { text: query.sql, values: query.parameters, name: statementName(query.sql) }
    const ahead = this.#ahead
    this.#ahead = []
    const identity = 'caller' in query ? [identityStatement(query.caller)] : []
    if (query.sql === '') {
      this.#ahead = [...ahead, ...identity]
      return { rows: [] }
    }
    const result = await this.#execute([...ahead, ...identity, statement], query.query)
    return toQueryResult<R>(result)
  }

  async #execute(statements: Statement[], node: RootOperationNode): Promise<Result> {
    try {
      return await this.#connection.execute(statements)
    } catch (error) {
      const failure = classify(error)
      if (failure === 'plan_gone' && !this.#inTransaction) {
        // The client is discarded at release; this once, the statements are parsed without names.
        return await this.#connection.execute(
          statements.map((statement) => ({ ...statement, name: undefined })),
        )
      }
      throw toAppError(error, failure, this.#inTransaction || !writes(node) ? 'none' : 'open')
    }
  }

  async *streamQuery<R>(query: CompiledQuery, batchSize = 500): AsyncIterableIterator<QueryResult<R>> {
    const ahead = this.#ahead
    this.#ahead = []
    try {
      if (ahead.length > 0) await this.#connection.execute(ahead)
      const statement = { text: query.sql, values: query.parameters, name: undefined }
      for await (const rows of this.#connection.stream(statement, batchSize)) yield { rows: rows as R[] }
    } catch (error) {
      throw toAppError(error, classify(error), 'none')
    }
  }

  async commit(): Promise<void> {
    if (!this.#started()) return
    let result: Result
    try {
      result = await this.#connection.execute([COMMIT])
    } catch (error) {
      throw toAppError(error, classify(error), 'open')
    }
    this.#inTransaction = false
    if (result.command === 'ROLLBACK') {
      throw new AppError('internal', 'The request failed.', {
        cause: new Error('COMMIT answered ROLLBACK: a failed statement was swallowed inside the transaction'),
      })
    }
  }

  /** Never throws: the first error is the one to tell, and a client still in a transaction is destroyed. */
  async rollback(): Promise<void> {
    if (!this.#started()) return
    try {
      await this.#connection.execute([ROLLBACK])
    } catch {
      return
    }
  }

  #started(): boolean {
    const started = this.#inTransaction && this.#ahead.length === 0
    this.#ahead = []
    return started
  }

  release(): void {
    this.#connection.release()
  }
}

function toQueryResult<R>(result: Result): QueryResult<R> {
  const rows = result.rows as R[]
  return result.command === 'SELECT' || result.rowCount === null
    ? { rows }
    : { rows, numAffectedRows: BigInt(result.rowCount) }
}

/** True for what may change data, a SELECT over a data-modifying WITH among it. */
function writes(node: RootOperationNode): boolean {
  if (node.kind !== 'SelectQueryNode') return true
  return (node.with?.expressions ?? []).some(({ expression }) => expression.kind !== 'SelectQueryNode')
}

/** At most this many names a process, so as many on a connection; further texts are parsed each time. */
const MAX_NAMES = 500
const names = new Map<string, string>()

function statementName(text: string): string | undefined {
  let name = names.get(text)
  if (name === undefined && names.size < MAX_NAMES) {
    name = `s${names.size + 1}`
    names.set(text, name)
  }
  return name
}
