import type { Context } from 'hono'
import { type KeyHolder, type Scope, keyByHash, touchKey } from '../db/api-keys.js'
import { type Caller, asApp } from '../db/as-caller.js'
import { type Claim, keyClaim, sessionClaim } from '../db/claims.js'
import type { Db } from '../db/database.js'
import type { Deadline } from '../db/deadline.js'
import { sessionByTokenHash, touchSession } from '../db/sessions.js'
import { type Role, activeUser } from '../db/users.js'
import { AppError } from '../errors.js'
import { hashToken, tokenKind } from '../security/tokens.js'
import { SCOPE_ROLES, rankOf } from './access.js'
import type { AppEnv } from './context.js'
import type { RecentCallers } from './recent-callers.js'
import { idParam } from './schemas.js'

export interface IdentifyDeps {
  db: Db
  sessionIdleSeconds: number
  recentCallers: RecentCallers
}

/** A credential of a known form, and what is asked with it. */
export interface Credential {
  kind: 'session' | 'api_key'
  hash: string
  /** X-On-Behalf-Of. */
  behalf: string | undefined
  /** Whoever is named there is told of and lends no right. */
  attribution: boolean
}

/** Throws `unauthenticated` for what is no token of this service. */
export function readCredential(
  c: Context<AppEnv>,
  text: string,
  { attribution = false }: { attribution?: boolean },
): Credential {
  const kind = tokenKind(text)
  if (kind === null) throw invalidCredential()
  return { kind, hash: hashToken(text), behalf: c.req.header('x-on-behalf-of'), attribution }
}

/** Under what a caller is remembered: one who acts for another is another caller. */
export function recentKey({ hash, behalf, attribution }: Credential): string {
  return behalf === undefined ? hash : `${hash} ${attribution ? 'for' : 'as'} ${behalf}`
}

/**
 * Looks up who asks: sets caller, and session for sessions, writes the use down, and remembers the caller.
 * Throws `unauthenticated`, and `forbidden` or `insufficient_scope` for whom it may not act for.
 */
export async function identify(
  deps: IdentifyDeps,
  c: Context<AppEnv>,
  credential: Credential,
): Promise<void> {
  const { caller, claim } =
    credential.kind === 'session'
      ? await identifySession(deps, c, credential)
      : await identifyKey(deps, c, credential)
  c.set('caller', { ...caller, deadline: c.get('deadline') })
  if (claim !== null) deps.recentCallers.set(recentKey(credential), { caller, claim })
}

interface Identified {
  caller: Omit<Caller, 'deadline'>
  /** null where nothing may be taken for granted the next time. */
  claim: Claim | null
}

async function identifySession(
  { db, sessionIdleSeconds }: IdentifyDeps,
  c: Context<AppEnv>,
  { hash, behalf }: Credential,
): Promise<Identified> {
  const [session] = await asApp(db, sessionByTokenHash(db, hash, sessionIdleSeconds), c.get('deadline'))
  if (session === undefined) throw invalidCredential()
  if (behalf !== undefined) throw lacksScope('act:on-behalf')
  if (session.due) await remember(c, asApp(db, touchSession(db, session.session_id), c.get('deadline')))
  c.set('session', session)
  return {
    caller: userCaller(session, session.session_id),
    claim: session.must_change_password ? null : sessionClaim(hash, sessionIdleSeconds, session),
  }
}

async function identifyKey(
  { db }: IdentifyDeps,
  c: Context<AppEnv>,
  { hash, behalf, attribution }: Credential,
): Promise<Identified> {
  const [holder] = await asApp(db, keyByHash(db, hash), c.get('deadline'))
  if (holder === undefined) throw invalidCredential()
  if (holder.due) await remember(c, asApp(db, touchKey(db, holder.key_id), c.get('deadline')))
  const named = behalf === undefined ? null : await namedUser(db, c, holder, behalf)
  const self = named === null || attribution ? { id: holder.user_id, role: holder.role } : named
  const caller: Identified['caller'] = {
    databaseRole: 'gary_caller',
    userId: self.id,
    role: self.role,
    // What is of use to the key's own user and to the one it acts for.
    scopes: holder.scopes.filter((scope) =>
      [holder.role, self.role].every((role) => SCOPE_ROLES[scope].includes(role)),
    ),
    sessionId: null,
    keyId: holder.key_id,
    actor: { type: 'api_key', id: holder.key_id, name: holder.key_name },
    onBehalfOf: named?.id ?? null,
  }
  return { caller, claim: keyClaim(hash, holder, named) }
}

/** When a credential was used last is no part of the answer: who reads is not refused because it cannot be written. */
async function remember(c: Context<AppEnv>, touch: Promise<unknown>): Promise<void> {
  await touch.catch((error: unknown) =>
    c.get('log').warn({ err: error }, 'the last use was not written down'),
  )
}

/**
 * Whom X-On-Behalf-Of names: an active user below the key's own in rank, or of rank 1. Whoever acts for
 * another has the rights of both only, and the answer does not tell why somebody may not be named.
 */
async function namedUser(
  db: Db,
  c: Context<AppEnv>,
  { scopes, role }: KeyHolder,
  header: string,
): Promise<{ id: number; role: Role }> {
  if (!scopes.includes('act:on-behalf') || !SCOPE_ROLES['act:on-behalf'].includes(role))
    throw lacksScope('act:on-behalf')
  const id = idParam.safeParse(header)
  if (!id.success) throw new AppError('invalid_request', 'X-On-Behalf-Of: send the id of a user.')
  const [user] = await asApp(db, activeUser(db, id.data), c.get('deadline'))
  if (
    user === undefined ||
    user.role === 'service' ||
    (rankOf(user.role) > 1 && rankOf(user.role) >= rankOf(role))
  )
    throw new AppError('forbidden', 'X-On-Behalf-Of: you may not act for this user.')
  return user
}

/** The caller that a signed-in user is. */
export function userCaller(
  user: { id: number; username: string; role: Role },
  sessionId: number | null,
  deadline?: Deadline,
): Caller {
  return {
    databaseRole: 'gary_caller',
    userId: user.id,
    role: user.role,
    scopes: '*',
    sessionId,
    keyId: null,
    actor: { type: 'user', id: user.id, name: user.username },
    onBehalfOf: null,
    ...(deadline === undefined ? {} : { deadline }),
  }
}

function invalidCredential(): AppError {
  return new AppError('unauthenticated', 'The credential is not valid or no longer valid.')
}

export function lacksScope(scope: Scope): AppError {
  return new AppError('insufficient_scope', `This needs a key with the scope ${scope}.`, {
    headers: { 'www-authenticate': `Bearer realm="gary", error="insufficient_scope", scope="${scope}"` },
  })
}
