import { isDeepStrictEqual } from 'node:util'
import type { Context, MiddlewareHandler } from 'hono'
import type { Caller } from '../db/as-caller.js'
import type { Claim } from '../db/claims.js'
import { PASSING, classify } from '../db/pg-errors.js'
import { AppError } from '../errors.js'
import { ACCESS, type Access, type Operation } from './access.js'
import type { AppEnv } from './context.js'
import {
  type Credential,
  type IdentifyDeps,
  identify,
  lacksScope,
  readCredential,
  recentKey,
} from './identify.js'

export type { IdentifyDeps as CallerDeps } from './identify.js'

/** How long ago a password may have been given where it must be fresh. */
const FRESH_PASSWORD_MS = 15 * 60_000

/**
 * For createRoute: finds out who asks, and lets pass who may do this operation by the table in access.ts. What
 * follows reads the body only then. The OpenAPI document tells the same as `x-access`.
 */
export function guard<const M extends MiddlewareHandler<AppEnv>[]>(
  deps: IdentifyDeps,
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
 * `X-API-KEY`. Sets caller, and session for sessions. Throws `invalid_request` for two
 * credentials, `unauthenticated` for none or one that is not valid (RFC 6750, section 3.1), and
 * `forbidden`, `insufficient_scope` or `password_change_required` for who may not do this.
 */
function requireAccess(deps: IdentifyDeps, operation: Operation): MiddlewareHandler<AppEnv> {
  const access: Access = ACCESS[operation]
  return async function requireAccess(c, next) {
    const credential = readCredential(c, credentialOf(c, operation === 'password.verify'), access)
    const claim = access.lookedUp === true ? undefined : claimRecent(deps, c, credential, access)
    if (claim === undefined) {
      await identify(deps, c, credential)
      refuseUnless(access, c)
      return await next()
    }
    await next()
    // Answered without the database, or refused: whose request it was is still to be found out. Where the database
    // could not be asked the answer says so, and tells nothing else.
    if (claim.isConfirmed || (c.error instanceof AppError && PASSING.has(c.error.code))) return
    await confirm(deps, c, credential, access)
  }
}

/** Takes who asked with this credential a moment ago for who asks now, where that one may do this; else undefined. */
function claimRecent(
  { recentCallers }: IdentifyDeps,
  c: Context<AppEnv>,
  credential: Credential,
  access: Access,
): Claim | undefined {
  const recent = recentCallers.get(recentKey(credential))
  if (recent === undefined || refusal(access, recent.caller) !== null) return undefined
  const { kind, values } = recent.claim
  const claim: Claim = { isConfirmed: false, kind, values }
  c.set('caller', { ...recent.caller, deadline: c.get('deadline'), claim })
  return claim
}

/**
 * Looks up who asks where that was only claimed, and what the claim does not tell: session. Throws as requireAccess
 * does, and `unavailable` in the rare moment in which who asks has become another than was claimed.
 */
async function confirm(
  deps: IdentifyDeps,
  c: Context<AppEnv>,
  credential: Credential,
  access: Access,
): Promise<void> {
  const { claim, ...claimed } = c.get('caller')
  deps.recentCallers.delete(recentKey(credential))
  await identify(deps, c, credential)
  refuseUnless(access, c)
  if (claim !== undefined) claim.isConfirmed = true
  // Refuted, and yet the same: what was changed makes no difference to the caller, but nothing was done.
  if (isDeepStrictEqual(claimed, c.get('caller')) && classify(c.error) !== 'refuted') return
  throw new AppError('unavailable', 'Who you are was changed in this moment; nothing was done. Try again.', {
    retryAfterSeconds: 1,
  })
}

/** For what needs the session after all: session is there afterwards, when a session asks. */
export async function lookUp(deps: IdentifyDeps, c: Context<AppEnv>, operation: Operation): Promise<void> {
  const access: Access = ACCESS[operation]
  if (c.get('caller').claim !== undefined)
    await confirm(deps, c, readCredential(c, credentialOf(c, false), access), access)
}

/** The same for who may do it without, as signing in: sets caller for a credential, if there is one. */
export async function identifyIfGiven(deps: IdentifyDeps, c: Context<AppEnv>): Promise<void> {
  const isGiven = c.req.header('authorization') !== undefined || c.req.header('x-api-key') !== undefined
  if (isGiven) await identify(deps, c, readCredential(c, credentialOf(c, false), {}))
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

function refuseUnless(access: Access, c: Context<AppEnv>): void {
  const caller = c.get('caller')
  const why = refusal(access, caller)
  if (why !== null) throw why
  if (
    caller.sessionId !== null &&
    c.get('session').must_change_password &&
    access.beforePasswordChange !== true
  ) {
    throw new AppError('password_change_required', 'Change your password first.')
  }
}

/** Why this caller may not do it; null when it may. */
function refusal(
  { roles, scope, keysOnly }: Access,
  caller: Pick<Caller, 'role' | 'scopes'>,
): AppError | null {
  if (caller.scopes !== '*') {
    if (scope === null) return new AppError('forbidden', 'This call is for sessions, not for keys.')
    if (!caller.scopes.includes(scope)) return lacksScope(scope)
  } else if (keysOnly === true) return new AppError('insufficient_scope', 'This call is for API keys.')
  if (!(roles as readonly string[]).includes(caller.role))
    return new AppError('forbidden', 'Your role may not do this.')
  return null
}

/** For what a stolen session must not do: the password was given within the last 15 minutes. Keys have none. */
export function requireFreshPassword(c: Context<AppEnv>): void {
  if (c.get('caller').sessionId === null) return
  if (Date.now() - Date.parse(c.get('session').authenticated_at) > FRESH_PASSWORD_MS) {
    throw new AppError('reauthentication_required', 'Give your password again first.')
  }
}
