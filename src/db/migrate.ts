import { readFile, readdir } from 'node:fs/promises'
import { Socket } from 'node:net'
import path from 'node:path'
import type { MigrationDirectory, MigrationList } from '@prisma/schema-engine-wasm/schema_engine_bg'
import pg from 'pg'
import type { ClientConfig } from 'pg'
import { type AdoptionSettings, type Telling, continueAdoption, copyOlderTables } from './adopt.js'
import { MigrationError } from './migration-error.js'
import { type LockOptions, isHeld, takeLock, underLock, whenUnlocked } from './migration-lock.js'
import { type OlderTables, findOlderTables, moveOlderTables } from './older-tables.js'

export interface MigrateOptions extends LockOptions {
  /** Such as prisma/migrations. */
  folder: string
  /** What is left to the operator; `log` where it is absent. */
  warn?: (message: string) => void
  /** For a database of the older application, whose tables are taken over; by default without owner and key. */
  adoption?: AdoptionSettings
}

export interface MigrateResult {
  applied: string[]
  /** Applied by a newer version of the service: not in this folder. */
  unknown: string[]
}

/** The engine's own, which Prisma's CLI takes too, and which outlives a killed process until its file ends. */
const ENGINE_LOCK = 72707369

/**
 * Brings the database to the state of the folder, as `prisma migrate deploy` would and with the same
 * `_prisma_migrations`; replicas may do so at once. Each file is applied whole and marked, or not at all:
 * what a killed or failed run left open is run again. Where it finds the tables of the older application, all of
 * it and taking them over (adopt.ts) are one transaction. Waits for a database that is not there yet.
 * Rejects with a MigrationError: `unreachable` after waitMs; `refused` (login, database, TLS, older tables that
 * cannot be taken over) at once; `edited` when an applied file has changed; `failed` for one that the server refuses.
 */
export async function migrate(options: MigrateOptions): Promise<MigrateResult> {
  const { pgConfig, folder, log } = options
  const adoption = options.adoption ?? { ownerName: undefined, ring: null }
  const list = await readMigrations(folder)
  const names = list.migrationDirectories.map((directory) => directory.path)
  return await underLock(options, async (lock, stop) => {
    const config = { ...pgConfig, stream: () => new Socket({ signal: stop }) }
    for (;;) {
      await rollBackUnfinished(lock, log)
      const older = await findOlderTables(lock, names)
      try {
        if (older === null) {
          const result = await applyAll(config, list, log)
          tell(options, await whenUnlocked(lock, options, () => continueAdoption(lock, adoption.ring)))
          return result
        }
        log('found the tables of the older application: taking them over, in one transaction')
        const run = takeOver(older, adoption)
        const result = await whenUnlocked(lock, options, () => applyAll(config, list, log, run))
        tell(options, run.telling)
        return result
      } catch (error) {
        if (stop.aborted) throw error
        // P1002: somebody else has the engine's lock, so an unfinished row may be theirs: wait again.
        if (codeOf(error) === 'P1002') continue
        await rollBackUnfinished(lock, log).catch(() => {}) // else the next run does it
        throw error
      }
    }
  })
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

function tell({ log, warn = log }: MigrateOptions, { said, warned }: Telling): void {
  for (const line of said) log(line)
  for (const line of warned) warn(line)
}

/** What is done before and after the migrations, on their connection and in one transaction with them. */
interface TakeOver {
  before(client: pg.ClientBase): Promise<void>
  after(client: pg.ClientBase): Promise<void>
  telling: Telling
}

function takeOver(older: OlderTables, adoption: AdoptionSettings): TakeOver {
  return {
    telling: { said: [], warned: [] },
    before: moveOlderTables,
    async after(client) {
      this.telling = await copyOlderTables(client, older, adoption)
      await client.query('COMMIT')
    },
  }
}

async function applyAll(
  pgConfig: ClientConfig,
  migrationsList: MigrationList,
  log: (message: string) => void,
  around?: TakeOver,
): Promise<MigrateResult> {
  const filters = { externalTables: [], externalEnums: [] }
  let current: string | undefined
  const { createEngine } = await import('../../prisma/engine.mjs') // five megabytes, only when used
  const { engine, use, close } = await createEngine({
    pgConfig,
    log(line) {
      current = /"Applying `([^`]+)`"/.exec(line)?.[1] ?? current
      if (line.includes('"Applying `')) log(`applying migration ${current}`)
    },
  })
  try {
    if (around !== undefined) await use((client) => around.before(client)).catch(takingOverFailed)
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
    if (around !== undefined) await use((client) => around.after(client)).catch(takingOverFailed)
    return { applied, unknown }
  } catch (error) {
    if (error instanceof MigrationError || codeOf(error) === 'P1002' || isHeld(error)) throw error
    const what = current === undefined ? 'The migrations' : `Migration ${current}`
    const untouched = around === undefined ? '' : '; nothing was changed'
    throw new MigrationError('failed', `${what} failed: ${serverMessage(error)}${untouched}`, error)
  } finally {
    await close()
  }
}

function takingOverFailed(error: unknown): never {
  if (isHeld(error)) throw error
  // Of a connection that broke during COMMIT nobody knows.
  const untouched =
    error instanceof pg.DatabaseError && error.severity === 'ERROR' ? '; nothing was changed' : ''
  throw new MigrationError(
    'failed',
    `Taking over the older tables failed: ${serverMessage(error)}${untouched}`,
    error,
  )
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
