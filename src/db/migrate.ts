import { readFile, readdir } from 'node:fs/promises'
import { Socket } from 'node:net'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type { MigrationDirectory, MigrationList } from '@prisma/schema-engine-wasm/schema_engine_bg'
import pg from 'pg'
import type { ClientConfig } from 'pg'
import { type FailureClass, classifyConnect, explainConnectFailure } from './pg-errors.js'

export interface MigrateOptions {
  /** Parsed, of the login that owns the schema; unpooled, for two advisory locks live in its sessions. */
  pgConfig: ClientConfig
  /** Such as prisma/migrations. */
  folder: string
  log: (message: string) => void
  /** For how long a database that is not there yet is tried again, in total. */
  waitMs: number
  /** Ends waiting and working at once; `migrate` then rejects with the signal's reason. */
  signal?: AbortSignal
}

export interface MigrateResult {
  applied: string[]
  /** Applied by a newer version of the service: not in this folder. */
  unknown: string[]
}

export type MigrationErrorCode = 'unreachable' | 'refused' | 'edited' | 'failed'

/** For the operator: names host, user, database, migration and the server's words, never the password. */
export class MigrationError extends Error {
  override readonly name = 'MigrationError'
  readonly code: MigrationErrorCode
  constructor(code: MigrationErrorCode, message: string, cause?: unknown) {
    super(message, { cause })
    this.code = code
  }
}

/** Serializes the replicas of this service; the engine's lock gives up after ten seconds. */
const OUR_LOCK = 0x67617279
/** The engine's own, which Prisma's CLI takes too, and which outlives a killed process until its file ends. */
const ENGINE_LOCK = 72707369

/** Failures to connect that pass by themselves: no server yet, one that starts, one that is full. */
const PASSING = new Set<FailureClass>(['lost', 'restarting', 'exhausted'])

/**
 * Brings the database to the state of the folder, as `prisma migrate deploy` would and with the same
 * `_prisma_migrations`; replicas may do so at once. Each file is applied whole and marked, or not at all:
 * what a killed or failed run left open is run again. Waits for a database that is not there yet.
 * Rejects with a MigrationError: `unreachable` after waitMs; `refused` (login, database, TLS) at once;
 * `edited` when an applied file has changed; `failed` for one that the server refuses.
 */
export async function migrate(options: MigrateOptions): Promise<MigrateResult> {
  const { pgConfig, folder, log, signal } = options
  const list = await readMigrations(folder)
  const lock = await connectWithin(options)
  const lost = new AbortController()
  lock.once('end', () => lost.abort(new MigrationError('failed', 'The connection with the lock was lost.')))
  const stop = signal ? AbortSignal.any([signal, lost.signal]) : lost.signal
  try {
    await lock.query('SET ROLE NONE; SET statement_timeout = 0; SET lock_timeout = 0')
    await takeLock(lock, OUR_LOCK, log)
    for (;;) {
      await rollBackUnfinished(lock, log)
      try {
        return await applyAll({ ...pgConfig, stream: () => new Socket({ signal: stop }) }, list, log)
      } catch (error) {
        if (stop.aborted) throw error
        // P1002: somebody else has the engine's lock, so an unfinished row may be theirs: wait again.
        if (codeOf(error) === 'P1002') continue
        await rollBackUnfinished(lock, log).catch(() => {}) // else the next run does it
        throw error
      }
    }
  } catch (error) {
    if (stop.aborted) throw stop.reason
    throw error
  } finally {
    await lock.end()
  }
}

/**
 * The folder's migrations that the database has not; none means up to date. One query, for a start-up or
 * readiness check; rejects with what the query rejects with, but a missing table means none applied.
 */
export async function pendingMigrations(
  db: { query(sql: string): Promise<{ rows: { migration_name: string }[] }> },
  folder: string,
): Promise<string[]> {
  const sql =
    'SELECT migration_name FROM _prisma_migrations WHERE finished_at IS NOT NULL AND rolled_back_at IS NULL'
  const { rows } = await db.query(sql).catch((error: unknown) => {
    if (codeOf(error) === '42P01') return { rows: [] }
    throw error
  })
  const applied = new Set(rows.map((row) => row.migration_name))
  const { migrationDirectories } = await readMigrations(folder)
  return migrationDirectories.map((directory) => directory.path).filter((name) => !applied.has(name))
}

async function applyAll(
  pgConfig: ClientConfig,
  migrationsList: MigrationList,
  log: (message: string) => void,
): Promise<MigrateResult> {
  const filters = { externalTables: [], externalEnums: [] }
  let current: string | undefined
  const { createEngine } = await import('../../prisma/engine.mjs') // five megabytes, only when used
  const { engine, close } = await createEngine({
    pgConfig,
    log(line) {
      current = /"Applying `([^`]+)`"/.exec(line)?.[1] ?? current
      if (line.includes('"Applying `')) log(`applying migration ${current}`)
    },
  })
  try {
    const found = await engine.diagnoseMigrationHistory({
      migrationsList,
      filters,
      optInToShadowDatabase: false,
    })
    if (found.editedMigrationNames.length > 0) {
      const names = found.editedMigrationNames.join(', ')
      throw new MigrationError('edited', `Changed since it was applied, restore the file: ${names}`)
    }
    const { history } = found
    const unknown = history && 'unpersistedMigrationNames' in history ? history.unpersistedMigrationNames : []
    const { appliedMigrationNames: applied } = await engine.applyMigrations({ migrationsList, filters })
    return { applied, unknown }
  } catch (error) {
    if (error instanceof MigrationError || codeOf(error) === 'P1002') throw error
    const what = current === undefined ? 'The migrations' : `Migration ${current}`
    throw new MigrationError('failed', `${what} failed: ${serverMessage(error)}`, error)
  } finally {
    await close()
  }
}

/** What the server said, without the engine's frame and Rust trace. */
function serverMessage(error: unknown): string {
  const text = error instanceof Error ? error.message : String(error)
  return (text.split('\n   0: ')[0] ?? text)
    .replace(/^external connector error\n/, '')
    .replace(/^Error querying the database: /, '')
}

/** Only under both locks is a row without an end surely nobody's, and its file surely not applied. */
async function rollBackUnfinished(lock: pg.Client, log: (message: string) => void): Promise<void> {
  await takeLock(lock, ENGINE_LOCK, log)
  const table = await lock.query("SELECT to_regclass('_prisma_migrations') AS name")
  if (table.rows[0]?.name) {
    const { rows } = await lock.query(
      `UPDATE _prisma_migrations SET rolled_back_at = clock_timestamp()
       WHERE finished_at IS NULL AND rolled_back_at IS NULL RETURNING migration_name`,
    )
    for (const row of rows) log(`migration ${row.migration_name} was not finished: marked as rolled back`)
  }
  await lock.query('SELECT pg_advisory_unlock($1)', [ENGINE_LOCK])
}

async function takeLock(client: pg.Client, key: number, log: (message: string) => void): Promise<void> {
  const { rows } = await client.query('SELECT pg_try_advisory_lock($1) AS taken', [key])
  if (rows[0]?.taken) return
  log('waiting for a migration that runs elsewhere')
  await client.query('SELECT pg_advisory_lock($1)', [key])
}

async function connectWithin({ pgConfig, waitMs, signal, log }: MigrateOptions): Promise<pg.Client> {
  const endsAt = Date.now() + waitMs
  const where = `${pgConfig.host ?? 'localhost'}:${pgConfig.port ?? 5432}`
  for (let attempt = 0; ; attempt++) {
    signal?.throwIfAborted()
    const leftMs = endsAt - Date.now()
    const client = new pg.Client({
      keepAlive: true,
      ...pgConfig,
      connectionTimeoutMillis: Math.min(pgConfig.connectionTimeoutMillis || 10_000, Math.max(leftMs, 1_000)),
      stream: () => new Socket(signal ? { signal } : {}),
    })
    client.on('error', () => {}) // a pending query rejects with it, and 'end' follows
    try {
      await client.connect()
      return client
    } catch (error) {
      signal?.throwIfAborted()
      const what = `user "${pgConfig.user}", database "${pgConfig.database}" at ${where}`
      const reason = explainConnectFailure(error)
      if (!PASSING.has(classifyConnect(error))) {
        throw new MigrationError('refused', `Refused for ${what}: ${reason}.`, error)
      }
      const delayMs = Math.min(250 * 2 ** attempt, 5_000) * (0.5 + Math.random() / 2)
      if (delayMs > leftMs) {
        throw new MigrationError('unreachable', `Not reached in ${waitMs} ms, ${what}: ${reason}.`, error)
      }
      if (attempt === 0) log(`waiting for the database: ${reason}`)
      await sleep(delayMs, undefined, signal && { signal }).catch(() => {}) // the loop throws the reason
    }
  }
}

function codeOf(error: unknown): string | undefined {
  return error instanceof Error && 'code' in error && typeof error.code === 'string' ? error.code : undefined
}

/** The folder as the engine wants it, read and ordered as Prisma's CLI does. */
async function readMigrations(folder: string): Promise<MigrationList> {
  const baseDir = path.resolve(folder)
  const entries = await readdir(baseDir, { withFileTypes: true })
  const names = entries.filter((entry) => entry.isDirectory()).map((entry) => entry.name)
  const directories = names
    .sort((a, b) => a.localeCompare(b))
    .map(async (name): Promise<MigrationDirectory> => {
      const value = await readFile(path.join(baseDir, name, 'migration.sql'), 'utf8')
      return { path: name, migrationFile: { path: 'migration.sql', content: { tag: 'ok', value } } }
    })
  const lockfile = await readFile(path.join(baseDir, 'migration_lock.toml'), 'utf8').catch(() => null)
  return {
    baseDir,
    lockfile: { path: 'migration_lock.toml', content: lockfile },
    shadowDbInitScript: '',
    migrationDirectories: await Promise.all(directories),
  }
}
