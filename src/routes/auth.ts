import { createRoute, z } from '@hono/zod-openapi'
import type { Context } from 'hono'
import { asCaller } from '../db/as-caller.js'
import { createSession } from '../db/sessions.js'
import { AppError, validationFailed } from '../errors.js'
import { createToken, hashToken } from '../security/tokens.js'
import { type CallerDeps, guard, identifyIfGiven } from './caller.js'
import type { AppEnv } from './context.js'
import { userCaller } from './identify.js'
import { json, problems, sessionSchema, userSchema } from './schemas.js'
import { type SignInDeps, invalidCredentials, roomFirst, signIn } from './sign-in.js'
import { createRouter, jsonBody, refuseIdempotencyKey } from './validate.js'

export interface AuthDeps extends SignInDeps, CallerDeps {
  sessionTtlSeconds: number
}

const credentials = {
  username: z.string().min(1).max(255),
  password: z.string().min(1).max(1024),
}
const address = z.union([z.ipv4(), z.ipv6()])
const loginBody = z.strictObject({
  ...credentials,
  ip_address: address.optional(),
  user_agent: z.string().max(512).optional(),
})
const verifyBody = z.strictObject({
  username: credentials.username.optional(),
  password: credentials.password.optional(),
  ip_address: address.optional(),
})

const noStore = { 'cache-control': 'no-store' }

/** Sign in with a password, or have one verified without a session. */
export function authRoutes(deps: AuthDeps) {
  const { db, sessionTtlSeconds, sessionIdleSeconds } = deps
  const verify = guard(deps, 'password.verify', jsonBody('optional'))
  return createRouter()
    .openapi(
      createRoute({
        method: 'post',
        path: '/v1/auth/login',
        summary: 'Sign in with a password',
        description:
          'For anyone. A program that signs its users in sends its API key (scope auth:verify) and may then say where ' +
          'the user is, in ip_address and user_agent.',
        middleware: [roomFirst(deps), refuseIdempotencyKey, jsonBody('strict')] as const,
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
        await identifyIfGiven(deps, c)
        const byProgram = mayNameAddress(c)
        if (!byProgram && (ip_address !== undefined || user_agent !== undefined)) {
          throw validationFailed('', 'ip_address and user_agent are for keys with the scope auth:verify.')
        }
        const correlation = c.get('correlation')
        const from = byProgram
          ? { ipAddress: ip_address ?? null, userAgent: user_agent ?? null }
          : { ipAddress: correlation.ipAddress, userAgent: correlation.userAgent }
        const user = await signIn(deps, c, { username, password, address: from.ipAddress })
        const token = createToken('gzs_')
        const caller = userCaller(user, null, c.get('deadline'))
        const session = {
          userId: user.id,
          userVersion: user.version,
          tokenHash: hashToken(token),
          ttlSeconds: sessionTtlSeconds,
          ...from,
        }
        const [created] = await asCaller(
          db,
          caller,
          createSession(db, session, {
            caller,
            correlation: { ...correlation, ...from },
            eventType: 'authentication',
            level: 'info',
            action: 'auth.login',
            target: `users/${user.id}`,
            message: 'Signed in',
          }),
        )
        if (created === undefined) throw invalidCredentials()
        const idle = Date.parse(created.last_activity) + sessionIdleSeconds * 1000
        return c.json(
          {
            token,
            session: {
              id: created.session_id,
              created_at: created.session_created_at,
              last_activity: created.last_activity,
              expires_at: created.expires_at,
              idle_expires_at: new Date(idle).toISOString().replace('Z', created.last_activity.slice(23)),
              ip_address: created.ip_address,
              user_agent: created.user_agent,
              current: true,
            },
            user: { ...user, last_login: created.last_login },
          },
          200,
          noStore,
        )
      },
    )
    .openapi(
      createRoute({
        method: 'post',
        path: '/v1/auth/verify',
        summary: 'Verify a password without a session; in the body, or as Basic beside X-API-KEY',
        description: 'Without ip_address the attempt counts for the account alone, from wherever.',
        ...verify,
        middleware: [roomFirst(deps), refuseIdempotencyKey, ...verify.middleware] as const,
        request: { body: { required: false, ...json(verifyBody) } },
        responses: {
          200: { description: 'The password is right', ...json(z.object({ user: userSchema })) },
          ...problems,
        },
      }),
      async (c) => {
        const { ip_address, ...inBody } = c.req.valid('json')
        const { username, password } = basicCredentials(c) ?? inBody
        if (username === undefined || password === undefined) {
          throw new AppError('invalid_request', 'Send username and password, in the body or as Basic.')
        }
        const user = await signIn(deps, c, { username, password, address: ip_address ?? null })
        return c.json({ user }, 200, noStore)
      },
    )
}

/** The address that counts against guessing: only who may verify passwords may say where somebody is. */
function mayNameAddress(c: Context<AppEnv>): boolean {
  const scopes = c.get('caller')?.scopes
  return scopes !== undefined && scopes !== '*' && scopes.includes('auth:verify')
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
