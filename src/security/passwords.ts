import { randomBytes } from 'node:crypto'
import * as bcrypt from '@node-rs/bcrypt'
import { validationFailed } from '../errors.js'
import { createBulkhead } from '../resilience/bulkhead.js'
import { isWellFormedText } from './well-formed-text.js'

/** bcrypt reads no further (OWASP Password Storage Cheat Sheet, "Input Limits of bcrypt"). */
const MAX_PASSWORD_BYTES = 72

// One hash of cost 31 holds a thread for a day; nobody stores one above this on purpose.
const MAX_VERIFIED_COST = 16

const ACCEPTED_FORM = /^\$2[aby]\$\d\d\$[./A-Za-z0-9]{53}$/

export interface PasswordOptions {
  /** log2 of bcrypt's rounds; 12 takes about a quarter of a second. */
  cost: number
  /** Default: hashingConcurrency(). */
  maxConcurrent?: number
  /** Default 32. Whoever comes later gets `too_many_requests`. */
  maxQueued?: number
  /** Default 10 000. */
  maxWaitMs?: number
}

export interface Passwords {
  /** A `$2b$` hash. Rejects with `validation_failed` for a text that bcrypt would not take whole. */
  hash(password: string): Promise<string>
  /**
   * Always one bcrypt run, so that its time does not tell whether the user exists (OWASP Authentication Cheat
   * Sheet): no hash, a malformed hash and a password that bcrypt would not take whole are checked against a
   * dummy of the current cost and are false. Rejects only with `too_many_requests`.
   */
  verify(password: string, storedHash: string | null): Promise<boolean>
}

/**
 * How many hashes may run at once so that DNS look-ups and files keep threads of libuv's pool: two fewer than it
 * has, at least 1. Takes UV_THREADPOOL_SIZE, whose default is 4.
 */
export function hashingConcurrency(threadPoolSize = 4): number {
  return Math.max(1, threadPoolSize - 2)
}

/** bcrypt behind a bulkhead. Throws RangeError for a cost that bcrypt does not know. */
export function createPasswords(options: PasswordOptions): Passwords {
  const { cost, maxConcurrent = hashingConcurrency(), maxQueued = 32, maxWaitMs = 10_000 } = options
  const bulkhead = createBulkhead({ maxConcurrent, maxQueued, maxWaitMs, setTimer })
  const dummyHash = createDummyHash(cost)

  return {
    async hash(password) {
      assertPasswordReadable(password)
      return await bulkhead.run(() => bcrypt.hash(password, { cost }))
    },
    async verify(password, storedHash) {
      if (storedHash !== null && isAcceptedHash(storedHash, cost) && passwordFault(password) === null) {
        return await bulkhead.run(() => bcrypt.verify(password, storedHash))
      }
      await bulkhead.run(() => bcrypt.verify('', dummyHash))
      return false
    },
  }
}

/** Refuses a password that bcrypt would cut or that UTF-8 would change: `validation_failed` at `path`. For log-in. */
export function assertPasswordReadable(password: string, path = '/password'): void {
  const fault = passwordFault(password)
  if (fault !== null) throw validationFailed(path, fault)
}

export interface PasswordPolicy {
  /** In code points, default 12 (NIST SP 800-63B asks for at least 8, and counts code points). */
  minLength?: number
  path?: string
}

/** What a new password must be: readable, and not short. Throws `validation_failed` at `path`. */
export function assertPasswordAcceptable(password: string, policy: PasswordPolicy = {}): void {
  const { minLength = 12, path = '/password' } = policy
  assertPasswordReadable(password, path)
  if (Array.from(password).length < minLength) {
    throw validationFailed(path, `A password needs at least ${minLength} characters.`)
  }
}

function passwordFault(password: string): string | null {
  if (Buffer.byteLength(password, 'utf8') > MAX_PASSWORD_BYTES) {
    return `A password has at most ${MAX_PASSWORD_BYTES} bytes in UTF-8.`
  }
  if (!isWellFormedText(password)) return 'A password must be well-formed text without NUL.'
  return null
}

function isAcceptedHash(storedHash: string, currentCost: number): boolean {
  if (!ACCEPTED_FORM.test(storedHash)) return false
  try {
    // bcrypt's own parser: it refuses more than the form shows, and verify would then return at once.
    return bcrypt.parseOptions(storedHash).cost <= Math.max(currentCost, MAX_VERIFIED_COST)
  } catch {
    return false
  }
}

// Unrefed: whoever waits for a hash is held by a request, not by this timer.
function setTimer(callback: () => void, ms: number): () => void {
  const timer = setTimeout(callback, ms).unref()
  return () => clearTimeout(timer)
}

// Real salt and checksum made at the lowest cost (1 ms), relabelled: verifying it takes the full time of `cost`.
function createDummyHash(cost: number): string {
  if (!Number.isInteger(cost) || cost < 4 || cost > 31) throw new RangeError('cost must be 4 to 31')
  const cheapHash = bcrypt.hashSync(randomBytes(32), { cost: 4 })
  return cheapHash.replace('$04$', `$${String(cost).padStart(2, '0')}$`)
}
