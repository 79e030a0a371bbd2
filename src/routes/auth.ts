import { createRoute, z } from '@hono/zod-openapi'
import type { Context } from 'hono'
import { asApp, asCaller } from '../db/as-caller.js'
import { type ServiceEvent, recordSystemEvent } from '../db/audit.js'
import { createSession, endSession, userOf, type SessionUser } from '../db/sessions.js'
import { type User, credentialsByUsername, usernameKey } from '../db/users.js'
import { AppError, validationFailed } from '../errors.js'
import { type Passwords, assertPasswordReadable } from '../security/passwords.js'
import { createToken, hashToken } from '../security/tokens.js'
import { isWellFormedText } from '../security/well-formed-text.js'
import { requireCaller, requireKey, requireRight, requireSession, userCaller } from './caller.js'
import type { AppEnv } from './context.js'
import { type IdempotencyDeps, idempotencyKey, idempotent } from './idempotency.js'
import { json, problems, sessionSchema, userSchema } from './schemas.js'
import { createRouter, jsonBody, refuseIdempotencyKey } from './validate.js'

export interface AuthDeps extends IdempotencyDeps {
  passwords: Passwords
  /** One-way, keyed: what an unknown user name becomes in the audit trail. */
  hmac: (text: string) => string
  sessionTtlSeconds: number
  sessionIdleSeconds: number
}

const credentials = {
  username: z.string().min(1).max(255),
  password: z.string().min(1).max(1024),
}
const loginBody = z.strictObject({
  ...credentials,
  ip_address: z.union([z.ipv4(), z.ipv6()]).optional(),
  user_agent: z.string().max(512).optional(),
})
const verifyBody = z.strictObject({ ...credentials, ip_address: z.union([z.ipv4(), z.ipv6()]).optional() })

const noStore = { 'cache-control': 'no-store' }

/** Sign in, find out who is signed in, verify a password without a session, sign out. */
export function authRoutes(deps: AuthDeps) {
  const { db, passwords, sessionTtlSeconds, sessionIdleSeconds } = deps
  return createRouter()
    .openapi(
      createRoute({
        method: 'post',
        path: '/v1/auth/login',
        summary: 'Sign in with a password',
        middleware: [refuseIdempotencyKey, jsonBody('strict')] as const,
        request: { body: { required: true, ...json(loginBody) } },
        responses: {
          200: {
            description: 'Signed in; the token is shown once',
            ...json(z.object({ token: z.string(), session: sessionSchema, user: userSchema })),
          },
          ...problems,
        },
      }),
      async (c) => {
        const { username, password, ip_address, user_agent } = c.req.valid('json')
        if (ip_address !== undefined || user_agent !== undefined) {
          throw validationFailed('', 'ip_address and user_agent are for keys with the scope auth:verify.')
        }
        const user = await verifiedUser(deps, c, username, password)
        const token = createToken('gzs_')
        const caller = userCaller(user, null, c.var.deadline)
        const { ipAddress, userAgent } = c.var.correlation
        const [created] = await asCaller(
          db,
          caller,
          createSession(
            db,
            {
              userId: user.id,
              tokenHash: hashToken(token),
              ttlSeconds: sessionTtlSeconds,
              ipAddress,
              userAgent,
            },
            {
              caller,
              correlation: c.var.correlation,
              eventType: 'authentication',
              level: 'info',
              action: 'auth.login',
              target: `users/${user.id}`,
              message: 'Signed in',
            },
          ),
        )
        if (created === undefined) throw invalidCredentials()
        const idle = Date.parse(created.last_activity) + sessionIdleSeconds * 1000
        const session = {
          id: created.session_id,
          created_at: created.session_created_at,
          last_activity: created.last_activity,
          expires_at: created.expires_at,
          idle_expires_at: new Date(idle).toISOString().replace('Z', created.last_activity.slice(23)),
          ip_address: created.ip_address,
          user_agent: created.user_agent,
          current: true,
        }
        return c.json({ token, session, user: { ...user, last_login: created.last_login } }, 200, noStore)
      },
    )
    .openapi(
      createRoute({
        method: 'post',
        path: '/v1/auth/verify',
        summary:
          'Verify a password without a session (scope auth:verify); in the body, or as Basic beside X-API-KEY',
        middleware: [
          refuseIdempotencyKey,
          requireKey(deps),
          requireRight('auth:verify', ['service', 'owner', 'admin']),
          jsonBody('optional'),
        ] as const,
        request: { body: { required: false, ...json(verifyBody) } },
        responses: {
          200: { description: 'The password is right', ...json(z.object({ user: userSchema })) },
          ...problems,
        },
      }),
      async (c) => {
        if (c.var.caller.keyId === null)
          throw new AppError('insufficient_scope', 'This call is for API keys.')
        const given = basicCredentials(c) ?? verifyBody.safeParse(c.req.valid('json')).data
        if (given === undefined) {
          throw new AppError('invalid_request', 'Send username and password, in the body or as Basic.')
        }
        const { username, password } = given
        const user = await verifiedUser(deps, c, username, password)
        return c.json({ user }, 200, noStore)
      },
    )
    .openapi(
      createRoute({
        method: 'get',
        path: '/v1/auth/session',
        summary: 'Who is signed in: the cheap check',
        middleware: [requireCaller(deps), requireSession] as const,
        responses: {
          200: {
            description: 'The session and its user',
            ...json(z.object({ user: userSchema, session: sessionSchema })),
          },
          ...problems,
        },
      }),
      (c) => c.json({ user: userOf(c.var.session), session: sessionOf(c.var.session) }, 200),
    )
    .openapi(
      createRoute({
        method: 'post',
        path: '/v1/auth/logout',
        summary: 'Sign out: the session ends',
        middleware: [requireCaller(deps), requireSession] as const,
        parameters: [idempotencyKey],
        responses: { 204: { description: 'Signed out' }, ...problems },
      }),
      async (c) => {
        const { caller, session, correlation } = c.var
        const event: ServiceEvent = {
          caller,
          correlation,
          eventType: 'authentication',
          level: 'info',
          action: 'auth.logout',
          target: `users/${session.id}`,
          message: 'Signed out',
        }
        return await idempotent(
          c,
          deps,
          async (db) => {
            await asCaller(db, caller, endSession(db, session.session_id, session.id, event))
            return c.body(null, 204)
          },
          `sessions/${session.session_id}`,
        )
      },
    )

  /** The active user with that password, else 401 with an audit row: the same for unknown, wrong and inactive. */
  async function verifiedUser(
    { hmac }: AuthDeps,
    c: Context<AppEnv>,
    username: string,
    password: string,
  ): Promise<User> {
    if (!isWellFormedText(username))
      throw validationFailed('/username', 'A name must be well-formed text without NUL.')
    assertPasswordReadable(password)
    const [found] = await asApp(db, credentialsByUsername(db, username), c.var.deadline)
    const matches = await passwords.whenRoom(() => passwords.verify(password, found?.password_hash ?? null))
    if (found !== undefined && matches && found.is_active) {
      const { password_hash: _, ...user } = found
      return user
    }
    await asApp(
      db,
      recordSystemEvent(db, {
        correlation: c.var.correlation,
        eventType: 'authentication',
        level: 'warning',
        action: 'auth.login_failed',
        target: found === undefined ? null : `users/${found.id}`,
        message: 'Sign-in failed',
        metadata:
          found === undefined
            ? { unknown_username_hmac: hmac(usernameKey(username)) }
            : { username: found.username },
      }),
    )
    throw invalidCredentials()
  }
}

function invalidCredentials(): AppError {
  return new AppError('invalid_credentials', 'User name or password is wrong.', {
    headers: { 'www-authenticate': 'Bearer realm="gary"' },
  })
}

function sessionOf(row: SessionUser): z.output<typeof sessionSchema> {
  return {
    id: row.session_id,
    created_at: row.session_created_at,
    last_activity: row.last_activity,
    expires_at: row.expires_at,
    idle_expires_at: row.idle_expires_at,
    ip_address: row.ip_address,
    user_agent: row.user_agent,
    current: true,
  }
}

/** RFC 7617, UTF-8; undefined when there is no Basic header, `invalid_request` when it is malformed. */
function basicCredentials(c: Context<AppEnv>): { username: string; password: string } | undefined {
  const encoded = /^basic +(.+)$/i.exec(c.req.header('authorization') ?? '')?.[1]
  if (encoded === undefined) return undefined
  const text = Buffer.from(encoded, 'base64').toString('utf8')
  const colon = text.indexOf(':')
  if (colon < 1 || text.includes('\uFFFD'))
    throw new AppError('invalid_request', 'The Basic credentials are malformed.')
  return { username: text.slice(0, colon), password: text.slice(colon + 1) }
}
