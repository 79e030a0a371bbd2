import { createHash } from 'node:crypto'
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
import type { Deadline } from './deadline.js'
import { createRetry, type Retry } from '../resilience/retry.js'
import type { Caller } from './as-caller.js'
import { type Statement, unnamed } from './flight.js'
import { identityStatement } from './identity.js'
import { classify, meaningOf, toAppError, wasNeverSent } from './pg-errors.js'
import type { ConnectionSource, Result, SourceConnection } from './source.js'
import type { DB } from './types.js'

/** The database, outside a transaction. */
export type Db = Kysely<DB>
/** Inside a transaction: what must not run alone asks for this. */
export type Tx = Transaction<DB>

/** A query of a request: who it runs as, where that is known, and how long it is waited for. Made by as-caller.ts. */
export interface RequestQuery<R = unknown> extends CompiledQuery<R> {
  readonly caller?: Caller | undefined
  readonly deadline: Deadline | undefined
  /** The last statement of a transaction, whose answer nobody looks at: it travels with COMMIT, which is skipped if it fails. */
  readonly withCommit?: true
}

/** A tenth of all statements may be sent a second time, and at once what a loss of all lanes and connections hits. */
const RETRY_BUDGET = { ratio: 0.1, burst: 80, attempts: 1 }

/** Kysely over a source of connections; `destroy` is the source's own end, not Kysely's. */
export function createDatabase(source: Source): Db {
  const driver = new SourceDriver(source, createRetry(RETRY_BUDGET))
  const db = new Kysely<DB>({
    dialect: {
      createAdapter: () => new PostgresAdapter(),
      createDriver: () => driver,
      createIntrospector: (inner) => new PostgresIntrospector(inner),
      createQueryCompiler: () => new PostgresQueryCompiler(),
    },
  })
  drivers.set(db, driver)
  return db
}

const drivers = new WeakMap<Db, SourceDriver>()

/**
 * What `db.executeQuery` does outside a transaction, without Kysely's executor: that takes six promises to find out
 * that there is one connection and no plugin, and 4 us.
 */
export async function executeAlone<R>(db: Db, query: RequestQuery<R>): Promise<R[]> {
  const driver = drivers.get(db)
  if (driver === undefined) throw new Error('not made by createDatabase')
  const connection = driver.openConnection()
  try {
    return (await connection.executeQuery<R>(query)).rows
  } finally {
    connection.release()
  }
}

/** Without `run` every statement gets a connection of its own. */
type Source = Pick<ConnectionSource, 'connect'> & Partial<Pick<ConnectionSource, 'run'>>

class SourceDriver implements Driver {
  readonly #source: Source
  readonly #retry: Retry

  constructor(source: Source, retry: Retry) {
    this.#source = source
    this.#retry = retry
  }

  async init(): Promise<void> {}

  /** Connects with its first query, which knows how long it may take. */
  openConnection(): SourceDatabaseConnection {
    return new SourceDatabaseConnection(this.#source, this.#retry)
  }

  async acquireConnection(): Promise<SourceDatabaseConnection> {
    return this.openConnection()
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

const COMMIT: Statement = { text: 'commit', values: [], name: 'commit', writes: true }
const ROLLBACK: Statement = { text: 'rollback', values: [], name: undefined }

class SourceDatabaseConnection implements DatabaseConnection {
  readonly #source: Source
  readonly #retry: Retry
  #connection: SourceConnection | undefined
  /** BEGIN and identity travel with the first statement that follows them. */
  #ahead: Statement[] = []
  #inTransaction = false
  /** Anything was sent since begin(). */
  #started = false
  /** A statement waits for COMMIT. */
  #mustCommit = false
  /** The connection failed so that nothing more can be asked of it. */
  #broken = false
  /** Whose the transaction is now. */
  #caller: Caller | undefined
  /** Of the request that this connection is checked out for. */
  #deadline: Deadline | undefined

  constructor(source: Source, retry: Retry) {
    this.#source = source
    this.#retry = retry
  }

  begin(settings: TransactionSettings): void {
    const text = `begin${settings.accessMode === 'read only' ? ' read only' : ''}`
    this.#ahead.push({ text, values: [], name: text })
    this.#inTransaction = true
    this.#started = false
    this.#mustCommit = false
    this.#caller = undefined
  }

  async executeQuery<R>(query: CompiledQuery | RequestQuery): Promise<QueryResult<R>> {
    const ahead = this.#ahead
    this.#ahead = []
    if ('deadline' in query) this.#deadline = query.deadline
    const identity = this.#identityFor('caller' in query ? query.caller : undefined)
    if (query.sql === '') {
      this.#ahead = [...ahead, ...identity]
      return { rows: [] }
    }
    const statement: Statement = {
      text: query.sql,
      values: query.parameters,
      name: statementName(query.sql),
      writes: writes(query.query),
      ...(this.#caller?.isShared === undefined ? {} : { isShared: this.#caller.isShared }),
    }
    const statements = ahead.length === 0 ? identity : [...ahead, ...identity]
    statements.push(statement)
    if ('withCommit' in query && this.#inTransaction) {
      this.#ahead = statements
      this.#mustCommit = true
      return { rows: [] }
    }
    const { run } = this.#source
    const result =
      run !== undefined && standsAlone(query) && !this.#inTransaction
        ? await this.#runAlone(statements, run.bind(this.#source))
        : await this.#execute(statements)
    this.#confirm()
    return toQueryResult<R>(result)
  }

  /** The identity was the first statement of what has just succeeded. */
  #confirm(): void {
    if (this.#caller?.claim !== undefined) this.#caller.claim.isConfirmed = true
  }

  /** Nothing for whom the transaction has already. */
  #identityFor(caller: Caller | undefined): Statement[] {
    if (caller === undefined || (this.#inTransaction && caller === this.#caller)) return []
    this.#caller = caller
    return [identityStatement(caller)]
  }

  async #runAlone(statements: Statement[], run: ConnectionSource['run']): Promise<Result> {
    const open = statements.at(-1)?.writes === true
    try {
      return await this.#onceMore(statements, open, (sent) => run(sent, this.#deadline))
    } catch (error) {
      throw toAppError(error, classify(error), open ? 'open' : 'none')
    }
  }

  async #execute(statements: Statement[]): Promise<Result> {
    // Nothing was done on this connection before: another one would serve as well.
    const first = !this.#inTransaction || !this.#started
    const open = !this.#inTransaction && statements.at(-1)?.writes === true
    try {
      const connection = await this.#connected()
      this.#started = true
      if (!first) return await connection.execute(statements, this.#deadline)
      return await this.#onceMore(statements, open, (sent) => this.#executeOn(sent))
    } catch (error) {
      const name = classify(error)
      this.#broken = meaningOf(name).destroy
      throw toAppError(error, name, open ? 'open' : 'none')
    }
  }

  /**
   * A statement that finds its connection lost, or its plan gone, is sent once more, when it is certain
   * that the first try changed nothing: a read, the first flight of a transaction, or never sent at all.
   */
  async #onceMore(
    statements: Statement[],
    open: boolean,
    attempt: (sent: Statement[]) => Promise<Result>,
  ): Promise<Result> {
    let failed = false
    return await this.#retry.run(
      async () => {
        if (failed) this.#giveBack()
        try {
          return await attempt(statements)
        } catch (error) {
          // Not of the budget: without names it cannot come again, and a new schema hits everyone at once.
          if (classify(error) !== 'plan_gone' || this.#inTransaction) throw error
          return await attempt(statements.map(unnamed))
        }
      },
      (error) => {
        const failure = classify(error)
        // An AppError was no statement's: there was no connection to send it on.
        failed = !(error instanceof AppError) && (failure === 'lost' || failure === 'restarting')
        return failed && (!open || wasNeverSent(error))
      },
    )
  }

  async #executeOn(sent: Statement[]): Promise<Result> {
    return await (await this.#connected()).execute(sent, this.#deadline)
  }

  async #connected(): Promise<SourceConnection> {
    return (this.#connection ??= await this.#source.connect(this.#deadline))
  }

  #giveBack(): void {
    this.#connection?.release()
    this.#connection = undefined
  }

  async *streamQuery<R>(query: CompiledQuery, batchSize = 500): AsyncIterableIterator<QueryResult<R>> {
    const ahead = this.#ahead
    this.#ahead = []
    try {
      const connection = await this.#connected()
      this.#started = true
      if (ahead.length > 0) await this.#onceMore(ahead, false, (sent) => this.#executeOn(sent))
      this.#confirm()
      const statement = { text: query.sql, values: query.parameters, name: undefined }
      for await (const rows of (this.#connection ?? connection).stream(statement, batchSize, this.#deadline))
        yield { rows: rows as R[] }
    } catch (error) {
      throw toAppError(error, classify(error), 'none')
    }
  }

  async commit(): Promise<void> {
    if (!this.#started && !this.#mustCommit) return
    let result: Result
    try {
      result = await (await this.#connected()).execute([...this.#ahead, COMMIT], this.#deadline)
    } catch (error) {
      const name = classify(error)
      this.#broken = meaningOf(name).destroy
      throw toAppError(error, name, 'open')
    }
    this.#inTransaction = false
    if (result.command === 'ROLLBACK') {
      throw new AppError('internal', 'The request failed.', {
        cause: new Error('COMMIT answered ROLLBACK: a failed statement was swallowed inside the transaction'),
      })
    }
    this.#confirm()
  }

  /**
   * Never throws: the first error is the one to tell, and a client still in a transaction is destroyed. To one that
   * answers no more nothing is sent: it would only be waited for once more.
   */
  async rollback(): Promise<void> {
    if (!this.#started || this.#broken) return
    try {
      await this.#connection?.execute([ROLLBACK], this.#deadline)
    } catch {
      return
    }
  }

  release(): void {
    this.#giveBack()
  }
}

/**
 * A request's statement, made by as-caller.ts. Those of analysts and of jobs are long by nature: they get a connection
 * of their own.
 */
function standsAlone(query: CompiledQuery | RequestQuery): boolean {
  if (!('deadline' in query)) return false
  const role = query.caller?.databaseRole ?? 'gary_app'
  return role === 'gary_app' || role === 'gary_caller'
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
    name = createHash('sha256').update(text).digest('hex').slice(0, 20)
    names.set(text, name)
  }
  return name
}
