// Prisma's schema engine, the WebAssembly build of it, in this process: no native binary, no download.
// The engine's wire format is Prisma's own, so its packages are pinned to exact versions in package.json.
import { readFile } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { PrismaPg } from '@prisma/adapter-pg'
import {
  ColumnTypeEnum,
  DriverAdapterError,
  bindMigrationAwareSqlAdapterFactory,
} from '@prisma/driver-adapter-utils'
import * as glue from '@prisma/schema-engine-wasm/schema_engine_bg'
import pg from 'pg'

// Every connection starts so, and is so again after each file: what a file SETs (a role, a search_path, a
// timeout) must not reach the next file or the engine's own bookkeeping, and neither may the login's limits.
const freshSession =
  'RESET SESSION AUTHORIZATION; SET ROLE NONE; RESET ALL; SET statement_timeout = 0; SET lock_timeout = 0'

const OID_CHAR = 18
const OID_TEXT = 25

/**
 * One connection that looks like a pool, because the adapter wants a pool. The engine's advisory lock lives
 * in this session; pg's own `query` would drop the session, and with it the lock, at the first SQL error.
 */
class OneConnection extends pg.Pool {
  /** The client that is out of the pool, waiting for an answer. */
  busy
  /** The row of _prisma_migrations that the engine began and the next script belongs to. */
  startedRow
  /** By a result's rows: which of its columns are of type "char". */
  charColumns = new WeakMap()

  constructor(config) {
    super({
      connectionTimeoutMillis: 10_000,
      keepAlive: true,
      ...config,
      max: 1,
      idleTimeoutMillis: 0,
      onConnect: (client) => client.query(freshSession),
    })
    this.on('connect', (client) => client.on('error', () => {})) // the pending query rejects with it
    this.on('acquire', (client) => (this.busy = client))
    this.on('release', () => (this.busy = undefined))
  }

  async query(query, values) {
    if (query.text?.startsWith('INSERT INTO "_prisma_migrations"')) this.startedRow = query.values[0]
    const client = await this.connect()
    try {
      const result = await client.query(query, values)
      // The introspection reads catalogue columns of type "char", which the adapter refuses: see queryRaw.
      const isChar = result.fields.map((field) => field.dataTypeID === OID_CHAR)
      for (const field of result.fields) if (field.dataTypeID === OID_CHAR) field.dataTypeID = OID_TEXT
      this.charColumns.set(result.rows, isChar)
      return result
    } finally {
      client.release()
    }
  }

  /** Work of the caller's own on the connection; a transaction that it leaves open holds what the engine does next. */
  async use(work) {
    const client = await this.connect()
    try {
      return await work(client)
    } finally {
      client.release()
    }
  }

  /**
   * Runs a file as one simple query, which PostgreSQL makes one transaction, and with it the mark that the
   * file is done: whenever this process dies, a migration is applied and marked, or neither. In a transaction
   * of the caller's it becomes a part of that.
   */
  async runScript(script) {
    const row = this.startedRow
    this.startedRow = undefined
    const mark = row
      ? `; UPDATE "_prisma_migrations" SET finished_at = clock_timestamp() WHERE id = ${pg.escapeLiteral(row)}`
      : ''
    const client = await this.connect()
    const inTransaction = client.getTransactionStatus() === 'T'
    try {
      if (inTransaction) await client.query('SAVEPOINT script')
      await client.query(`${script}\n;${freshSession}${mark}`).catch(async (error) => {
        // A file of one statement that refuses any transaction (CREATE INDEX CONCURRENTLY) has to run bare.
        if (error.code !== '25001' || inTransaction) throw error
        await client.query(script)
        await client.query(freshSession)
      })
      if (inTransaction) await client.query('RELEASE SAVEPOINT script')
      else if (client.getTransactionStatus() !== 'I') throw new Error('The file leaves a transaction open.')
    } catch (error) {
      // The engine writes its log of a failure, which a failed transaction would refuse.
      if (inTransaction) await client.query('ROLLBACK TO SAVEPOINT script').catch(() => {})
      // The engine rewords the SQLSTATEs that it knows and drops the server's message, so both go as text.
      const state = error.code ? ` (SQLSTATE ${error.code})` : ''
      const line = error.position ? `, line ${script.slice(0, error.position).split('\n').length}` : ''
      const message = `${error.message}${state}${line}`
      throw new DriverAdapterError({ kind: 'postgres', code: 'N/A', severity: 'ERROR', message })
    } finally {
      if (!inTransaction && client.getTransactionStatus() !== 'I')
        await client.query('ROLLBACK').catch(() => {})
      client.release()
    }
  }

  /** Ends the connection at once, also one whose query is still unanswered. */
  close() {
    this.closed ??= Promise.all([this.busy?.end(), this.end()])
    return this.closed
  }
}

let wasmLoading

function loadWasm() {
  wasmLoading ??= (async () => {
    // The engine reports a panic here; thrown, it surfaces as an error that says what happened.
    globalThis.PRISMA_WASM_PANIC_REGISTRY ??= {
      set_message(message) {
        throw new Error(`Prisma's schema engine panicked: ${message}`)
      },
    }
    const gluePath = createRequire(import.meta.url).resolve('@prisma/schema-engine-wasm/schema_engine_bg')
    const bytes = await readFile(gluePath.replace(/\.js$/, '.wasm'))
    // The limit on the engine's lock is a timer that it never clears: ten more seconds before an exit.
    const unref = (run, ms) => setTimeout(run, ms).unref()
    const timers = Object.keys(glue).filter((name) => name.startsWith('__wbg_setTimeout_'))
    const imports = { ...glue, ...Object.fromEntries(timers.map((name) => [name, unref])) }
    const { instance } = await WebAssembly.instantiate(bytes, { './schema_engine_bg.js': imports })
    glue.__wbg_set_wasm(instance.exports)
    instance.exports.__wbindgen_start()
  })()
  return wasmLoading
}

/**
 * Starts an engine on one database and connects to it. `pgConfig` is a parsed pg ClientConfig, never a
 * `connectionString` (which would win over the shadow database's name); `datamodels` are [path, text] pairs;
 * `log` gets the engine's JSON log lines. Call `close()`, which ends every connection and drops shadow
 * databases, and `use(work)` for work of one's own on the engine's connection. Rejects with what pg or the
 * engine says.
 */
export async function createEngine({ pgConfig, datamodels, log = () => {} }) {
  await loadWasm()
  const open = new Set()

  async function connect(config, afterClose = async () => {}) {
    const pool = new OneConnection(config)
    const adapter = await new PrismaPg(pool).connect()
    const queryRaw = adapter.queryRaw.bind(adapter)
    adapter.queryRaw = async (query) => {
      const result = await queryRaw(query)
      const isChar = pool.charColumns.get(result.rows) ?? []
      // As text, a table with a CHECK constraint, or any in PostgreSQL 18, would make the engine panic.
      const columnTypes = result.columnTypes.map((type, i) => (isChar[i] ? ColumnTypeEnum.Character : type))
      return { ...result, columnTypes }
    }
    adapter.executeScript = (script) => pool.runScript(script)
    adapter.dispose = async () => {
      if (!open.delete(adapter)) return
      await pool.close()
      await afterClose()
    }
    open.add(adapter)
    return adapter
  }

  async function connectToShadowDb() {
    const database = `prisma_migrate_shadow_db_${crypto.randomUUID()}`
    const admin = await connect(pgConfig)
    await admin.underlyingDriver().query({ text: `CREATE DATABASE "${database}"` })
    return connect({ ...pgConfig, database }, async () => {
      await admin.underlyingDriver().query({ text: `DROP DATABASE IF EXISTS "${database}" WITH (FORCE)` })
      await admin.dispose()
    })
  }

  // Newest first: a shadow database is dropped over the connection opened before it.
  const close = async () => {
    for (const adapter of [...open].reverse()) await adapter.dispose()
  }
  let main
  const use = (work) => main.underlyingDriver().use(work)
  try {
    const factory = {
      provider: 'postgres',
      adapterName: '@prisma/adapter-pg',
      connect: async () => (main = await connect(pgConfig)),
      connectToShadowDb,
    }
    const options = { datamodels: datamodels?.length ? datamodels : undefined }
    const engine = await glue.SchemaEngine.new(options, log, bindMigrationAwareSqlAdapterFactory(factory))
    return { engine, use, close }
  } catch (error) {
    await close()
    throw error
  }
}
