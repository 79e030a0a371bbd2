import type { Context, MiddlewareHandler } from 'hono'
import { keyByHash, type Scope, touchKey } from '../db/api-keys.js'
import { asApp, type Caller } from '../db/as-caller.js'
import type { Db } from '../db/database.js'
import { sessionByTokenHash, touchSession } from '../db/sessions.js'
import type { Role } from '../db/users.js'
import { AppError } from '../errors.js'
import type { Deadline } from '../db/deadline.js'
import { hashToken, tokenKind } from '../security/tokens.js'
import type { AppEnv } from './context.js'

export interface CallerDeps {
  db: Db
  sessionIdleSeconds: number
}

/**
 * Finds out who is asking, from one credential: `Authorization: Bearer` (session token or API key) or
 * `X-API-KEY`. Sets c.var.caller, and c.var.session for sessions. Throws `invalid_request` for two
 * credentials, `unauthenticated` for none or one that is not valid (RFC 6750, section 3.1).
 */
export function requireCaller(deps: CallerDeps): MiddlewareHandler<AppEnv> {
  return async function requireCaller(c, next) {
    await identify(deps, c, credentialOf(c))
    await next()
  }
}

/** The same from X-API-KEY alone, where Authorization carries the one to be verified (Basic). */
export function requireKey(deps: CallerDeps): MiddlewareHandler<AppEnv> {
  return async function requireKey(c, next) {
    const basic = /^basic /i.test(c.req.header('authorization') ?? '')
    await identify(deps, c, basic ? (c.req.header('x-api-key') ?? '') : credentialOf(c))
    await next()
  }
}

function credentialOf(c: Context<AppEnv>): string {
  const authorization = c.req.header('authorization')
  const key = c.req.header('x-api-key')
  if (authorization !== undefined && key !== undefined) {
    throw new AppError('invalid_request', 'Send one credential: Authorization or X-API-KEY.')
  }
  const bearer = /^bearer +(\S+)$/i.exec(authorization ?? '')?.[1]
  const credential = bearer ?? key
  if (credential === undefined) {
    throw new AppError('unauthenticated', 'Sign in, or send an API key.', {
      headers: { 'www-authenticate': 'Bearer realm="gary"' },
    })
  }
  return credential
}

async function identify(deps: CallerDeps, c: Context<AppEnv>, credential: string): Promise<void> {
  const kind = tokenKind(credential)
  if (kind === 'session') await identifySession(deps, c, credential)
  else if (kind === 'api_key') await identifyKey(deps, c, credential)
  else throw invalidCredential()
  if (c.req.header('x-on-behalf-of') !== undefined) refuseOnBehalfOf(c.var.caller)
}

/** Whoever names another user asks for fewer rights: ignoring that would give more than was asked for. */
function refuseOnBehalfOf({ scopes }: Caller): never {
  if (scopes === '*' || !scopes.includes('act:on-behalf')) {
    throw new AppError('insufficient_scope', 'X-On-Behalf-Of needs a key with the scope act:on-behalf.')
  }
  throw new AppError('not_supported', 'X-On-Behalf-Of is not supported yet; nothing was done.')
}

async function identifySession(deps: CallerDeps, c: Context<AppEnv>, token: string): Promise<void> {
  const [session] = await asApp(
    deps.db,
    sessionByTokenHash(deps.db, hashToken(token), deps.sessionIdleSeconds),
    c.var.deadline,
  )
  if (session === undefined) throw invalidCredential()
  if (session.due)
    await remember(c, asApp(deps.db, touchSession(deps.db, session.session_id), c.var.deadline))
  c.set('session', session)
  c.set('caller', userCaller(session, session.session_id, c.var.deadline))
}

async function identifyKey(deps: CallerDeps, c: Context<AppEnv>, key: string): Promise<void> {
  const [holder] = await asApp(deps.db, keyByHash(deps.db, hashToken(key)), c.var.deadline)
  if (holder === undefined) throw invalidCredential()
  if (holder.due) await remember(c, asApp(deps.db, touchKey(deps.db, holder.key_id), c.var.deadline))
  c.set('caller', {
    databaseRole: 'gary_caller',
    userId: holder.user_id,
    role: holder.role,
    scopes: holder.scopes,
    sessionId: null,
    keyId: holder.key_id,
    actor: { type: 'api_key', id: holder.key_id, name: holder.key_name },
    onBehalfOf: null,
    deadline: c.var.deadline,
  })
}

/** When a credential was used last is no part of the answer: who reads is not refused because it cannot be written. */
async function remember(c: Context<AppEnv>, touch: Promise<unknown>): Promise<void> {
  await touch.catch((error: unknown) => c.var.log.warn({ err: error }, 'the last use was not written down'))
}

/** The caller that a signed-in user is. */
export function userCaller(
  user: { id: number; username: string; role: Role },
  sessionId: number | null,
  deadline: Deadline,
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
    deadline,
  }
}

function invalidCredential(): AppError {
  return new AppError('unauthenticated', 'The credential is not valid or no longer valid.')
}

/**
 * Lets pass whose role is among `roles`; a key needs the scope as well, and a service key the scope
 * alone. A session whose password must be changed may do none of it. Behind requireCaller.
 */
export function requireRight(scope: Scope, roles: readonly Role[]): MiddlewareHandler<AppEnv> {
  return async function requireRight(c, next) {
    const { caller } = c.var
    if (caller.scopes !== '*' && !caller.scopes.includes(scope)) {
      throw new AppError('insufficient_scope', `The key lacks the scope ${scope}.`, {
        headers: { 'www-authenticate': `Bearer realm="gary", error="insufficient_scope", scope="${scope}"` },
      })
    }
    if (!(roles as readonly string[]).includes(caller.role)) {
      throw new AppError('forbidden', 'Your role may not do this.')
    }
    if (caller.sessionId !== null && c.var.session.must_change_password) {
      throw new AppError('password_change_required', 'Change your password first.')
    }
    await next()
  }
}

/** Lets pass sessions only: a key has no session to read or to end. */
export const requireSession: MiddlewareHandler<AppEnv> = async function requireSession(c, next) {
  if (c.var.caller.sessionId === null)
    throw new AppError('forbidden', 'This call is for sessions, not for keys.')
  await next()
}
