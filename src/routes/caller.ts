import type { Context, MiddlewareHandler } from 'hono'
import { type KeyHolder, type Scope, keyByHash, touchKey } from '../db/api-keys.js'
import { asApp, type Caller } from '../db/as-caller.js'
import type { Db } from '../db/database.js'
import type { Deadline } from '../db/deadline.js'
import { sessionByTokenHash, touchSession } from '../db/sessions.js'
import { type Role, activeUser } from '../db/users.js'
import { AppError } from '../errors.js'
import { hashToken, tokenKind } from '../security/tokens.js'
import { ACCESS, type Access, type Operation, SCOPE_ROLES, rankOf } from './access.js'
import type { AppEnv } from './context.js'
import { idParam } from './schemas.js'

export interface CallerDeps {
  db: Db
  sessionIdleSeconds: number
}

/** How long ago a password may have been given where it must be fresh. */
const FRESH_PASSWORD_MS = 15 * 60_000

/**
 * For createRoute: finds out who asks, and lets pass who may do this operation by the table in access.ts. What
 * follows reads the body only then. The OpenAPI document tells the same as `x-access`.
 */
export function guard<const M extends MiddlewareHandler<AppEnv>[]>(
  deps: CallerDeps,
  operation: Operation,
  ...following: M
) {
  const { roles, scope, on }: Access = ACCESS[operation]
  return {
    middleware: [requireAccess(deps, operation), ...following] as [MiddlewareHandler<AppEnv>, ...M],
    'x-access': { operation, roles, scope, on },
  }
}

/**
 * Finds out who is asking, from one credential: `Authorization: Bearer` (session token or API key) or
 * `X-API-KEY`. Sets c.var.caller, and c.var.session for sessions. Throws `invalid_request` for two
 * credentials, `unauthenticated` for none or one that is not valid (RFC 6750, section 3.1), and
 * `forbidden`, `insufficient_scope` or `password_change_required` for who may not do this.
 */
function requireAccess(deps: CallerDeps, operation: Operation): MiddlewareHandler<AppEnv> {
  const access: Access = ACCESS[operation]
  return async function requireAccess(c, next) {
    await identify(deps, c, credentialOf(c, operation === 'password.verify'), access)
    refuseUnless(access, c)
    await next()
  }
}

/** The same for who may do it without, as signing in: sets c.var.caller for a credential, if there is one. */
export async function identifyIfGiven(deps: CallerDeps, c: Context<AppEnv>): Promise<void> {
  const isGiven = c.req.header('authorization') !== undefined || c.req.header('x-api-key') !== undefined
  if (isGiven) await identify(deps, c, credentialOf(c, false), {})
}

/** Of `basicBeside`, Authorization carries what is to be verified, and X-API-KEY who asks. */
function credentialOf(c: Context<AppEnv>, basicBeside: boolean): string {
  const authorization = c.req.header('authorization')
  const key = c.req.header('x-api-key')
  if (basicBeside && /^basic /i.test(authorization ?? '')) return key ?? noCredential()
  if (authorization !== undefined && key !== undefined) {
    throw new AppError('invalid_request', 'Send one credential: Authorization or X-API-KEY.')
  }
  return /^bearer +(\S+)$/i.exec(authorization ?? '')?.[1] ?? key ?? noCredential()
}

function noCredential(): never {
  throw new AppError('unauthenticated', 'Sign in, or send an API key.', {
    headers: { 'www-authenticate': 'Bearer realm="gary"' },
  })
}

async function identify(
  deps: CallerDeps,
  c: Context<AppEnv>,
  credential: string,
  access: Pick<Access, 'attribution'>,
): Promise<void> {
  const kind = tokenKind(credential)
  if (kind === 'session') await identifySession(deps, c, credential)
  else if (kind === 'api_key') await identifyKey(deps, c, credential, access)
  else throw invalidCredential()
}

async function identifySession(deps: CallerDeps, c: Context<AppEnv>, token: string): Promise<void> {
  const [session] = await asApp(
    deps.db,
    sessionByTokenHash(deps.db, hashToken(token), deps.sessionIdleSeconds),
    c.var.deadline,
  )
  if (session === undefined) throw invalidCredential()
  if (c.req.header('x-on-behalf-of') !== undefined) throw lacksScope('act:on-behalf')
  if (session.due)
    await remember(c, asApp(deps.db, touchSession(deps.db, session.session_id), c.var.deadline))
  c.set('session', session)
  c.set('caller', userCaller(session, session.session_id, c.var.deadline))
}

async function identifyKey(
  deps: CallerDeps,
  c: Context<AppEnv>,
  key: string,
  { attribution }: Pick<Access, 'attribution'>,
): Promise<void> {
  const [holder] = await asApp(deps.db, keyByHash(deps.db, hashToken(key)), c.var.deadline)
  if (holder === undefined) throw invalidCredential()
  if (holder.due) await remember(c, asApp(deps.db, touchKey(deps.db, holder.key_id), c.var.deadline))
  const behalf = await namedUser(deps, c, holder)
  const self = behalf === null || attribution === true ? { id: holder.user_id, role: holder.role } : behalf
  c.set('caller', {
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
    onBehalfOf: behalf?.id ?? null,
    deadline: c.var.deadline,
  })
}

/** When a credential was used last is no part of the answer: who reads is not refused because it cannot be written. */
async function remember(c: Context<AppEnv>, touch: Promise<unknown>): Promise<void> {
  await touch.catch((error: unknown) => c.var.log.warn({ err: error }, 'the last use was not written down'))
}

/**
 * Whom X-On-Behalf-Of names: an active user below the key's own in rank, or of rank 1. Whoever acts for
 * another has the rights of both only, and the answer does not tell why somebody may not be named.
 */
async function namedUser(
  { db }: CallerDeps,
  c: Context<AppEnv>,
  { scopes, role }: KeyHolder,
): Promise<{ id: number; role: Role } | null> {
  const header = c.req.header('x-on-behalf-of')
  if (header === undefined) return null
  if (!scopes.includes('act:on-behalf') || !SCOPE_ROLES['act:on-behalf'].includes(role))
    throw lacksScope('act:on-behalf')
  const id = idParam.safeParse(header)
  if (!id.success) throw new AppError('invalid_request', 'X-On-Behalf-Of: send the id of a user.')
  const [user] = await asApp(db, activeUser(db, id.data), c.var.deadline)
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

function lacksScope(scope: Scope): AppError {
  return new AppError('insufficient_scope', `This needs a key with the scope ${scope}.`, {
    headers: { 'www-authenticate': `Bearer realm="gary", error="insufficient_scope", scope="${scope}"` },
  })
}

function refuseUnless({ roles, scope, keysOnly, beforePasswordChange }: Access, c: Context<AppEnv>): void {
  const { caller } = c.var
  if (caller.scopes !== '*') {
    if (scope === null) throw new AppError('forbidden', 'This call is for sessions, not for keys.')
    if (!caller.scopes.includes(scope)) throw lacksScope(scope)
  } else if (keysOnly === true) throw new AppError('insufficient_scope', 'This call is for API keys.')
  if (!(roles as readonly string[]).includes(caller.role)) {
    throw new AppError('forbidden', 'Your role may not do this.')
  }
  if (caller.sessionId !== null && c.var.session.must_change_password && beforePasswordChange !== true) {
    throw new AppError('password_change_required', 'Change your password first.')
  }
}

/** For what a stolen session must not do: the password was given within the last 15 minutes. Keys have none. */
export function requireFreshPassword(c: Context<AppEnv>): void {
  if (c.var.caller.sessionId === null) return
  if (Date.now() - Date.parse(c.var.session.authenticated_at) > FRESH_PASSWORD_MS) {
    throw new AppError('reauthentication_required', 'Give your password again first.')
  }
}
