import { createRoute, z } from '@hono/zod-openapi'
import type { Context } from 'hono'
import { asCaller } from '../db/as-caller.js'
import type { Db } from '../db/database.js'
import { reauthenticateSession } from '../db/sessions.js'
import { inTransaction } from '../db/transaction.js'
import { type NewPassword, type User, lockUser, setPassword } from '../db/users.js'
import { AppError } from '../errors.js'
import { createPassword } from '../security/tokens.js'
import { type CallerDeps, guard } from './caller.js'
import type { AppEnv } from './context.js'
import { eventOf } from './events.js'
import { type IdempotencyDeps, idempotencyKey, idempotent } from './idempotency.js'
import { json, problems } from './schemas.js'
import { type SignInDeps, countedComparison, newHashFormat, signIn } from './sign-in.js'
import { createRouter, jsonBody } from './validate.js'

export type PasswordDeps = SignInDeps & CallerDeps & IdempotencyDeps

const password = z.string().min(1).max(1024)
const changeBody = z.strictObject({ current_password: password, new_password: password })
const reauthenticateBody = z.strictObject({ password })
const rotateBody = z.strictObject({ current_password: password })

/** One's own password: change it, have one made, give it again. Each gives the present one, throttled as a sign-in is. */
export function passwordRoutes(deps: PasswordDeps) {
  const { db, passwords } = deps
  return createRouter()
    .openapi(
      createRoute({
        method: 'post',
        path: '/v1/auth/password',
        summary: 'Change your password; all your other sessions end',
        ...guard(deps, 'password.change', jsonBody('strict')),
        parameters: [idempotencyKey],
        request: { body: { required: true, ...json(changeBody) } },
        responses: { 204: { description: 'Changed' }, ...problems },
      }),
      async (c) => {
        const { current_password, new_password } = c.req.valid('json')
        const prepare = async (): Promise<{ user: User; hash: string }> => {
          const { username } = c.get('session')
          await passwords.assertAcceptable(new_password, { username, path: '/new_password' })
          const user = await giveAgain(c, current_password)
          return { user, hash: await passwords.hash(new_password, await newHashFormat(db)) }
        }
        return await idempotent(
          c,
          deps,
          async (db, _, { user, hash }) => {
            await changeOwn(c, db, user, {
              hash,
              mustChange: false,
              keepSession: c.get('session').session_id,
            })
            return c.body(null, 204)
          },
          { prepare, compared: (compare) => compared(c, compare) },
        )
      },
    )
    .openapi(
      createRoute({
        method: 'post',
        path: '/v1/users/me/rotate-password',
        summary: 'Have a password made for you, shown once; all your other sessions end',
        ...guard(deps, 'password.rotate', jsonBody('strict')),
        parameters: [idempotencyKey],
        request: { body: { required: true, ...json(rotateBody) } },
        responses: {
          200: { description: 'The new password', ...json(z.object({ password: z.string() })) },
          ...problems,
        },
      }),
      async (c) => {
        const made = createPassword()
        const prepare = async (): Promise<{ user: User; hash: string }> => {
          const user = await giveAgain(c, c.req.valid('json').current_password)
          return { user, hash: await passwords.hash(made, await newHashFormat(db)) }
        }
        return await idempotent(
          c,
          deps,
          async (db, once, { user, hash }) => {
            await changeOwn(c, db, user, {
              hash,
              mustChange: false,
              keepSession: c.get('session').session_id,
            })
            once(user.id)
            return c.json({ password: made }, 200, { 'cache-control': 'no-store' })
          },
          { prepare, compared: (compare) => compared(c, compare) },
        )
      },
    )
    .openapi(
      createRoute({
        method: 'post',
        path: '/v1/auth/reauthenticate',
        summary: 'Give your password again: for 15 minutes this session may do what needs a fresh one',
        ...guard(deps, 'password.reauthenticate', jsonBody('strict')),
        parameters: [idempotencyKey],
        request: { body: { required: true, ...json(reauthenticateBody) } },
        responses: { 204: { description: 'Given' }, ...problems },
      }),
      async (c) => {
        const caller = c.get('caller')
        const session = c.get('session')
        const event = eventOf(c, {
          eventType: 'authentication',
          action: 'auth.reauthenticate',
          target: `users/${session.id}`,
          message: 'Gave the password again',
        })
        return await idempotent(
          c,
          deps,
          async (db) => {
            await asCaller(db, caller, reauthenticateSession(db, session.session_id, event))
            return c.body(null, 204)
          },
          {
            about: `sessions/${session.session_id}`,
            prepare: () => giveAgain(c, c.req.valid('json').password),
            compared: (compare) => compared(c, compare),
          },
        )
      },
    )

  /** The signed-in user as of now; `invalid_credentials` when that is not the password. */
  async function giveAgain(c: Context<AppEnv>, current: string): Promise<User> {
    const session = c.get('session')
    const correlation = c.get('correlation')
    const attempt = { username: session.username, password: current, address: correlation.ipAddress }
    const user = await signIn(deps, c, attempt)
    if (user.id !== session.id) throw new Error('another user of the same name signed in')
    return user
  }

  function compared(c: Context<AppEnv>, compare: () => Response): Promise<Response> {
    const session = c.get('session')
    const correlation = c.get('correlation')
    return countedComparison(deps, c, { username: session.username, address: correlation.ipAddress }, compare)
  }

  async function changeOwn(c: Context<AppEnv>, db: Db, user: User, next: NewPassword): Promise<void> {
    const event = eventOf(c, {
      eventType: 'authentication',
      level: 'warning',
      action: 'password.change',
      target: `users/${user.id}`,
      message: 'Changed the own password',
    })
    const [changed] = await inTransaction(db, c.get('caller'), async (tx) => {
      await tx.executeQuery(lockUser(tx, user.id))
      return (await tx.executeQuery(setPassword(tx, user, next, event))).rows
    })
    if (changed === undefined)
      throw new AppError('conflict', 'Your user was changed in the same moment; try again.')
  }
}
