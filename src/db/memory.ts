import { readFileSync, readdirSync } from 'node:fs'
import { randomUUID } from 'node:crypto'
import { join } from 'node:path'
import { stringify } from 'csv-stringify/sync'
import { DataType, type IMemoryDb, newDb } from 'pg-mem'
import { AppError } from '../errors.js'
import { MIGRATIONS } from '../migrations.js'
import { APPEND_EVENTS, AS_TEXT_HEAD, AS_TEXT_TAIL, BETWEEN, type EventColumns } from './audit-events.js'
import { CONDITIONS, type ClaimKind } from './claims.js'
import { isCopy } from './copy-reader.js'
import type { Statement } from './flight.js'
import { COPY_HEAD, COPY_TAIL } from './reports/catalog.js'
import { beginAttempt, endAttempt } from './memory-throttle.js'
import type { ConnectionSource, Result, SourceConnection, SourceHealth } from './source.js'
import { BEGIN_ATTEMPT, END_ATTEMPT } from './throttle.js'

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
  /** What now() answers: one moment for a whole transaction, as on a server. */
  readonly #clock = { now: new Date() }
  #turn: Promise<void> = Promise.resolve()
  #waiting = 0
  #lastAnswer: number | null = null

  constructor() {
    this.#db = newDb({ noAstCoverageCheck: true })
    registerFunctions(this.#db, this.#clock)
    for (const file of tableMigrations()) this.#db.public.none(file)
    this.#db.createSchema('reports')
    this.#db.public.none(LOGINS_VIEW)
    const { public: schema } = this.#db
    this.#client = {
      query: ({ text, values }) =>
        Promise.resolve(schema.query(withLiterals(text, values)) as unknown as Answer),
    }
  }

  async connect(): Promise<MemoryConnection> {
    this.#waiting += 1
    const previous = this.#turn
    let release = (): void => undefined
    this.#turn = new Promise((resolve) => (release = resolve))
    await previous
    this.#waiting -= 1
    return new MemoryConnection(this.#db, this.#client, this.#clock, () => {
      this.#lastAnswer = performance.now()
      release()
    })
  }

  async run(statements: readonly Statement[]): Promise<Result> {
    const connection = await this.connect()
    try {
      return await connection.execute(statements)
    } finally {
      connection.release()
    }
  }

  async connectPastCircuit(): Promise<SourceConnection> {
    return await this.connect()
  }

  health(): SourceHealth {
    return {
      pool: { total: 1, idle: 0, waiting: this.#waiting, limit: 1 },
      lanes: null,
      breaker: null,
      nextProbeMs: null,
      sinceAnswerMs: this.#lastAnswer === null ? null : performance.now() - this.#lastAnswer,
      lastError: null,
    }
  }

  async recovered(): Promise<boolean> {
    return true
  }

  forceCircuit(): void {
    throw new AppError('not_supported', 'There is no circuit in memory.')
  }

  async end(): Promise<void> {
    await this.#turn
  }
}

class MemoryConnection implements SourceConnection {
  readonly #db: IMemoryDb
  readonly #client: MemoryClient
  readonly #clock: { now: Date }
  readonly release: () => void
  #transaction: { restore(): void } | undefined

  constructor(db: IMemoryDb, client: MemoryClient, clock: { now: Date }, release: () => void) {
    this.#db = db
    this.#client = client
    this.#clock = clock
    this.release = release
  }

  async execute(statements: readonly Statement[]): Promise<Result> {
    let result: Result = { command: '', rowCount: null, rows: [] }
    for (const statement of statements) result = await this.#one(statement)
    return result
  }

  async #one({ text, values, name }: Statement): Promise<Result> {
    if (this.#transaction === undefined) this.#clock.now = new Date()
    if (name === 'identity') return { command: 'SELECT', rowCount: 1, rows: [] }
    if (name?.startsWith('identity_') === true)
      return await this.#confirm(CONDITIONS[name.slice('identity_'.length) as ClaimKind], values)
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
      const run =
        REPLACEMENTS.get(text) ??
        (text.startsWith(AS_TEXT_HEAD)
          ? eventsAsText(text.slice(AS_TEXT_HEAD.length, -AS_TEXT_TAIL.length))
          : (client: MemoryClient, parameters: unknown[]) => client.query({ text, values: parameters }))
      const { rows, rowCount, command } = await run(this.#client, [...values])
      return { command, rowCount, rows: rows.map(asWire) }
    } catch (error) {
      undo?.restore()
      throw asDatabaseError(error)
    }
  }

  /** Who asks is confirmed here too; whose rows they are is not: there are no roles. */
  async #confirm(condition: string, values: readonly unknown[]): Promise<Result> {
    const { rows } = await this.#client.query({ text: condition, values: [...values] })
    if (rows.length === 0) throw Object.assign(new Error('the claim does not hold'), { code: 'GZ401' })
    return { command: 'SELECT', rowCount: 1, rows: [] }
  }

  async *stream(statement: Statement, batchSize: number): AsyncGenerator<unknown[]> {
    if (isCopy(statement.text)) {
      const text = statement.text.slice(COPY_HEAD.length, -COPY_TAIL.length)
      const { rows } = await this.#one({ ...statement, text })
      yield [Buffer.from(asCsv(rows as Row[]))]
      return
    }
    const { rows } = await this.#one(statement)
    for (let start = 0; start < rows.length; start += batchSize) yield rows.slice(start, start + batchSize)
  }
}

/** pg-mem's own escaping breaks texts with a backslash; ours is that of standard_conforming_strings. */
function withLiterals(text: string, values: unknown[]): string {
  return text
    .replaceAll(' as inet)', ' as text)')
    .replaceAll(/\$(\d+)/g, (hole, position: string) =>
      Number(position) > values.length ? hole : literal(values[Number(position) - 1]),
    )
}

function literal(value: unknown): string {
  if (value === null || value === undefined) return 'null'
  if (typeof value === 'number' || typeof value === 'boolean') return String(value)
  if (Array.isArray(value)) return value.length === 0 ? "'{}'" : `array[${value.map(literal).join(',')}]`
  return `'${(typeof value === 'string' ? value : JSON.stringify(value)).replaceAll("'", "''")}'`
}

type Answer = Awaited<ReturnType<MemoryClient['query']>>

/** The few statements that pg-mem cannot run, by their text; shared tests show that both do the same. */
const REPLACEMENTS = new Map<string, (client: MemoryClient, values: unknown[]) => Promise<Answer>>([
  [APPEND_EVENTS, appendEvents],
  [
    BEGIN_ATTEMPT,
    async (client, values) => answer([{ wait_seconds: await beginAttempt(runOn(client), values) }]),
  ],
  [
    END_ATTEMPT,
    async (client, values) => {
      await endAttempt(runOn(client), values)
      return answer([])
    },
  ],
])

function answer(rows: Row[]): Answer {
  return { rows, rowCount: rows.length, command: 'SELECT' }
}

function runOn(client: MemoryClient) {
  return async (text: string, values: unknown[]): Promise<Row[]> =>
    (await client.query({ text, values })).rows
}

/** No json_to_recordset and a wrong ON CONFLICT ... RETURNING: row by row, and nobody else is here. */
async function appendEvents(client: MemoryClient, values: unknown[]): Promise<Answer> {
  const [columns, actorName, onBehalfOf, actorType, actorId, name, lines] = values
  const texts = (lines as string).split('\n')
  const rows: Row[] = []
  for (const [index, e] of (JSON.parse(columns as string) as EventColumns[]).entries()) {
    const known = await client.query({
      text: 'select 1 from audit_event_ids where event_id = $1',
      values: [e.eventId],
    })
    if (known.rows.length > 0) continue
    await client.query({
      text: 'insert into audit_event_ids (event_id, actor, on_behalf_of, body_hash) values ($1, $2, $3, $4)',
      values: [e.eventId, actorName, onBehalfOf, e.bodyHash],
    })
    await client.query({
      text: `insert into audit_events (event_id, occurred_at, event_type, level, source, actor_type, actor_id, actor_name,
        on_behalf_of, user_id, agent_id, session_id, request_id, trace_id, event)
        values ($1, $2, $3, $4, 'client', $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)`,
      values: [
        e.eventId,
        e.occurredAt,
        e.eventType,
        e.level,
        actorType,
        actorId,
        name,
        onBehalfOf,
        e.userId,
        e.agentId,
        e.sessionId,
        e.requestId,
        e.traceId,
        texts[index],
      ],
    })
    rows.push({ event_id: e.eventId })
  }
  return { rows, rowCount: rows.length, command: 'SELECT' }
}

/** No array_to_string and no to_json: the rows of the query within, made one text here. */
function eventsAsText(query: string) {
  return async (client: MemoryClient, values: unknown[]): Promise<Answer> => {
    const { rows } = await client.query({ text: query, values })
    const time = (value: unknown): string =>
      (value as Date).toISOString().replace('T', ' ').replace('Z', '000+00')
    const word = (value: unknown): string => (value === null ? '' : JSON.stringify(value))
    const texts = rows.map((row) =>
      [
        row['event'],
        row['id'],
        time(row['received_at']),
        time(row['occurred_at']),
        word(row['source']),
        word(row['actor_type']),
        row['actor_id'],
        word(row['actor_name']),
        row['on_behalf_of'],
        word(row['action']),
        word(row['target']),
      ].join(BETWEEN),
    )
    return answer([{ events: texts.join(BETWEEN) }])
  }
}

/** As COPY spells it. */
function asCsv(rows: Row[]): string {
  return stringify(rows, {
    header: true,
    record_delimiter: '\r\n',
    quote_record_delimiter: true,
    cast: { string: (value) => ({ value, quoted_empty: true }) },
  })
}

/** What a server would send: timestamps as RFC 3339 text with microseconds. */
function asWire(row: Row): Row {
  const entries = Object.entries(row).map(([name, value]) => [
    name,
    value instanceof Date ? asTimestamp(value) : value,
  ])
  return Object.fromEntries(entries) as Row
}

function asTimestamp(value: Date): string {
  return value.toISOString().replace('Z', '000Z')
}

/** pg-mem names the primary key whatever unique constraint was violated; the columns it tells are right. */
function asDatabaseError(error: unknown): unknown {
  if (!(error instanceof Error)) return error
  const table = /insert into "?(\w+)"?/i.exec(error.message)?.[1]
  const columns = /Key \(([^)]+)\)=.* already exists/.exec(error.message)?.[1]
  if (table === undefined || columns === undefined) return error
  const constraint =
    table === 'config_entries' ? 'config_entries_pkey' : `${table}_${columns.replaceAll(/,\s*/g, '_')}_key`
  return Object.assign(error, { code: '23505', constraint })
}

/** The view of the `_server_` migration, without what pg-mem lacks. */
const LOGINS_VIEW = `
  create view reports.logins as
  select received_at, utc_day(received_at) as day,
         case action when 'auth.login' then 'succeeded' else 'failed' end as outcome,
         actor_id as user_id, actor_name as username
    from public.audit_events
   where event_type = 'authentication' and action in ('auth.login', 'auth.login_failed')`

/** The migrations named `_tables_`, in order: plain DDL that runs here as on a server. */
function tableMigrations(): string[] {
  return (
    readdirSync(MIGRATIONS)
      .filter((name) => name.includes('_tables_'))
      .sort()
      .map((name) => readFileSync(join(MIGRATIONS, name, 'migration.sql'), 'utf8'))
      // To pg-mem a timestamp with a precision is a type of its own, which nothing casts to, CURRENT_TIMESTAMP is
      // the moment of planning, and no IPv6 address an inet.
      .map((file) =>
        file
          .replaceAll('TIMESTAMPTZ(6)', 'TIMESTAMPTZ')
          .replaceAll('CURRENT_TIMESTAMP', 'now()')
          .replaceAll(' INET', ' TEXT'),
      )
  )
}

function registerFunctions(db: IMemoryDb, clock: { now: Date }): void {
  const { public: schema } = db
  const now = { name: 'now', returns: DataType.timestamptz, impure: true, implementation: () => clock.now }
  db.getSchema('pg_catalog').registerFunction(now, true)
  schema.registerFunction({
    name: 'gen_random_uuid',
    returns: DataType.uuid,
    impure: true,
    implementation: randomUUID,
  })
  schema.registerFunction({
    name: 'utc_day',
    args: [DataType.timestamptz],
    returns: DataType.text,
    implementation: (at: Date) => at.toISOString().slice(0, 10),
  })
  // Here every time is in UTC.
  schema.registerFunction({
    name: 'timezone',
    args: [DataType.text, DataType.timestamptz],
    returns: DataType.timestamptz,
    implementation: (_: string, at: Date) => at,
  })
  // Its format is only ever that of RFC 3339.
  schema.registerFunction({
    name: 'to_char',
    args: [DataType.timestamptz, DataType.text],
    returns: DataType.text,
    implementation: asTimestamp,
  })
  schema.registerFunction({
    name: 'pg_try_advisory_xact_lock',
    args: [DataType.bigint],
    returns: DataType.bool,
    impure: true,
    implementation: () => true,
  })
  schema.registerFunction({
    name: 'pg_advisory_xact_lock',
    args: [DataType.integer],
    returns: DataType.bool,
    impure: true,
    implementation: () => true,
  })
}
