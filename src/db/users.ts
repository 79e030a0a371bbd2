import { type Compilable, sql } from 'kysely'
import { violatesUnique } from './pg-errors.js'
import { AppError } from '../errors.js'
import { type AuditValues, type ServiceEvent, auditValues, withAuditRow } from './audit.js'
import { compileBySet, compileForList, compileOnce } from './compile-once.js'
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
  return findCredentials(db, username, normalizeUsername(username), usernameKey(username))
}

const findCredentials = compileOnce(
  (db, username: string, name: string, key: string): Compilable<User & { password_hash: string }> =>
    signingInAs(db, username, name, key).select('password_hash').$narrowType<{ role: Role }>(),
  3,
)

/** Who signs in by that name, when the caller may see that user. */
export function userByName(db: Db | Tx, username: string): Compilable<User> {
  return findByName(db, username, normalizeUsername(username), usernameKey(username))
}

const findByName = compileOnce(
  (db, username: string, name: string, key: string): Compilable<User> =>
    signingInAs(db, username, name, key).$narrowType<{ role: Role }>(),
  3,
)

/**
 * A row whose name is written exactly so comes first; rows that other programs inserted have no key and are found
 * by the exact name alone.
 */
function signingInAs(db: Db, username: string, name: string, key: string) {
  return db
    .selectFrom('auth_users')
    .select(USER_COLUMNS)
    .where((eb) =>
      eb.or([
        eb('username', '=', name),
        // Adopted names are kept as they were written, which may not be how they are written today.
        eb('username', '=', username),
        eb('username_key', '=', key),
      ]),
    )
    .orderBy((eb) =>
      eb.case().when('username', '=', username).then(0).when('username', '=', name).then(1).else(2).end(),
    )
    .limit(1)
}

/** Somebody who could own the service: whether set-up is still open. That of SERVICE_API_KEY is made at start. */
export const anyUser = compileOnce(
  (db): Compilable<{ id: number }> =>
    db.selectFrom('auth_users').select('id').where('role', '<>', 'service').limit(1),
  0,
)

/** The id behind a name, compared without case. */
export function userIdByName(db: Db | Tx, username: string): Compilable<{ id: number; role: string }> {
  return findByKey(db, usernameKey(username))
}

const findByKey = compileOnce(
  (db, key: string): Compilable<{ id: number; role: string }> =>
    db.selectFrom('auth_users').select(['id', 'role']).where('username_key', '=', key),
  1,
)

/** Names that other programs inserted, which no unique key holds. For asApp. */
export const namesWithoutKey = compileOnce(
  (db): Compilable<{ username: string }> =>
    db.selectFrom('auth_users').select('username').where('username_key', 'is', null),
  0,
)

/** Whom a key acts for. For asApp. */
export const activeUser = compileOnce(
  (db, id: number): Compilable<{ id: number; role: Role }> =>
    db
      .selectFrom('auth_users')
      .select(['id', 'role'])
      .where('id', '=', id)
      .where('is_active', '=', true)
      .$narrowType<{ role: Role }>(),
  1,
)

/** The user, when the caller may see one. */
export const userById = compileOnce(
  (db, id: number): Compilable<User> =>
    db.selectFrom('auth_users').select(USER_COLUMNS).where('id', '=', id).$narrowType<{ role: Role }>(),
  1,
)

/** What those of these ids are called, whom the caller may see. */
export const usernamesOf = compileForList(
  (db, ids: readonly number[]): Compilable<{ id: number; username: string }> =>
    db.selectFrom('auth_users').select(['id', 'username']).where('id', 'in', ids),
)

export interface UserFilters {
  username?: string | undefined
  role?: Role | undefined
  isActive?: boolean | undefined
}

/** Those whom the caller may see, by id; at most `size` of them, behind the id `after`. */
export function usersPage(db: Db, filters: UserFilters, after: number, size: number): Compilable<User> {
  const { username } = filters
  const key = username === undefined ? undefined : usernameKey(username)
  return findUsers(db, { ...filters, key, after, size })
}

interface UsersPage extends UserFilters {
  /** Of the name, where one is given. */
  key: string | undefined
  after: number
  size: number
}

const findUsers = compileBySet((db, page: UsersPage): Compilable<User> => {
  const { username, key, role, isActive, after, size } = page
  let query = db.selectFrom('auth_users').select(USER_COLUMNS).where('id', '>', after)
  if (username !== undefined && key !== undefined)
    query = query.where((eb) =>
      // Those that another program inserted have no key.
      eb.or([eb('username_key', '=', key), eb('username', '=', username)]),
    )
  if (role !== undefined) query = query.where('role', '=', role)
  if (isActive !== undefined) query = query.where('is_active', '=', isActive)
  return query.orderBy('id').limit(size).$narrowType<{ role: Role }>()
})

export interface NewUser {
  username: string
  passwordHash: string
  role: Role
  mustChangePassword: boolean
}

/** Creates a user with its audit row; the new row comes back. See `usernameTaken` for the conflict. */
export function createUser(db: Db | Tx, user: NewUser, event: ServiceEvent): Compilable<User> {
  const names = { username: normalizeUsername(user.username), key: usernameKey(user.username) }
  return insertUser(db, Object.assign(auditValues(event), user, names))
}

interface UserRow extends NewUser, AuditValues {
  key: string
}

const insertUser = compileBySet((db, given: UserRow): Compilable<User> => {
  const change = db.with('change', (qc) =>
    qc
      .insertInto('auth_users')
      .values({
        username: given.username,
        username_key: given.key,
        password_hash: given.passwordHash,
        role: given.role,
        must_change_password: given.mustChangePassword,
      })
      .returning(USER_COLUMNS),
  )
  return withAuditRow(change, given).selectFrom('change').selectAll().$narrowType<{ role: Role }>()
})

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
  return updateUser(tx, Object.assign(auditValues(event), { id, version }, change))
}

interface Changing extends UserChange, Pick<User, 'id' | 'version'>, AuditValues {}

const updateUser = compileBySet((db, given: Changing): Compilable<User> => {
  const { role, is_active, must_change_password } = given
  const changed = db.with('change', (qc) =>
    qc
      .updateTable('auth_users')
      // A field that is not given is left out by Kysely.
      .set({ role, is_active, must_change_password, updated_at: sql`now()`, version: sql`version + 1` })
      .where('id', '=', given.id)
      .where('version', '=', given.version)
      .returning(USER_COLUMNS),
  )
  if (role === undefined && is_active === undefined)
    return withAuditRow(changed, given).selectFrom('change').selectAll().$narrowType<{ role: Role }>()
  const ended = changed.with('ended', (qc) =>
    qc
      .deleteFrom('auth_sessions')
      .where('user_id', 'in', (eb) => eb.selectFrom('change').select('change.id')),
  )
  return withAuditRow(ended, given).selectFrom('change').selectAll().$narrowType<{ role: Role }>()
})

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
  const given = { id, version, hash, mustChange, keptId: keepSession ?? 0 }
  return updatePassword(db, Object.assign(auditValues(event), given))
}

interface PasswordChange extends Pick<User, 'id' | 'version'>, Omit<NewPassword, 'keepSession'>, AuditValues {
  keptId: number
}

const updatePassword = compileBySet((db, given: PasswordChange): Compilable<User> => {
  const change = db
    .with('change', (qc) =>
      qc
        .updateTable('auth_users')
        .set({
          password_hash: given.hash,
          must_change_password: given.mustChange,
          password_changed_at: sql`now()`,
          updated_at: sql`now()`,
          version: sql`version + 1`,
        })
        .where('id', '=', given.id)
        .where('version', '=', given.version)
        .returning(USER_COLUMNS),
    )
    .with('ended', (qc) =>
      qc
        .deleteFrom('auth_sessions')
        .where('user_id', 'in', (eb) => eb.selectFrom('change').select('change.id'))
        .where('id', '<>', given.keptId),
    )
  return withAuditRow(change, given).selectFrom('change').selectAll().$narrowType<{ role: Role }>()
})

/** The same password under the hash of today; nothing else of the user changes. */
export function rehashPassword(
  db: Db,
  { id, version }: Pick<User, 'id' | 'version'>,
  hash: string,
  event: ServiceEvent,
): Compilable<{ id: number }> {
  return updateHash(db, Object.assign(auditValues(event), { id, version, hash }))
}

interface Rehash extends Pick<User, 'id' | 'version'>, AuditValues {
  hash: string
}

const updateHash = compileBySet((db, given: Rehash): Compilable<{ id: number }> => {
  const change = db.with('change', (qc) =>
    qc
      .updateTable('auth_users')
      .set({ password_hash: given.hash })
      .where('id', '=', given.id)
      .where('version', '=', given.version)
      .returning('id'),
  )
  return withAuditRow(change, given).selectFrom('change').select('change.id')
})

/** Clears what the older application keeps of failed sign-ins; the throttle's buckets are in throttle.ts. */
export function unlockUser(tx: Tx, id: number, event: ServiceEvent): Compilable<{ username: string }> {
  return clearFailures(tx, Object.assign(auditValues(event), { id }))
}

const clearFailures = compileBySet(
  (db, given: AuditValues & { id: number }): Compilable<{ username: string }> => {
    const change = db.with('change', (qc) =>
      qc
        .updateTable('auth_users')
        .set({ failed_login_attempts: 0, locked_until: null })
        .where('id', '=', given.id)
        .returning('username'),
    )
    return withAuditRow(change, given).selectFrom('change').select('change.username')
  },
)

/**
 * Waits for a sign-in under way, and holds up the next: so that the change after it, which ends sessions, sees them
 * all. Until the transaction ends.
 */
export const lockUser: (tx: Tx, id: number) => Compilable<{ id: number }> = compileOnce(
  (db, id: number) => db.selectFrom('auth_users').select('id').where('id', '=', id).forUpdate(),
  1,
)

/** Another active owner: without one, the last must stay. Under lockOwners. */
export const otherActiveOwner: (tx: Tx, id: number) => Compilable<{ id: number }> = compileOnce(
  (db, id: number) =>
    db
      .selectFrom('auth_users')
      .select('id')
      .where('role', '=', 'owner')
      .where('is_active', '=', true)
      .where('id', '<>', id)
      .limit(1),
  1,
)

/** Serialises what may happen once only: the first owner, the service user. Until the transaction ends. */
export const lockSetup: (tx: Tx) => Compilable<{ locked: unknown }> = compileOnce(
  (db) => db.selectNoFrom(sql<unknown>`pg_advisory_xact_lock(7305021)`.as('locked')),
  0,
)

/** Two owners who take each other's role at once would both find another one. Until the transaction ends. */
export const lockOwners: (tx: Tx) => Compilable<{ locked: unknown }> = compileOnce(
  (db) => db.selectNoFrom(sql<unknown>`pg_advisory_xact_lock(7305022)`.as('locked')),
  0,
)
