import { AppError, notFound, validationFailed } from '../errors.js'
import { APP, type Caller, asApp, asCaller } from './as-caller.js'
import type { ServiceEvent } from './audit.js'
import type { Db, Tx } from './database.js'
import { forgetAttempts } from './throttle.js'
import {
  type User,
  type UserChange,
  changeUser,
  lockUser,
  namesWithoutKey,
  otherActiveOwner,
  setPassword,
  unlockUser,
  usernameKey,
} from './users.js'

/** How a user should be; a field that is absent stays as it is. */
export type WantedUser = { [Field in keyof UserChange]: UserChange[Field] | undefined }

/**
 * Changes what differs in a user that was read under lockOwners, with the audit row of `eventOf`; a user who is so
 * already comes back as read. Throws `conflict` for the last active owner and for a user who was changed meanwhile,
 * `validation_failed` where the role service would be given or taken.
 */
export async function applyChange(
  tx: Tx,
  user: User,
  wanted: WantedUser,
  eventOf: (change: UserChange) => ServiceEvent,
): Promise<User> {
  const change = differences(user, wanted)
  if (Object.keys(change).length === 0) return user
  const stays = (change.role ?? user.role) === 'owner' && (change.is_active ?? user.is_active)
  if (user.role === 'owner' && user.is_active && !stays) {
    const { rows } = await tx.executeQuery(otherActiveOwner(tx, user.id))
    if (rows.length === 0) throw new AppError('conflict', 'The last active owner must stay.')
  }
  if (change.role === 'service' || user.role === 'service') {
    if (change.role !== undefined)
      throw validationFailed('/role', 'service is a role for life: such a user has no password.')
  }
  await tx.executeQuery(lockUser(tx, user.id))
  const [next] = (await tx.executeQuery(changeUser(tx, user, change, eventOf(change)))).rows
  if (next === undefined) throw changedMeanwhile()
  return next
}

function differences(user: User, wanted: WantedUser): UserChange {
  const change: UserChange = {}
  if (wanted.role !== undefined && wanted.role !== user.role) change.role = wanted.role
  if (wanted.is_active !== undefined && wanted.is_active !== user.is_active)
    change.is_active = wanted.is_active
  if (wanted.must_change_password !== undefined && wanted.must_change_password !== user.must_change_password)
    change.must_change_password = wanted.must_change_password
  return change
}

/**
 * Another password for somebody else, who must change it; all sessions end. Throws `conflict` for the role service
 * and for a user who was changed since being read.
 */
export async function replacePassword(tx: Tx, user: User, hash: string, event: ServiceEvent): Promise<User> {
  if (user.role === 'service') throw new AppError('conflict', 'A user of the role service has no password.')
  const next = { hash, mustChange: true, keepSession: null }
  await tx.executeQuery(lockUser(tx, user.id))
  const [rotated] = (await tx.executeQuery(setPassword(tx, user, next, event))).rows
  if (rotated === undefined) throw changedMeanwhile()
  return rotated
}

/**
 * Forgets the failed sign-ins of a user, those that the older application counts as well. `accounts`: what the
 * buckets call the user. Resolves with how many buckets there were.
 */
export async function forgetFailures(
  tx: Tx,
  caller: Caller,
  user: User,
  accounts: readonly string[],
  event: ServiceEvent,
): Promise<number> {
  let forgotten = 0
  for (const account of accounts) forgotten += (await asCaller(tx, APP, forgetAttempts(tx, account))).length
  // Names its caller again, and what follows in this transaction is the caller's.
  const [unlocked] = await asCaller(tx, caller, unlockUser(tx, user.id, event))
  if (unlocked === undefined) throw notFound('user')
  return forgotten
}

/** Throws `conflict` for a name that a user without a key has, but for case: they would be told apart by nothing. */
export async function assertNoNamesake(db: Db, username: string): Promise<void> {
  const names = await asApp(db, namesWithoutKey(db))
  if (names.some((other) => usernameKey(other.username) === usernameKey(username)))
    throw new AppError('conflict', 'The username is taken.')
}

function changedMeanwhile(): AppError {
  return new AppError('conflict', 'The user was changed in the same moment; try again.')
}
