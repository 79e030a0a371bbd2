import { type Compilable, sql } from 'kysely'
import { type AuditValues, type ServiceEvent, auditValues, withAuditRow } from './audit.js'
import { compileBySet, compileOnce } from './compile-once.js'
import type { Db, Tx } from './database.js'
import { MAY_CHANGE, type MadeOnce, type OnceValues, withAnswer, withTurn } from './idempotency.js'
import type { Role, User } from './users.js'

/** A live session with its user, as one look-up finds them. */
export interface SessionUser extends User {
  session_id: number
  session_created_at: string
  expires_at: string
  last_activity: string
  idle_expires_at: string
  authenticated_at: string
  ip_address: string | null
  user_agent: string | null
  /** last_activity is older than a minute and is to be written again. */
  due: boolean
}

/**
 * The session check: one indexed look-up, both limits by the database's clock, active users only.
 * For asApp.
 */
export function sessionByTokenHash(db: Db, tokenHash: string, idleSeconds: number): Compilable<SessionUser> {
  return findSession(db, tokenHash, `${idleSeconds} seconds`)
}

const findSession = compileOnce((db, tokenHash: string, idleSeconds: string): Compilable<SessionUser> => {
  const idle = sql`cast(${idleSeconds} as interval)`
  return db
    .selectFrom('auth_sessions as s')
    .innerJoin('auth_users as u', 'u.id', 's.user_id')
    .select([
      's.id as session_id',
      's.created_at as session_created_at',
      's.expires_at',
      's.last_activity',
      sql<string>`s.last_activity + ${idle}`.as('idle_expires_at'),
      's.authenticated_at',
      's.ip_address',
      's.user_agent',
      sql<boolean>`s.last_activity < now() - interval '60 seconds'`.as('due'),
      'u.id',
      'u.username',
      'u.role',
      'u.is_active',
      'u.must_change_password',
      'u.created_at',
      'u.updated_at',
      'u.last_login',
      'u.password_changed_at',
      'u.version',
    ])
    .where('s.session_token', '=', tokenHash)
    .where('s.expires_at', '>', sql<string>`now()`)
    .where('s.last_activity', '>', sql<string>`now() - ${idle}`)
    .where('u.is_active', '=', true)
    .$narrowType<{ role: Role }>()
}, 2)

/** Counts as activity; at most once a minute, also when several requests find it due. For asApp. */
export const touchSession = compileOnce(
  (db, sessionId: number): Compilable<unknown> =>
    db
      .updateTable('auth_sessions')
      .set({ last_activity: sql`now()` })
      .where('id', '=', sessionId)
      .where('last_activity', '<', sql<string>`now() - interval '60 seconds'`),
  1,
)

export interface NewSession {
  userId: number
  /** Of the user whose password was looked at. */
  userVersion: number
  tokenHash: string
  ttlSeconds: number
  ipAddress: string | null
  userAgent: string | null
}

export type CreatedSession = Pick<
  SessionUser,
  'session_id' | 'session_created_at' | 'expires_at' | 'last_activity' | 'ip_address' | 'user_agent'
> & { last_login: string }

/**
 * A sign-in: session, login time and audit row in one statement. No row when the user is inactive or another version
 * by now: with the row locked, a password that is changed meanwhile opens no session, and lockUser finds every one.
 */
export function createSession(db: Db, session: NewSession, event: ServiceEvent): Compilable<CreatedSession> {
  const { userId: ownerId, ttlSeconds, ...given } = session
  const ttl = `${ttlSeconds} seconds`
  return openSession(db, Object.assign(auditValues(event), given, { ownerId, ttl }))
}

/** The event has a user of its own: who asks. */
interface Opening extends Omit<NewSession, 'userId' | 'ttlSeconds'>, AuditValues {
  ownerId: number
  ttl: string
}

const openSession = compileBySet((db, given: Opening): Compilable<CreatedSession> => {
  const change = db
    .with('change', (qc) =>
      qc
        .insertInto('auth_sessions')
        .columns(['session_token', 'user_id', 'expires_at', 'ip_address', 'user_agent'])
        .expression((eb) =>
          eb
            .selectFrom('auth_users')
            .select([
              sql<string>`cast(${given.tokenHash} as text)`.as('session_token'),
              'auth_users.id as user_id',
              sql<string>`now() + cast(${given.ttl} as interval)`.as('expires_at'),
              sql<string>`cast(${given.ipAddress} as inet)`.as('ip_address'),
              sql<string>`cast(${given.userAgent} as text)`.as('user_agent'),
            ])
            .where('id', '=', given.ownerId)
            .where('version', '=', given.userVersion)
            .where('is_active', '=', true)
            .forUpdate(),
        )
        .returning([
          'id as session_id',
          'user_id',
          'created_at as session_created_at',
          'expires_at',
          'last_activity',
          'ip_address',
          'user_agent',
        ]),
    )
    .with('login', (qc) =>
      qc
        .updateTable('auth_users')
        .set({ last_login: sql`now()`, failed_login_attempts: 0, locked_until: null })
        .where('id', 'in', (eb) => eb.selectFrom('change').select('change.user_id'))
        .returning(['id', 'last_login']),
    )
  return withAuditRow(change, given)
    .selectFrom('change')
    .innerJoin('login', 'login.id', 'change.user_id')
    .select([
      'session_id',
      'session_created_at',
      'expires_at',
      'last_activity',
      'ip_address',
      'user_agent',
      sql<string>`login.last_login`.as('last_login'),
    ]) as unknown as Compilable<CreatedSession>
})

/** A live session as lists show it. */
export type ListedSession = Pick<
  SessionUser,
  | 'session_id'
  | 'session_created_at'
  | 'expires_at'
  | 'last_activity'
  | 'idle_expires_at'
  | 'ip_address'
  | 'user_agent'
>

/** A user's live sessions, newest first; at most `size` of them, below the id `before`. */
export function sessionsPage(
  db: Db,
  userId: number,
  idleSeconds: number,
  before: number | undefined,
  size: number,
): Compilable<ListedSession> {
  return findSessions(db, { userId, idleSeconds: `${idleSeconds} seconds`, before, size })
}

interface SessionsPage {
  userId: number
  idleSeconds: string
  before: number | undefined
  size: number
}

const findSessions = compileBySet((db, page: SessionsPage): Compilable<ListedSession> => {
  const { userId, before, size } = page
  const idle = sql`cast(${page.idleSeconds} as interval)`
  const query = db
    .selectFrom('auth_sessions')
    .select([
      'id as session_id',
      'created_at as session_created_at',
      'expires_at',
      'last_activity',
      sql<string>`last_activity + ${idle}`.as('idle_expires_at'),
      'ip_address',
      'user_agent',
    ])
    .where('user_id', '=', userId)
    .where('expires_at', '>', sql<string>`now()`)
    .where('last_activity', '>', sql<string>`now() - ${idle}`)
  return (before === undefined ? query : query.where('id', '<', before)).orderBy('id', 'desc').limit(size)
})

/** Ends one session with its audit row; no row when it is gone or not the caller's. */
export function endSession(
  db: Db,
  sessionId: number,
  userId: number,
  event: ServiceEvent,
): Compilable<{ id: number }> {
  return removeSession(db, Object.assign(auditValues(event), { endedId: sessionId, ownerId: userId }))
}

const removeSession = compileBySet(
  (db, given: AuditValues & { endedId: number; ownerId: number }): Compilable<{ id: number }> => {
    const change = db.with('change', (qc) =>
      qc
        .deleteFrom('auth_sessions')
        .where('id', '=', given.endedId)
        .where('user_id', '=', given.ownerId)
        .returning('id'),
    )
    return withAuditRow(change, given).selectFrom('change').select('change.id')
  },
)

/** The same once under a key, with its answer, which is kept also where the session was gone: that is no failure. */
export function endSessionOnce(
  db: Db,
  endedId: number,
  ownerId: number,
  event: ServiceEvent,
  once: OnceValues,
): Compilable<MadeOnce> {
  return endOnce(db, Object.assign(auditValues(event), once, { endedId, ownerId }))
}

const endOnce = compileBySet(
  (db, given: AuditValues & OnceValues & { endedId: number; ownerId: number }): Compilable<MadeOnce> => {
    const change = withTurn(db, given).with('change', (qc) =>
      qc
        .deleteFrom('auth_sessions')
        .where('id', '=', given.endedId)
        .where('user_id', '=', given.ownerId)
        .where(MAY_CHANGE)
        .returning('id'),
    )
    const answer = sql<string>`cast(${given.answer} as text)`
    // The join has no use but in memory: what is changed first is seen by what comes behind it.
    const from = sql`kept left join change on true where kept.locked and kept.request_hash is null`
    return withAnswer(withAuditRow(change, given), given, answer, from)
  },
)

/** Ends a user's sessions, all but `keepId`, with one audit row if there were any. */
export function endSessions(
  db: Db | Tx,
  userId: number,
  keepId: number | null,
  event: ServiceEvent,
): Compilable<{ id: number }> {
  return removeSessions(db, Object.assign(auditValues(event), { ownerId: userId, keptId: keepId ?? 0 }))
}

interface Ending extends AuditValues {
  ownerId: number
  keptId: number
}

const removeSessions = compileBySet((db, given: Ending): Compilable<{ id: number }> => {
  const change = db.with('change', (qc) =>
    qc
      .deleteFrom('auth_sessions')
      .where('user_id', '=', given.ownerId)
      .where('id', '<>', given.keptId)
      .returning('id'),
  )
  return withAuditRow(change, given).selectFrom('change').select('change.id')
})

/** The password was given again in this session, with its audit row. */
export function reauthenticateSession(
  db: Db,
  sessionId: number,
  event: ServiceEvent,
): Compilable<{ id: number }> {
  // The event's sessionId is that of the consumer.
  return authenticateAgain(db, Object.assign(auditValues(event), { ownId: sessionId }))
}

const authenticateAgain = compileBySet(
  (db, given: AuditValues & { ownId: number }): Compilable<{ id: number }> => {
    const change = db.with('change', (qc) =>
      qc
        .updateTable('auth_sessions')
        .set({ authenticated_at: sql`now()` })
        .where('id', '=', given.ownId)
        .returning('id'),
    )
    return withAuditRow(change, given).selectFrom('change').select('change.id')
  },
)

/** Sessions over by either limit go; for JOBS. */
export function pruneSessions(db: Db, idleSeconds: number): Compilable<unknown> {
  return removeEnded(db, `${idleSeconds} seconds`)
}

const removeEnded = compileOnce(
  (db, idleSeconds: string): Compilable<unknown> =>
    db
      .deleteFrom('auth_sessions')
      .where((eb) =>
        eb.or([
          eb('expires_at', '<=', sql<string>`now()`),
          eb('last_activity', '<=', sql<string>`now() - cast(${idleSeconds} as interval)`),
        ]),
      ),
  1,
)

/** The session and user parts of a look-up, as the API shows them. */
export function userOf(row: SessionUser): User {
  const { id, username, role, is_active, must_change_password } = row
  const { created_at, updated_at, last_login, password_changed_at, version } = row
  return {
    id,
    username,
    role,
    is_active,
    must_change_password,
    created_at,
    updated_at,
    last_login,
    password_changed_at,
    version,
  }
}
