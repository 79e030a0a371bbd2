import { Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import pg from 'pg'
import type { ClientConfig } from 'pg'
import { MigrationError } from './migration-error.js'
import { holdersOfTables } from './older-tables.js'
import { type FailureClass, classifyConnect, explainConnectFailure, sqlState } from './pg-errors.js'

export interface LockOptions {
  /** Parsed, of the login that owns the schema; unpooled, for two advisory locks live in its sessions. */
  pgConfig: ClientConfig
  log: (message: string) => void
  /** For how long a database that is not there yet, and tables that others hold, are tried again, in total. */
  waitMs: number
  /** Ends waiting and working at once; what was called then rejects with the signal's reason. */
  signal?: AbortSignal
}

/** Serializes the replicas of this service; the engine's lock gives up after ten seconds. */
const OUR_LOCK = 0x67617279
/** A lock that was waited for long enough, and a deadlock, which the older application may have won. */
const HELD = new Set(['55P03', '40P01'])

/** Failures to connect that pass by themselves: no server yet, one that starts, one that is full. */
const PASSING = new Set<FailureClass>(['lost', 'restarting', 'exhausted'])

/**
 * Runs `work` on a connection that alone migrates this database; waits for its turn. `stop` ends with that
 * connection or with the caller's signal. Rejects as `work` does, or with a MigrationError `unreachable` or `refused`.
 */
export async function underLock<T>(
  options: LockOptions,
  work: (lock: pg.Client, stop: AbortSignal) => Promise<T>,
): Promise<T> {
  const { log, signal } = options
  const lock = await connectWithin(options)
  const lost = new AbortController()
  lock.once('end', () => lost.abort(new MigrationError('failed', 'The connection with the lock was lost.')))
  const stop = signal ? AbortSignal.any([signal, lost.signal]) : lost.signal
  try {
    await lock.query('SET ROLE NONE; SET statement_timeout = 0; SET lock_timeout = 0')
    await takeLock(lock, OUR_LOCK, log)
    return await work(lock, stop)
  } catch (error) {
    if (stop.aborted) throw stop.reason
    throw error
  } finally {
    await lock.end()
  }
}

/** True when the older tables were held by another session for longer than they are waited for. */
export function isHeld(error: unknown): boolean {
  return HELD.has(sqlState(error) ?? '')
}

/**
 * Repeats work that found the older tables held by another session, for waitMs; whoever waits behind us comes to
 * its turn in between. Rejects with a MigrationError that names who holds them.
 */
export async function whenUnlocked<T>(
  lock: pg.Client,
  { log, waitMs, signal }: LockOptions,
  work: () => Promise<T>,
): Promise<T> {
  const endsAt = Date.now() + waitMs
  for (let attempt = 0; ; attempt++) {
    try {
      return await work()
    } catch (error) {
      if (!isHeld(error)) throw error
      const holders = await holdersOfTables(lock)
      const held = `other sessions hold the tables: ${holders.join(', ') || 'they have ended meanwhile'}`
      if (Date.now() > endsAt) {
        throw new MigrationError('failed', `Nothing was changed, for ${held}. End them and try again.`, error)
      }
      if (attempt === 0) log(`waiting, for ${held}`)
      await sleep(500, undefined, signal && { signal }).catch(() => {})
      signal?.throwIfAborted()
    }
  }
}

/** Taken for the session. */
export async function takeLock(
  client: pg.Client,
  key: number,
  log: (message: string) => void,
): Promise<void> {
  const { rows } = await client.query('SELECT pg_try_advisory_lock($1) AS taken', [key])
  if (rows[0]?.taken) return
  log('waiting for a migration that runs elsewhere')
  await client.query('SELECT pg_advisory_lock($1)', [key])
}

async function connectWithin({ pgConfig, waitMs, signal, log }: LockOptions): Promise<pg.Client> {
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
