import { createHmac, createHash } from 'node:crypto'
import type { Context, MiddlewareHandler } from 'hono'
import { adoptionState, foreignFormats } from '../db/adoption.js'
import { asApp, asCaller } from '../db/as-caller.js'
import { recordSystemEvent } from '../db/audit.js'
import type { Db } from '../db/database.js'
import { type Buckets, beginAttempt, endAttempt } from '../db/throttle.js'
import { type User, credentialsByUsername, rehashPassword, usernameKey } from '../db/users.js'
import { AppError, validationFailed } from '../errors.js'
import { addressPrefix } from '../security/address-prefix.js'
import {
  type ForeignFormats,
  type HashFormat,
  type Passwords,
  assertPasswordReadable,
} from '../security/passwords.js'
import type { KeyRing } from '../security/secret-box.js'
import { isWellFormedText } from '../security/well-formed-text.js'
import type { AppEnv } from './context.js'
import { errorResponse } from './error-response.js'
import { userCaller } from './identify.js'

export interface SignInDeps {
  db: Db
  passwords: Passwords
  /** One-way, keyed: what an unknown user name becomes in the audit trail. */
  hmac: (text: string) => string
  /** Makes the names of the throttle's buckets, alike on all replicas. */
  bucketName: (text: string) => string
}

export interface Attempt {
  username: string
  password: string
  /** Where it comes from; null where that is not known, and then only the account counts. */
  address: string | null
}

/**
 * The active user with that password. Every way of giving a password goes through here: well-formed (422),
 * when there is room (429), not too often (429), and looked at in a time that tells nothing. Unknown, wrong
 * and inactive are one `invalid_credentials`, with an audit row that survives.
 */
export async function signIn(deps: SignInDeps, c: Context<AppEnv>, attempt: Attempt): Promise<User> {
  if (!isWellFormedText(attempt.username))
    throw validationFailed('/username', 'A name must be well-formed text without NUL.')
  assertPasswordReadable(attempt.password)
  return await deps.passwords.whenRoom(() => attemptOnce(deps, c, attempt))
}

/** For what anyone may ask: under a flood a refusal must cost no body, no look at the caller and no query. */
export function roomFirst({ passwords }: Pick<SignInDeps, 'passwords'>): MiddlewareHandler<AppEnv> {
  return async function roomFirst(c, next) {
    const refusal = passwords.refusal()
    // Not thrown: each of the layers above would catch it and throw it again.
    if (refusal !== undefined) return errorResponse(refusal, c)
    await next()
  }
}

async function attemptOnce(deps: SignInDeps, c: Context<AppEnv>, attempt: Attempt): Promise<User> {
  const { db, passwords } = deps
  const buckets = bucketsOf(deps, attempt.username, attempt.address)
  const [begun] = await asApp(db, beginAttempt(buckets), c.get('deadline'))
  const waitSeconds = begun?.wait_seconds ?? 1
  if (waitSeconds > 0) throw tooManyAttempts(waitSeconds)
  let outcome: 'succeeded' | 'failed' | 'void' = 'void'
  try {
    // In one turn, and so in one write.
    const [[found], { sideBySide, foreign }] = await Promise.all([
      asApp(db, credentialsByUsername(db, attempt.username), c.get('deadline')),
      storedFormats(db),
    ])
    const matches = await passwords.verify(attempt.password, found?.password_hash ?? null, foreign)
    outcome = found !== undefined && matches && found.is_active ? 'succeeded' : 'failed'
    if (found === undefined || outcome === 'failed') throw await failed(deps, c, attempt.username, found)
    const { password_hash: hash, ...user } = found
    if (!sideBySide && !passwords.isCurrent(hash)) {
      // The next sign-in tries again: this one has succeeded.
      await rehash(deps, c, user, attempt.password).catch((error: unknown) =>
        c.get('log').warn({ err: error }, 'a password could not be stored under a newer hash'),
      )
    }
    return user
  } finally {
    // Without the request's deadline: an attempt that nobody waits for any more counts all the same.
    await asApp(db, endAttempt(buckets, outcome))
  }
}

/**
 * A comparison that tells whether a password is that of an earlier request counts as an attempt, and as a failed one
 * when it says no: or the repetition of a request would be a way to guess.
 */
export async function countedComparison<T>(
  deps: SignInDeps,
  c: Context<AppEnv>,
  attempt: Pick<Attempt, 'username' | 'address'>,
  compare: () => T,
): Promise<T> {
  const buckets = bucketsOf(deps, attempt.username, attempt.address)
  const [begun] = await asApp(deps.db, beginAttempt(buckets), c.get('deadline'))
  const waitSeconds = begun?.wait_seconds ?? 1
  if (waitSeconds > 0) throw tooManyAttempts(waitSeconds)
  let outcome: 'failed' | 'void' = 'failed'
  try {
    const same = compare()
    outcome = 'void'
    return same
  } catch (error) {
    // A difference is a failure; that the first answer is not kept is none.
    if (error instanceof AppError && error.code === 'already_done') outcome = 'void'
    throw error
  } finally {
    await asApp(deps.db, endAttempt(buckets, outcome))
  }
}

async function failed(
  { db, hmac }: SignInDeps,
  c: Context<AppEnv>,
  username: string,
  found: User | undefined,
): Promise<AppError> {
  await asApp(
    db,
    recordSystemEvent(db, {
      correlation: c.get('correlation'),
      eventType: 'authentication',
      level: 'warning',
      action: 'auth.login_failed',
      target: found === undefined ? null : `users/${found.id}`,
      message: 'Sign-in failed',
      metadata:
        found === undefined
          ? { unknown_username_hmac: hmac(usernameKey(username)) }
          : { username: found.username },
    }),
  )
  return invalidCredentials()
}

async function rehash(
  { db, passwords }: SignInDeps,
  c: Context<AppEnv>,
  user: User,
  password: string,
): Promise<void> {
  const hash = await passwords.hash(password)
  const caller = userCaller(user, null, c.get('deadline'))
  await asCaller(
    db,
    caller,
    rehashPassword(db, user, hash, {
      caller,
      correlation: c.get('correlation'),
      eventType: 'user_action',
      level: 'info',
      action: 'user.rehash_password',
      target: `users/${user.id}`,
      message: 'The password is stored under a newer hash',
    }),
  )
}

/** As the older application reads it, while that one runs beside this one. */
export async function newHashFormat(db: Db): Promise<HashFormat> {
  const [adoption] = await asApp(db, adoptionState(db))
  return adoption?.is_finished === false ? 'werkzeug' : 'bcrypt'
}

async function storedFormats(db: Db): Promise<{ sideBySide: boolean; foreign: ForeignFormats }> {
  const [adoption] = await asApp(db, adoptionState(db))
  const none = { scrypt: false, pbkdf2: false }
  if (adoption === undefined) return { sideBySide: false, foreign: none }
  const [foreign = none] = await asApp(db, foreignFormats(db))
  return { sideBySide: !adoption.is_finished, foreign }
}

export function bucketsOf(
  { bucketName }: Pick<SignInDeps, 'bucketName'>,
  username: string,
  address: string | null,
): Buckets {
  const prefix = address === null ? null : addressPrefix(address)
  return {
    account: bucketName(`account:${usernameKey(username)}`),
    address: prefix === null ? null : bucketName(`address:${prefix}`),
  }
}

/** Keyed where there is a key; a random one would count anew after each restart and on each replica. */
export function bucketNames(ring: KeyRing | null): SignInDeps['bucketName'] {
  const key = ring?.keys.get(ring.writer)
  return (text) =>
    (key === undefined ? createHash('sha256') : createHmac('sha256', key))
      .update(`throttle:${text}`)
      .digest('hex')
      .slice(0, 32)
}

export function tooManyAttempts(waitSeconds: number): AppError {
  return new AppError('too_many_requests', 'Too many failed attempts; try again later.', {
    retryAfterSeconds: waitSeconds,
  })
}

export function invalidCredentials(): AppError {
  return new AppError('invalid_credentials', 'User name or password is wrong.', {
    headers: { 'www-authenticate': 'Bearer realm="gary"' },
  })
}
