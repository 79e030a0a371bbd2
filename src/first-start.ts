import { SCOPES, type Scope, createKey, deleteKey, keysOfUser } from './db/api-keys.js'
import { SYSTEM, asCaller } from './db/as-caller.js'
import { NO_REQUEST, type ServiceEvent, recordEvent } from './db/audit.js'
import type { Db, Tx } from './db/database.js'
import { forgetSetupTokens, storeSetupToken } from './db/setup.js'
import { inTransaction } from './db/transaction.js'
import { NO_PASSWORD, anyUser, createUser, lockSetup, userIdByName } from './db/users.js'
import { AppError } from './errors.js'
import { type Passwords, assertPasswordReadable } from './security/passwords.js'
import { createToken, hashToken, tokenKind } from './security/tokens.js'

export const SETUP_SECONDS = 3600
const SERVICE_USER = 'gary-zero'
const SERVICE_SCOPES: readonly Scope[] = SCOPES.filter(
  (scope) => !scope.startsWith('users:') && scope !== 'reports:read',
)

/**
 * The first owner, once: from AUTH_LOGIN and AUTH_PASSWORD, or by the set-up token that comes back (valid
 * for an hour, the former one with that void). null when there is a user already. Replicas may start at once.
 */
export async function ensureFirstOwner(
  db: Db,
  passwords: Passwords,
  given: { username: string; password: string } | undefined,
): Promise<string | null> {
  const [someone] = await asCaller(db, SYSTEM, anyUser(db))
  if (someone !== undefined) return null
  const passwordHash = given === undefined ? undefined : await hashOf(passwords, given.password)
  return await inTransaction(db, SYSTEM, async (tx) => {
    await tx.executeQuery(lockSetup(tx))
    const { rows } = await tx.executeQuery(anyUser(tx))
    if (rows.length > 0) return null
    if (given === undefined || passwordHash === undefined) return await newSetupToken(tx)
    await tx.executeQuery(forgetSetupTokens(tx))
    const owner = {
      username: given.username,
      passwordHash,
      role: 'owner',
      mustChangePassword: false,
    } as const
    await tx.executeQuery(
      createUser(tx, owner, atStart('user.create', 'First owner created from AUTH_LOGIN')),
    )
    return null
  })
}

/**
 * A set-up token that somebody asked for, told of by `event`; valid for an hour, the former one with that void. null
 * when there is a user already.
 */
export async function renewSetupToken(db: Db, event: ServiceEvent): Promise<string | null> {
  return await inTransaction(db, event.caller, async (tx) => {
    await tx.executeQuery(lockSetup(tx))
    const { rows } = await tx.executeQuery(anyUser(tx))
    if (rows.length > 0) return null
    const token = await newSetupToken(tx)
    await tx.executeQuery(recordEvent(tx, event))
    return token
  })
}

async function newSetupToken(tx: Tx): Promise<string> {
  const token = createToken('gzi_')
  await tx.executeQuery(forgetSetupTokens(tx))
  await tx.executeQuery(storeSetupToken(tx, hashToken(token), SETUP_SECONDS))
  return token
}

/** The command that makes the first owner with the token, of the service at this port. */
export function setupLine(token: string, port: number): string {
  const body = `{"setup_token":"${token}","username":"me","password":"CHOOSE-A-LONG-ONE"}`
  return `curl -s http://localhost:${port}/v1/setup -H 'content-type: application/json' -d '${body}'`
}

async function hashOf(passwords: Passwords, password: string): Promise<string> {
  assertPasswordReadable(password, 'AUTH_PASSWORD')
  return await passwords.hash(password)
}

/** The keys of SERVICE_API_KEY: two at most, for rotation. Throws when one has not the form of a key. */
export function parseServiceKeys(text: string): string[] {
  const keys = text.split(',').map((key) => key.trim())
  if (keys.length > 2 || !keys.every((key) => tokenKind(key) === 'api_key')) {
    throw new AppError(
      'invalid_request',
      'must be one or two keys of the form gzk_ and 43 characters of base64url',
    )
  }
  return keys
}

/** The user gary-zero with exactly these keys; a key that is no longer named is revoked. Only hashes are stored. */
export async function ensureServiceUser(db: Db, keys: readonly string[]): Promise<void> {
  await inTransaction(db, SYSTEM, async (tx) => {
    await tx.executeQuery(lockSetup(tx))
    const found = (await tx.executeQuery(userIdByName(tx, SERVICE_USER))).rows[0]
    if (found !== undefined && found.role !== 'service') {
      if (keys.length === 0) return
      throw new AppError(
        'invalid_request',
        `SERVICE_API_KEY: there is a user named ${SERVICE_USER} who is no service and would hold its keys`,
      )
    }
    const userId = found?.id ?? (keys.length === 0 ? undefined : await createServiceUser(tx))
    if (userId === undefined) return
    const wanted = new Map(keys.map((key) => [fingerprint(key), key]))
    for (const { id, name } of (await tx.executeQuery(keysOfUser(tx, userId))).rows) {
      if (wanted.delete(name) || !name.startsWith('SERVICE_API_KEY ')) continue
      await tx.executeQuery(deleteKey(tx, id, atStart('api_key.revoke', `Key of ${SERVICE_USER} revoked`)))
    }
    for (const [name, key] of wanted) {
      const row = { userId, name, prefix: key.slice(0, 8), keyHash: hashToken(key), scopes: SERVICE_SCOPES }
      await tx.executeQuery(createKey(tx, row, atStart('api_key.create', `Key of ${SERVICE_USER} created`)))
    }
  })
}

async function createServiceUser(tx: Tx): Promise<number> {
  const user = {
    username: SERVICE_USER,
    passwordHash: NO_PASSWORD,
    role: 'service',
    mustChangePassword: false,
  } as const
  const { rows } = await tx.executeQuery(
    createUser(tx, user, atStart('user.create', `User ${SERVICE_USER} created`)),
  )
  const [created] = rows
  if (created === undefined) throw new Error('the service user was not created')
  return created.id
}

/** Tells the keys apart by name without their hash, which nobody but gary_app may read. */
function fingerprint(key: string): string {
  return `SERVICE_API_KEY ${hashToken(`name of ${key}`).slice(0, 12)}`
}

function atStart(action: string, message: string): ServiceEvent {
  return {
    caller: SYSTEM,
    correlation: NO_REQUEST,
    eventType: 'system_event',
    level: 'info',
    action,
    target: null,
    message,
  }
}
