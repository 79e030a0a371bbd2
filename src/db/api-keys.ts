import { type Compilable, sql } from 'kysely'
import { type AuditValues, type ServiceEvent, auditValues, withAuditRow } from './audit.js'
import { compileBySet, compileOnce } from './compile-once.js'
import type { Db, Tx } from './database.js'
import type { Role, User } from './users.js'

export const SCOPES = [
  'auth:verify',
  'sessions:validate',
  'act:on-behalf',
  'users:read',
  'users:write',
  'config:read',
  'config:write',
  'config:reveal',
  'audit:write',
  'audit:read',
  'reports:read',
] as const
export type Scope = (typeof SCOPES)[number]

export interface KeyHolder {
  key_id: number
  key_name: string
  scopes: Scope[]
  due: boolean
  user_id: User['id']
  role: Role
}

/** The key check: one indexed look-up, unexpired keys of active users only. For asApp. */
export const keyByHash = compileOnce(
  (db, keyHash: string): Compilable<KeyHolder> =>
    db
      .selectFrom('auth_api_keys as k')
      .innerJoin('auth_users as u', 'u.id', 'k.user_id')
      .select([
        'k.id as key_id',
        'k.name as key_name',
        'k.scopes',
        sql<boolean>`k.last_used_at is null or k.last_used_at < now() - interval '60 seconds'`.as('due'),
        'u.id as user_id',
        'u.role',
      ])
      .where('k.key_hash', '=', keyHash)
      .where('u.is_active', '=', true)
      .where((eb) => eb.or([eb('k.expires_at', 'is', null), eb('k.expires_at', '>', sql<string>`now()`)]))
      .$narrowType<{ role: Role; scopes: Scope[] }>(),
  1,
)

/** Remembers the use, at most once a minute. For asApp. */
export const touchKey = compileOnce(
  (db, keyId: number): Compilable<unknown> =>
    db
      .updateTable('auth_api_keys')
      .set({ last_used_at: sql`now()` })
      .where('id', '=', keyId),
  1,
)

/** A key as callers see one; never with its hash. */
export interface ApiKey {
  id: number
  name: string
  prefix: string
  scopes: Scope[]
  user_id: number
  created_at: string
  expires_at: string | null
  last_used_at: string | null
}

const KEY_COLUMNS = [
  'id',
  'name',
  'prefix',
  'scopes',
  'user_id',
  'created_at',
  'expires_at',
  'last_used_at',
] as const

export interface NewKey {
  userId: number
  name: string
  prefix: string
  keyHash: string
  scopes: readonly Scope[]
  /** RFC 3339; without it the key does not end by itself. */
  expiresAt?: string | null
}

/** Creates a key with its audit row. */
export function createKey(db: Db | Tx, key: NewKey, event: ServiceEvent): Compilable<ApiKey> {
  const { userId: ownerId, expiresAt = null, ...given } = key
  return insertKey(db, Object.assign(auditValues(event), given, { ownerId, expiresAt }))
}

/** The event has a user of its own: who asks. */
interface KeyRow extends Omit<NewKey, 'userId'>, AuditValues {
  ownerId: number
  expiresAt: string | null
}

const insertKey = compileBySet((db, given: KeyRow): Compilable<ApiKey> => {
  const change = db.with('change', (qc) =>
    qc
      .insertInto('auth_api_keys')
      .values({
        user_id: given.ownerId,
        name: given.name,
        prefix: given.prefix,
        key_hash: given.keyHash,
        scopes: given.scopes as Scope[],
        expires_at: given.expiresAt,
      })
      .returning(KEY_COLUMNS),
  )
  return withAuditRow(change, given).selectFrom('change').selectAll().$narrowType<{ scopes: Scope[] }>()
})

/** Keys that the caller may see, newest first; at most `size` of them, below the id `before`. */
export function keysPage(
  db: Db,
  userId: number | undefined,
  before: number | undefined,
  size: number,
): Compilable<ApiKey> {
  return findKeys(db, { userId, before, size })
}

interface KeysPage {
  userId: number | undefined
  before: number | undefined
  size: number
}

const findKeys = compileBySet((db, { userId, before, size }: KeysPage): Compilable<ApiKey> => {
  let query = db.selectFrom('auth_api_keys').select(KEY_COLUMNS)
  if (userId !== undefined) query = query.where('user_id', '=', userId)
  if (before !== undefined) query = query.where('id', '<', before)
  return query.orderBy('id', 'desc').limit(size).$narrowType<{ scopes: Scope[] }>()
})

/** All keys of a user by id, name and prefix; the hashes stay with gary_app. */
export const keysOfUser = compileOnce(
  (db, userId: number): Compilable<{ id: number; name: string; prefix: string }> =>
    db.selectFrom('auth_api_keys').select(['id', 'name', 'prefix']).where('user_id', '=', userId),
  1,
)

/** Revokes a key with its audit row; no row when it is gone or not the caller's to revoke. */
export function deleteKey(db: Db | Tx, keyId: number, event: ServiceEvent): Compilable<{ id: number }> {
  return removeKey(db, Object.assign(auditValues(event), { keyId }))
}

const removeKey = compileBySet((db, given: AuditValues & { keyId: number }): Compilable<{ id: number }> => {
  const change = db.with('change', (qc) =>
    qc.deleteFrom('auth_api_keys').where('id', '=', given.keyId).returning('id'),
  )
  return withAuditRow(change, given).selectFrom('change').select('change.id')
})
