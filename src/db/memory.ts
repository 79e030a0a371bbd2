import { readFileSync, readdirSync } from 'node:fs'
import { randomUUID } from 'node:crypto'
import { DataType, type IMemoryDb, newDb } from 'pg-mem'
import type { Statement } from './flight.js'
import type { ConnectionSource, Result, SourceConnection, SourceStats } from './source.js'

const MIGRATIONS = new URL('../../prisma/migrations/', import.meta.url)

interface MemoryClient {
  query(config: {
    text: string
    values: unknown[]
  }): Promise<{ rows: Row[]; rowCount: number; command: string }>
}
type Row = Record<string, unknown>

/**
 * The tables in this process, for tests and trials: the same API with no server. One connection at a
 * time; a transaction's rollback, and a failing statement, undo by pg-mem's backup. No roles and no
 * row-level security: identities are accepted and not enforced.
 */
export class MemorySource implements ConnectionSource {
  readonly #db: IMemoryDb
  readonly #client: MemoryClient
  #turn: Promise<void> = Promise.resolve()
  #waiting = 0
  #lastAnswer: number | null = null

  constructor() {
    this.#db = newDb({ noAstCoverageCheck: true })
    registerFunctions(this.#db)
    for (const file of tableMigrations()) this.#db.public.none(file)
    const { Client } = this.#db.adapters.createPg() as { Client: new () => MemoryClient }
    this.#client = new Client()
  }

  async connect(): Promise<SourceConnection> {
    this.#waiting += 1
    const previous = this.#turn
    let release = (): void => undefined
    this.#turn = new Promise((resolve) => (release = resolve))
    await previous
    this.#waiting -= 1
    return new MemoryConnection(this.#db, this.#client, () => {
      this.#lastAnswer = performance.now()
      release()
    })
  }

  stats(): SourceStats {
    return {
      total: 1,
      idle: 0,
      waiting: this.#waiting,
      limit: 1,
      sinceAnswerMs: this.#lastAnswer === null ? null : performance.now() - this.#lastAnswer,
    }
  }

  async end(): Promise<void> {
    await this.#turn
  }
}

class MemoryConnection implements SourceConnection {
  readonly #db: IMemoryDb
  readonly #client: MemoryClient
  readonly release: () => void
  #transaction: { restore(): void } | undefined

  constructor(db: IMemoryDb, client: MemoryClient, release: () => void) {
    this.#db = db
    this.#client = client
    this.release = release
  }

  async execute(statements: readonly Statement[]): Promise<Result> {
    let result: Result = { command: '', rowCount: null, rows: [] }
    for (const statement of statements) result = await this.#one(statement)
    return result
  }

  async #one({ text, values, name }: Statement): Promise<Result> {
    if (name === 'identity') return { command: 'SELECT', rowCount: 1, rows: [] }
    if (text.startsWith('begin')) {
      this.#transaction = this.#db.backup()
      return { command: 'BEGIN', rowCount: null, rows: [] }
    }
    if (text === 'commit' || text === 'rollback') {
      if (text === 'rollback') this.#transaction?.restore()
      this.#transaction = undefined
      return { command: text.toUpperCase(), rowCount: null, rows: [] }
    }
    const undo = this.#transaction === undefined ? this.#db.backup() : undefined
    try {
      const { rows, rowCount, command } = await this.#client.query({ text, values: [...values] })
      return { command, rowCount, rows: rows.map(asWire) }
    } catch (error) {
      undo?.restore()
      throw asDatabaseError(error)
    }
  }

  async *stream(statement: Statement, batchSize: number): AsyncGenerator<unknown[]> {
    const { rows } = await this.#one(statement)
    for (let start = 0; start < rows.length; start += batchSize) yield rows.slice(start, start + batchSize)
  }
}

/** What a server would send: timestamps as RFC 3339 text with microseconds. */
function asWire(row: Row): Row {
  const entries = Object.entries(row).map(([name, value]) => [
    name,
    value instanceof Date ? value.toISOString().replace('Z', '000Z') : value,
  ])
  return Object.fromEntries(entries) as Row
}

/** pg-mem names the constraint in its message only. */
function asDatabaseError(error: unknown): unknown {
  if (!(error instanceof Error)) return error
  const constraint = /unique constraint "([^"]+)"/.exec(error.message)?.[1]
  return constraint === undefined ? error : Object.assign(error, { code: '23505', constraint })
}

/** The migrations named `_tables_`, in order: plain DDL that runs here as on a server. */
function tableMigrations(): string[] {
  return readdirSync(MIGRATIONS)
    .filter((name) => name.includes('_tables_'))
    .sort()
    .map((name) => readFileSync(new URL(`${name}/migration.sql`, MIGRATIONS), 'utf8'))
}

function registerFunctions(db: IMemoryDb): void {
  const { public: schema } = db
  schema.registerFunction({
    name: 'gen_random_uuid',
    returns: DataType.uuid,
    impure: true,
    implementation: randomUUID,
  })
  schema.registerFunction({
    name: 'pg_advisory_xact_lock',
    args: [DataType.integer],
    returns: DataType.bool,
    impure: true,
    implementation: () => true,
  })
}
