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

/**
 * The only query that reads a password hash. A row whose name is written exactly so comes first; rows
 * that other programs inserted have no key and are found by the exact name alone. For asApp.
 */
export function credentialsByUsername(
  db: Db,
  username: string,
): Compilable<User & { password_hash: string }> {
  const name = normalizeUsername(username)
  return db
    .selectFrom('auth_users')
    .select(USER_COLUMNS)
    .select('password_hash')
    .where((eb) => eb.or([eb('username', '=', name), eb('username_key', '=', usernameKey(name))]))
    .orderBy((eb) => eb.case().when('username', '=', name).then(0).else(1).end())
    .limit(1)
    .$narrowType<{ role: Role }>()
}

/** How many users there are, at most `limit`: whether set-up is still open. */
export function anyUser(db: Db | Tx): Compilable<{ id: number }> {
  return db.selectFrom('auth_users').select('id').limit(1)
}

/** The id behind a name, compared without case. */
export function userIdByName(db: Db | Tx, username: string): Compilable<{ id: number }> {
  return db.selectFrom('auth_users').select('id').where('username_key', '=', usernameKey(username))
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

/** Serialises what may happen once only: the first owner, the service user. Until the transaction ends. */
export function lockSetup(db: Tx): Compilable<{ locked: unknown }> {
  return db.selectNoFrom(sql<unknown>`pg_advisory_xact_lock(7305021)`.as('locked'))
}
