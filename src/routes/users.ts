import { createRoute, z } from '@hono/zod-openapi'
import type { Context } from 'hono'
import { asCaller } from '../db/as-caller.js'
import type { Db, Tx } from '../db/database.js'
import { sqlState } from '../db/pg-errors.js'
import { endSessions, sessionsPage } from '../db/sessions.js'
import { inTransaction } from '../db/transaction.js'
import { applyChange, assertNoNamesake, forgetFailures, replacePassword } from '../db/user-changes.js'
import {
  NO_PASSWORD,
  ROLES,
  type Role,
  type User,
  createUser,
  lockOwners,
  userById,
  usernameTaken,
  usersPage,
} from '../db/users.js'
import { AppError, notFound, validationFailed } from '../errors.js'
import { createPassword } from '../security/tokens.js'
import { isWellFormedText } from '../security/well-formed-text.js'
import { outranks, rankOf } from './access.js'
import { type CallerDeps, guard, requireFreshPassword } from './caller.js'
import type { AppEnv } from './context.js'
import { idBehind, limit, pageOf } from './cursor.js'
import { eventOf } from './events.js'
import { type IdempotencyDeps, idempotencyKey, idempotent } from './idempotency.js'
import { etag, isUnchanged, preconditionOf, stale } from './preconditions.js'
import { idParam, json, problems, sessionSchema, userSchema, username } from './schemas.js'
import { sessionPageOut } from './sessions.js'
import { type SignInDeps, bucketsOf, newHashFormat } from './sign-in.js'
import { createRouter, jsonBody } from './validate.js'

export type UserDeps = SignInDeps & CallerDeps & IdempotencyDeps

const role = z.enum(ROLES)
const newUser = z.strictObject({
  username,
  password: z.string().min(1).max(1024).optional(),
  role: role.default('user'),
  must_change_password: z.boolean().optional(),
})
const userPatch = z
  .strictObject({
    role: role.optional(),
    is_active: z.boolean().optional(),
    must_change_password: z.boolean().optional(),
  })
  .refine((patch) => Object.keys(patch).length > 0, 'name at least one field')
const flag = z.enum(['true', 'false']).transform((text) => text === 'true')
const listQuery = z.strictObject({
  username: z.string().max(255).refine(isWellFormedText, 'must be well-formed text without NUL').optional(),
  role: role.optional(),
  is_active: flag.optional(),
  limit,
  cursor: z.string().max(512).optional(),
})
const oneUser = { description: 'The user; ETag is the version', ...json(userSchema) }
const byId = z.object({ id: idParam })
const noStore = { 'cache-control': 'no-store' }

/** Users, for those who outrank them. Who acts on whom is the database's to say; here it becomes 403 or 404. */
export function userRoutes(deps: UserDeps) {
  const { db, passwords, sessionIdleSeconds } = deps
  return createRouter()
    .openapi(
      createRoute({
        method: 'get',
        path: '/v1/users/me',
        summary: 'You, or whom you act for',
        ...guard(deps, 'users.me'),
        responses: { 200: oneUser, 304: { description: 'Unchanged since If-None-Match' }, ...problems },
      }),
      async (c) => userResponse(c, await visible(db, c, c.get('caller').userId ?? 0)),
    )
    .openapi(
      createRoute({
        method: 'get',
        path: '/v1/users',
        summary: 'Users of lower rank and yourself, by id',
        ...guard(deps, 'users.list'),
        request: { query: listQuery },
        responses: {
          200: {
            description: 'A page of users',
            ...json(z.object({ items: z.array(userSchema), next_cursor: z.string().nullable() })),
          },
          ...problems,
        },
      }),
      async (c) => {
        const { limit: size, cursor, username, role, is_active: isActive } = c.req.valid('query')
        const filters = { username, role, isActive }
        const after = idBehind(cursor, filters) ?? 0
        const rows = await asCaller(db, c.get('caller'), usersPage(db, filters, after, size + 1))
        return c.json(
          pageOf(rows, size, filters, ({ id }) => [id]),
          200,
        )
      },
    )
    .openapi(
      createRoute({
        method: 'post',
        path: '/v1/users',
        summary: 'Create a user; without a password one is made and shown once',
        description:
          'A made password must be changed at the first sign-in unless must_change_password says otherwise. A user ' +
          'of the role service has none and signs in by keys alone. Managers are made with a fresh password only.',
        ...guard(deps, 'users.create', jsonBody('strict')),
        parameters: [idempotencyKey],
        request: { body: { required: true, ...json(newUser) } },
        responses: {
          201: {
            description: 'The user, and the password if it was made here',
            ...json(userSchema.extend({ password: z.string().optional() })),
          },
          ...problems,
        },
      }),
      async (c) => {
        const { username, password, role, must_change_password } = c.req.valid('json')
        requireGrantable(c, role)
        if (rankOf(role) > 1) requireFreshPassword(c)
        if (role === 'service' && password !== undefined)
          throw validationFailed('/password', 'A user of the role service has no password.')
        const made = role === 'service' || password !== undefined ? undefined : createPassword()
        const prepare = async (): Promise<string> => {
          await assertNoNamesake(db, username)
          if (role === 'service') return NO_PASSWORD
          if (password !== undefined) await passwords.assertAcceptable(password, { username })
          return await passwords.hash(password ?? made ?? '', await newHashFormat(db))
        }
        return await idempotent(
          c,
          deps,
          async (db, once, passwordHash) => {
            const user = {
              username,
              passwordHash,
              role,
              mustChangePassword: must_change_password ?? made !== undefined,
            }
            const event = userEvent(c, 'user.create', null, `User ${username} created`, { username, role })
            const [created] = await asCaller(db, c.get('caller'), createUser(db, user, event)).catch(
              usernameTaken,
            )
            if (created === undefined) throw new AppError('internal', 'The request failed.')
            c.header('etag', etag(created.version))
            c.header('location', `/v1/users/${created.id}`)
            if (made === undefined) return c.json(created, 201)
            once(created.id)
            return c.json({ ...created, password: made }, 201, noStore)
          },
          { prepare },
        )
      },
    )
    .openapi(
      createRoute({
        method: 'get',
        path: '/v1/users/{id}',
        summary: 'A user of lower rank, or yourself',
        ...guard(deps, 'users.read'),
        request: { params: byId },
        responses: { 200: oneUser, 304: { description: 'Unchanged since If-None-Match' }, ...problems },
      }),
      async (c) => userResponse(c, await visible(db, c, c.req.valid('param').id)),
    )
    .openapi(
      createRoute({
        method: 'patch',
        path: '/v1/users/{id}',
        summary: 'Change role, activity, or whether the password must be changed',
        description:
          'Another role and deactivation end all sessions of the user. A role takes a fresh password.',
        ...guard(deps, 'users.change', jsonBody('strict')),
        parameters: [idempotencyKey],
        request: {
          params: byId,
          body: { required: true, content: { 'application/merge-patch+json': { schema: userPatch } } },
        },
        responses: { 200: oneUser, ...problems },
      }),
      async (c) => {
        const { id } = c.req.valid('param')
        const patch = userPatch.parse(await c.req.json())
        if (patch.role !== undefined) {
          requireGrantable(c, patch.role)
          requireFreshPassword(c)
        }
        return await idempotent(c, deps, async (db) => {
          const user = await transaction(db, c, (tx) => changed(tx, c, id, patch, 'user.change'))
          c.header('etag', etag(user.version))
          return c.json(user, 200)
        })
      },
    )
    .openapi(
      createRoute({
        method: 'delete',
        path: '/v1/users/{id}',
        summary: 'Deactivate a user; all sessions end, and keys no longer work',
        ...guard(deps, 'users.deactivate'),
        parameters: [idempotencyKey],
        request: { params: byId },
        responses: { 204: { description: 'Deactivated' }, ...problems },
      }),
      async (c) => {
        const { id } = c.req.valid('param')
        return await idempotent(c, deps, async (db) => {
          await transaction(db, c, (tx) => changed(tx, c, id, { is_active: false }, 'user.deactivate'))
          return c.body(null, 204)
        })
      },
    )
    .openapi(
      createRoute({
        method: 'post',
        path: '/v1/users/{id}/rotate-password',
        summary: 'Make a new password, shown once; it must be changed, and all sessions end',
        ...guard(deps, 'users.rotate_password'),
        parameters: [idempotencyKey],
        request: { params: byId },
        responses: {
          200: { description: 'The new password', ...json(z.object({ password: z.string() })) },
          ...problems,
        },
      }),
      async (c) => {
        const { id } = c.req.valid('param')
        const made = createPassword()
        const prepare = async (): Promise<string> => {
          // Before the hash is made: who may not do it costs nothing.
          const user = await managed(db, c, id)
          if (rankOf(user.role) > 1) requireFreshPassword(c)
          return await passwords.hash(made, await newHashFormat(db))
        }
        return await idempotent(
          c,
          deps,
          async (db, once, hash) => {
            await transaction(db, c, async (tx) => {
              const user = await managed(tx, c, id)
              const event = userEvent(c, 'user.rotate_password', id, 'Password made anew')
              await replacePassword(tx, user, hash, event)
            })
            once(id)
            return c.json({ password: made }, 200, noStore)
          },
          { prepare },
        )
      },
    )
    .openapi(
      createRoute({
        method: 'post',
        path: '/v1/users/{id}/unlock',
        summary: 'Forget failed sign-ins, so that the user may try again at once',
        ...guard(deps, 'users.unlock'),
        parameters: [idempotencyKey],
        request: { params: byId },
        responses: { 204: { description: 'Unlocked' }, ...problems },
      }),
      async (c) => {
        const { id } = c.req.valid('param')
        return await idempotent(c, deps, async (db) => {
          await transaction(db, c, async (tx) => {
            const user = await managed(tx, c, id)
            const { account } = bucketsOf(deps, user.username, null)
            const event = userEvent(c, 'user.unlock', id, 'Failed sign-ins forgotten')
            await forgetFailures(tx, c.get('caller'), user, [account], event)
          })
          return c.body(null, 204)
        })
      },
    )
    .openapi(
      createRoute({
        method: 'get',
        path: '/v1/users/{id}/sessions',
        summary: "A user's sessions, newest first",
        ...guard(deps, 'users.list_sessions'),
        request: {
          params: byId,
          query: z.strictObject({ limit, cursor: z.string().max(512).optional() }),
        },
        responses: {
          200: {
            description: 'A page of sessions',
            ...json(z.object({ items: z.array(sessionSchema), next_cursor: z.string().nullable() })),
          },
          ...problems,
        },
      }),
      async (c) => {
        const { limit: size, cursor } = c.req.valid('query')
        const { id } = await visible(db, c, c.req.valid('param').id)
        const filters = { of: id }
        const before = idBehind(cursor, filters)
        const caller = c.get('caller')
        const rows = await asCaller(db, caller, sessionsPage(db, id, sessionIdleSeconds, before, size + 1))
        return c.json(sessionPageOut(rows, size, filters, caller.sessionId), 200)
      },
    )
    .openapi(
      createRoute({
        method: 'delete',
        path: '/v1/users/{id}/sessions',
        summary: "End all of a user's sessions",
        ...guard(deps, 'users.end_sessions'),
        parameters: [idempotencyKey],
        request: { params: byId },
        responses: { 204: { description: 'Ended' }, ...problems },
      }),
      async (c) => {
        const { id } = c.req.valid('param')
        return await idempotent(c, deps, async (db) => {
          if (id !== c.get('caller').userId) await managed(db, c, id)
          const event = userEvent(c, 'user.end_sessions', id, 'All sessions ended')
          await asCaller(db, c.get('caller'), endSessions(db, id, null, event))
          return c.body(null, 204)
        })
      },
    )
}

/** In one transaction, which an Idempotency-Key may have opened already. */
async function transaction<T>(db: Db, c: Context<AppEnv>, work: (tx: Tx) => Promise<T>): Promise<T> {
  try {
    return await inTransaction(db, c.get('caller'), work)
  } catch (error) {
    // The policies' word, where ranks changed between the look and the change.
    if (sqlState(error) === '42501')
      throw new AppError('forbidden', 'You may not act on this user.', { cause: error })
    throw error
  }
}

async function changed(
  tx: Tx,
  c: Context<AppEnv>,
  id: number,
  patch: z.output<typeof userPatch>,
  action: string,
): Promise<User> {
  // First, so that what is read next is read when nobody else is at it.
  await tx.executeQuery(lockOwners(tx))
  const user = await managed(tx, c, id)
  const expected = preconditionOf(c)
  if (expected?.is === 'absent' || (expected?.is === 'version' && !expected.versions.includes(user.version)))
    throw stale()
  // A manager who comes back has the old password, which a stolen session may know.
  if (patch.is_active === true && rankOf(user.role) > 1) requireFreshPassword(c)
  return await applyChange(tx, user, patch, (change) =>
    userEvent(c, action, id, `User changed: ${Object.keys(change).join(', ')}`, { ...change }),
  )
}

/** The user, or 404 for one whom the caller may not see. */
async function visible(db: Db, c: Context<AppEnv>, id: number): Promise<User> {
  const [user] = await asCaller(db, c.get('caller'), userById(db, id))
  if (user === undefined) throw notFound('user')
  return user
}

/** The same for one to act on: 403 for oneself, whose own routes ask for the password. */
async function managed(db: Db, c: Context<AppEnv>, id: number): Promise<User> {
  const user = await visible(db, c, id)
  if (id === c.get('caller').userId || !outranks(c.get('caller').role as Role, user.role))
    throw new AppError('forbidden', 'You may not act on this user.')
  return user
}

function requireGrantable(c: Context<AppEnv>, role: Role): void {
  if (!outranks(c.get('caller').role as Role, role))
    throw new AppError('forbidden', 'You may not give this role.')
}

function userResponse(c: Context<AppEnv>, user: User) {
  if (isUnchanged(c, user.version)) return c.body(null, 304, { etag: etag(user.version) }) as never
  c.header('etag', etag(user.version))
  return c.json(user, 200)
}

function userEvent(
  c: Context<AppEnv>,
  action: string,
  id: number | null,
  message: string,
  metadata: Record<string, string | boolean> = {},
) {
  const target = id === null ? null : `users/${id}`
  return eventOf(c, { eventType: 'user_action', level: 'warning', action, target, message, metadata })
}
