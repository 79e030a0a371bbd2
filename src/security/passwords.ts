import { availableParallelism } from 'node:os'
import { type AppError, validationFailed } from '../errors.js'
import { createBulkhead } from '../resilience/bulkhead.js'
import type { HashTask, Strength } from './hash-task.js'
import { expectedWords, guessFault, shapeFault } from './password-policy.js'
import { WERKZEUG_SCRYPT, parseStoredHash } from './stored-hash.js'
import { type ForeignFormats, verificationPlan } from './verification-plan.js'
import { isWellFormedText } from './well-formed-text.js'
import { createWorkerPool } from './worker-pool.js'

export type { ForeignFormats } from './verification-plan.js'

/** bcrypt reads no further (OWASP Password Storage Cheat Sheet, "Input Limits of bcrypt"). */
const MAX_PASSWORD_BYTES = 72
const MAX_DEFAULT_THREADS = 8
const MAX_QUEUED_NEW = 64
const MAX_QUEUED = 1000
const IDLE_MS = 30_000
/** One bcrypt on an ordinary core is about 0.055 ms times 2^cost: 225 ms at cost 12. */
const MS_PER_ROUND = 0.055

/** `$2b$` of the current cost, or what Werkzeug 3 writes: `scrypt:32768:8:1$salt$hex`. */
export type HashFormat = 'bcrypt' | 'werkzeug'

export interface PasswordOptions {
  /** log2 of bcrypt's rounds; 12 takes about a quarter of a second. */
  cost: number
  /**
   * Of new passwords, in code points; default 12 (NIST SP 800-63B section 3.1.1.2 counts code points, and wants 15
   * of a password that stands alone, 8 of one beside a second factor).
   */
  minLength?: number | undefined
  /** Threads that hash; default one a core, at most 8. They start with the first hash, at low priority on Linux. */
  threads?: number | undefined
}

export interface Passwords {
  /**
   * A hash of the password, by default `$2b$`. Rejects with `validation_failed` for a text that bcrypt would not take
   * whole, and with `too_many_requests` when 64 wait already.
   */
  hash(password: string, format?: HashFormat): Promise<string>
  /**
   * Whether the hash is of this password; the work is that of verificationPlan, also for no hash, a malformed hash
   * and a password that bcrypt would not take whole, which are false. Ask within whenRoom; by itself it rejects with
   * `too_many_requests` only when 1000 wait already.
   */
  verify(password: string, storedHash: string | null, foreign?: ForeignFormats): Promise<boolean>
  /** False for a hash that should be made anew on the next successful sign-in: another format, another cost. */
  isCurrent(storedHash: string): boolean
  /**
   * What a new password must be: readable, long enough, and neither common nor built on the user name. Rejects with
   * `validation_failed` at `path`, with the reason, and with `too_many_requests` as hash() does.
   */
  assertAcceptable(password: string, about?: { username?: string; path?: string }): Promise<void>
  /**
   * Runs what anyone may ask for (sign-in, verify, ...) when there is room, which is about one second of hashing in
   * the queue: else rejects at once with `too_many_requests` and Retry-After, and the task is never called.
   */
  whenRoom<T>(task: () => Promise<T>): Promise<T>
  /** What whenRoom would reject with now, if it would: to refuse before anything is read. It keeps no place. */
  refusal(): AppError | undefined
  /** Ends the threads; whoever still waits for a hash gets `unavailable`. */
  close(): Promise<void>
}

/** Hashing off the event loop and off libuv's pool. Throws RangeError for a cost that bcrypt does not know. */
export function createPasswords({
  cost,
  minLength = 12,
  threads = Math.min(MAX_DEFAULT_THREADS, availableParallelism()),
}: PasswordOptions): Passwords {
  if (!Number.isInteger(cost) || cost < 4 || cost > 31) throw new RangeError('cost must be 4 to 31')
  const script = new URL('./hash-worker.mjs', import.meta.url)
  // Two bulkheads stand before it, so that neither those who sign in nor those who set passwords can fill it alone.
  const pool = createWorkerPool({ script, threads, maxQueued: threads, idleMs: IDLE_MS })
  const newPasswords = createBulkhead({ maxConcurrent: threads, maxQueued: MAX_QUEUED_NEW })
  const verifications = createBulkhead({ maxConcurrent: threads, maxQueued: MAX_QUEUED })
  const room = createBulkhead({ maxConcurrent: threads + queueLength(cost, threads), maxQueued: 0 })
  const run = (task: HashTask): Promise<unknown> => pool.run(task)

  return {
    async hash(password, format = 'bcrypt') {
      assertPasswordReadable(password)
      const task: HashTask =
        format === 'bcrypt'
          ? { kind: 'bcrypt', password, cost }
          : { kind: 'scrypt', password, ...WERKZEUG_SCRYPT }
      return (await newPasswords.run(() => run(task))) as string
    },
    async verify(password, storedHash, foreign = { scrypt: false, pbkdf2: false }) {
      const readable = passwordFault(password) === null
      const stored = readable && storedHash !== null ? parseStoredHash(storedHash, cost) : null
      const checks = verificationPlan(stored, cost, foreign)
      const task: HashTask = { kind: 'verify', password: readable ? password : '', checks }
      return (await verifications.run(() => run(task))) as boolean
    },
    isCurrent(storedHash) {
      const stored = parseStoredHash(storedHash, cost)
      return stored?.kind === 'bcrypt' && stored.cost === cost && storedHash.startsWith('$2b$')
    },
    async assertAcceptable(password, { username, path = '/password' } = {}) {
      assertPasswordReadable(password, path)
      const fault =
        shapeFault(password, minLength, username) ?? guessFault(await strength(password, username))
      if (fault !== null) throw validationFailed(path, fault)
    },
    whenRoom: (task) => room.run(task),
    refusal: () => room.refusal(),
    close: () => pool.close(),
  }

  async function strength(password: string, username: string | undefined): Promise<Strength> {
    const task: HashTask = { kind: 'strength', password, userInputs: expectedWords(username) }
    return (await newPasswords.run(() => run(task))) as Strength
  }
}

/**
 * How many may wait besides those who are hashed: about one second of work, since whoever waits longer has gone
 * away; never fewer than there are threads.
 */
export function queueLength(cost: number, threads: number): number {
  const msPerHash = MS_PER_ROUND * 2 ** cost
  return Math.min(MAX_QUEUED, Math.max(threads, Math.ceil((threads * 1000) / msPerHash)))
}

/** Refuses a password that bcrypt would cut or that UTF-8 would change: `validation_failed` at `path`. For sign-in. */
export function assertPasswordReadable(password: string, path = '/password'): void {
  const fault = passwordFault(password)
  if (fault !== null) throw validationFailed(path, fault)
}

function passwordFault(password: string): string | null {
  if (Buffer.byteLength(password, 'utf8') > MAX_PASSWORD_BYTES) {
    return `A password has at most ${MAX_PASSWORD_BYTES} bytes in UTF-8.`
  }
  if (!isWellFormedText(password)) return 'A password must be well-formed text without NUL.'
  return null
}
