import { type Compilable, sql } from 'kysely'
import { violatesUnique } from './pg-errors.js'
import { AppError } from '../errors.js'
import { type ServiceEvent, withAudit } from './audit.js'
import type { Db, Tx } from './database.js'

export const ROLES = [
  'owner',
  'admin',
  'user',
  'guest',
  'subordinate_agent',
  'analyst',
  'auditor',
  'service',
] as const
export type Role = (typeof ROLES)[number]

/** A user as callers see one; never with the hash. */
export interface User {
  id: number
  username: string
  role: Role
  is_active: boolean
  must_change_password: boolean
  created_at: string
  updated_at: string
  last_login: string | null
  password_changed_at: string
  version: number
}

const USER_COLUMNS = [
  'id',
  'username',
  'role',
  'is_active',
  'must_change_password',
  'created_at',
  'updated_at',
  'last_login',
  'password_changed_at',
  'version',
] as const

/** A hash that no password has: for users who sign in by keys only. */
export const NO_PASSWORD = '!'

/** NFKC and trimmed: what is stored and shown (Unicode TR 15). */
export function normalizeUsername(name: string): string {
  return name.normalize('NFKC').trim()
}

/** What names are compared by: two names that differ only in case are one. */
export function usernameKey(name: string): string {
  return normalizeUsername(name).toLowerCase()
}

/** The only query that reads a password hash. For asApp. */
export function credentialsByUsername(
  db: Db,
  username: string,
): Compilable<User & { password_hash: string }> {
  return signingInAs(db, username).select('password_hash').$narrowType<{ role: Role }>()
}

/** Who signs in by that name, when the caller may see that user. */
export function userByName(db: Db | Tx, username: string): Compilable<User> {
  return signingInAs(db, username).$narrowType<{ role: Role }>()
}

/**
 * A row whose name is written exactly so comes first; rows that other programs inserted have no key and are found
 * by the exact name alone.
 */
function signingInAs(db: Db | Tx, username: string) {
  const name = normalizeUsername(username)
  return db
    .selectFrom('auth_users')
    .select(USER_COLUMNS)
    .where((eb) =>
      eb.or([
        eb('username', '=', name),
        // Adopted names are kept as they were written, which may not be how they are written today.
        eb('username', '=', username),
        eb('username_key', '=', usernameKey(username)),
      ]),
    )
    .orderBy((eb) =>
      eb.case().when('username', '=', username).then(0).when('username', '=', name).then(1).else(2).end(),
    )
    .limit(1)
}

/** Somebody who could own the service: whether set-up is still open. That of SERVICE_API_KEY is made at start. */
export function anyUser(db: Db | Tx): Compilable<{ id: number }> {
  return db.selectFrom('auth_users').select('id').where('role', '<>', 'service').limit(1)
}

/** The id behind a name, compared without case. */
export function userIdByName(db: Db | Tx, username: string): Compilable<{ id: number; role: string }> {
  return db.selectFrom('auth_users').select(['id', 'role']).where('username_key', '=', usernameKey(username))
}

/** Names that other programs inserted, which no unique key holds. For asApp. */
export function namesWithoutKey(db: Db): Compilable<{ username: string }> {
  return db.selectFrom('auth_users').select('username').where('username_key', 'is', null)
}

/** Whom a key acts for. For asApp. */
export function activeUser(db: Db, id: number): Compilable<{ id: number; role: Role }> {
  return db
    .selectFrom('auth_users')
    .select(['id', 'role'])
    .where('id', '=', id)
    .where('is_active', '=', true)
    .$narrowType<{ role: Role }>()
}

/** The user, when the caller may see one. */
export function userById(db: Db | Tx, id: number): Compilable<User> {
  return db.selectFrom('auth_users').select(USER_COLUMNS).where('id', '=', id).$narrowType<{ role: Role }>()
}

/** What those of these ids are called, whom the caller may see. */
export function usernamesOf(db: Db, ids: readonly number[]): Compilable<{ id: number; username: string }> {
  return db.selectFrom('auth_users').select(['id', 'username']).where('id', 'in', ids)
}

export interface UserFilters {
  username?: string | undefined
  role?: Role | undefined
  isActive?: boolean | undefined
}

/** Those whom the caller may see, by id; at most `size` of them, behind the id `after`. */
export function usersPage(
  db: Db,
  { username, role, isActive }: UserFilters,
  after: number,
  size: number,
): Compilable<User> {
  let query = db.selectFrom('auth_users').select(USER_COLUMNS).where('id', '>', after)
  if (username !== undefined)
    query = query.where((eb) =>
      // Those that another program inserted have no key.
      eb.or([eb('username_key', '=', usernameKey(username)), eb('username', '=', username)]),
    )
  if (role !== undefined) query = query.where('role', '=', role)
  if (isActive !== undefined) query = query.where('is_active', '=', isActive)
  return query.orderBy('id').limit(size).$narrowType<{ role: Role }>()
}

export interface NewUser {
  username: string
  passwordHash: string
  role: Role
  mustChangePassword: boolean
}

/** Creates a user with its audit row; the new row comes back. See `usernameTaken` for the conflict. */
export function createUser(db: Db | Tx, user: NewUser, event: ServiceEvent): Compilable<User> {
  const change = db.with('change', (qc) =>
    qc
      .insertInto('auth_users')
      .values({
        username: normalizeUsername(user.username),
        username_key: usernameKey(user.username),
        password_hash: user.passwordHash,
        role: user.role,
        must_change_password: user.mustChangePassword,
      })
      .returning(USER_COLUMNS),
  )
  return withAudit(change, event).selectFrom('change').selectAll().$narrowType<{ role: Role }>()
}

/** Turns the unique violations of createUser into 409; anything else is thrown as it came. */
export function usernameTaken(error: unknown): never {
  if (
    violatesUnique(error, 'auth_users_username_key_key') ||
    violatesUnique(error, 'auth_users_username_key')
  ) {
    throw new AppError('conflict', 'The username is taken.')
  }
  throw error
}

export interface UserChange {
  role?: Role
  is_active?: boolean
  must_change_password?: boolean
}

/**
 * Changes a user of that version, with its audit row. Who gets another role or is deactivated loses every
 * session in the same statement. No row when the version is another by now or the row not the caller's.
 */
export function changeUser(
  tx: Tx,
  { id, version }: Pick<User, 'id' | 'version'>,
  change: UserChange,
  event: ServiceEvent,
): Compilable<User> {
  const changed = tx.with('change', (qc) =>
    qc
      .updateTable('auth_users')
      .set({ ...change, updated_at: sql`now()`, version: version + 1 })
      .where('id', '=', id)
      .where('version', '=', version)
      .returning(USER_COLUMNS),
  )
  if (change.role === undefined && change.is_active === undefined)
    return withAudit(changed, event).selectFrom('change').selectAll().$narrowType<{ role: Role }>()
  const ended = changed.with('ended', (qc) =>
    qc
      .deleteFrom('auth_sessions')
      .where('user_id', 'in', (eb) => eb.selectFrom('change').select('change.id')),
  )
  return withAudit(ended, event).selectFrom('change').selectAll().$narrowType<{ role: Role }>()
}

export interface NewPassword {
  hash: string
  mustChange: boolean
  /** The session that goes on; all others of the user end. */
  keepSession: number | null
}

/** A new password on the version that was read, with its audit row; see changeUser for no row. */
export function setPassword(
  db: Db | Tx,
  { id, version }: Pick<User, 'id' | 'version'>,
  { hash, mustChange, keepSession }: NewPassword,
  event: ServiceEvent,
): Compilable<User> {
  const change = db
    .with('change', (qc) =>
      qc
        .updateTable('auth_users')
        .set({
          password_hash: hash,
          must_change_password: mustChange,
          password_changed_at: sql`now()`,
          updated_at: sql`now()`,
          version: version + 1,
        })
        .where('id', '=', id)
        .where('version', '=', version)
        .returning(USER_COLUMNS),
    )
    .with('ended', (qc) =>
      qc
        .deleteFrom('auth_sessions')
        .where('user_id', 'in', (eb) => eb.selectFrom('change').select('change.id'))
        .where('id', '<>', keepSession ?? 0),
    )
  return withAudit(change, event).selectFrom('change').selectAll().$narrowType<{ role: Role }>()
}

/** The same password under the hash of today; nothing else of the user changes. */
export function rehashPassword(
  db: Db,
  { id, version }: Pick<User, 'id' | 'version'>,
  hash: string,
  event: ServiceEvent,
): Compilable<{ id: number }> {
  const change = db.with('change', (qc) =>
    qc
      .updateTable('auth_users')
      .set({ password_hash: hash })
      .where('id', '=', id)
      .where('version', '=', version)
      .returning('id'),
  )
  return withAudit(change, event).selectFrom('change').select('change.id')
}

/** Clears what the older application keeps of failed sign-ins; the throttle's buckets are in throttle.ts. */
export function unlockUser(tx: Tx, id: number, event: ServiceEvent): Compilable<{ username: string }> {
  const change = tx.with('change', (qc) =>
    qc
      .updateTable('auth_users')
      .set({ failed_login_attempts: 0, locked_until: null })
      .where('id', '=', id)
      .returning('username'),
  )
  return withAudit(change, event).selectFrom('change').select('change.username')
}

/**
 * Waits for a sign-in under way, and holds up the next: so that the change after it, which ends sessions, sees them
 * all. Until the transaction ends.
 */
export function lockUser(tx: Tx, id: number): Compilable<{ id: number }> {
  return tx.selectFrom('auth_users').select('id').where('id', '=', id).forUpdate()
}

/** Another active owner: without one, the last must stay. Under lockOwners. */
export function otherActiveOwner(tx: Tx, id: number): Compilable<{ id: number }> {
  return tx
    .selectFrom('auth_users')
    .select('id')
    .where('role', '=', 'owner')
    .where('is_active', '=', true)
    .where('id', '<>', id)
    .limit(1)
}

/** Serialises what may happen once only: the first owner, the service user. Until the transaction ends. */
export function lockSetup(db: Tx): Compilable<{ locked: unknown }> {
  return db.selectNoFrom(sql<unknown>`pg_advisory_xact_lock(7305021)`.as('locked'))
}

/** Two owners who take each other's role at once would both find another one. Until the transaction ends. */
export function lockOwners(db: Tx): Compilable<{ locked: unknown }> {
  return db.selectNoFrom(sql<unknown>`pg_advisory_xact_lock(7305022)`.as('locked'))
}
