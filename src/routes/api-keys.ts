import { createRoute, z } from '@hono/zod-openapi'
import type { Context } from 'hono'
import { SCOPES, createKey, deleteKey, keysPage } from '../db/api-keys.js'
import { asCaller } from '../db/as-caller.js'
import { type Role, type User, userById } from '../db/users.js'
import { AppError, notFound, validationFailed } from '../errors.js'
import { createToken, hashToken } from '../security/tokens.js'
import { rankOf, requireUsable } from './access.js'
import { type CallerDeps, guard, requireFreshPassword } from './caller.js'
import type { AppEnv } from './context.js'
import { idBehind, limit, pageOf } from './cursor.js'
import { eventOf } from './events.js'
import { type IdempotencyDeps, idempotencyKey, idempotent } from './idempotency.js'
import { idParam, json, keyName, problems, timestamp } from './schemas.js'
import { timeIn } from './time.js'
import { createRouter, jsonBody } from './validate.js'

const keySchema = z
  .object({
    id: z.int(),
    name: z.string(),
    prefix: z.string(),
    scopes: z.array(z.enum(SCOPES)),
    user_id: z.int(),
    created_at: timestamp,
    expires_at: timestamp.nullable(),
    last_used_at: timestamp.nullable(),
  })
  .openapi('ApiKey')
const newKey = z.strictObject({
  name: keyName,
  scopes: z
    .array(z.enum(SCOPES))
    .min(1)
    .max(SCOPES.length)
    .refine((scopes) => new Set(scopes).size === scopes.length, 'names a scope twice'),
  expires_at: timeIn.nullish(),
  user_id: z
    .int()
    .min(1)
    .max(2 ** 31 - 1)
    .optional(),
})

/** Keys of programs: of one's own, and of users whom one outranks. */
export function apiKeyRoutes(deps: CallerDeps & IdempotencyDeps) {
  const { db } = deps
  return createRouter()
    .openapi(
      createRoute({
        method: 'get',
        path: '/v1/api-keys',
        summary: 'Your keys and those of users of lower rank, newest first',
        ...guard(deps, 'keys.list'),
        request: {
          query: z.strictObject({
            user_id: idParam.optional(),
            limit,
            cursor: z.string().max(512).optional(),
          }),
        },
        responses: {
          200: {
            description: 'A page of keys; what opens them is shown once only, when they are made',
            ...json(z.object({ items: z.array(keySchema), next_cursor: z.string().nullable() })),
          },
          ...problems,
        },
      }),
      async (c) => {
        const { user_id, limit: size, cursor } = c.req.valid('query')
        const filters = { user_id }
        const before = idBehind(cursor, filters)
        const rows = await asCaller(db, c.get('caller'), keysPage(db, user_id, before, size + 1))
        return c.json(
          pageOf(rows, size, filters, ({ id }) => [id]),
          200,
        )
      },
    )
    .openapi(
      createRoute({
        method: 'post',
        path: '/v1/api-keys',
        summary: 'Make a key for yourself or a user of strictly lower rank; it is shown once',
        description: 'Takes a fresh password. Scopes are those that both of you have a use for.',
        ...guard(deps, 'keys.create', jsonBody('strict')),
        parameters: [idempotencyKey],
        request: { body: { required: true, ...json(newKey) } },
        responses: {
          201: { description: 'The key', ...json(keySchema.extend({ key: z.string() })) },
          ...problems,
        },
      }),
      async (c) => {
        requireFreshPassword(c)
        const { name, scopes, expires_at, user_id } = c.req.valid('json')
        if (expires_at != null && Date.parse(expires_at) <= Date.now())
          throw validationFailed('/expires_at', 'This is over already.')
        const token = createToken('gzk_')
        return await idempotent(c, deps, async (db, once) => {
          const holder = await keyHolder(c, db, user_id ?? c.get('session').id)
          // Also of the maker: or an admin could have done by a program's key what is an owner's alone.
          requireUsable(scopes, [holder.role, c.get('caller').role as Role])
          const key = {
            userId: holder.id,
            name,
            prefix: token.slice(0, 8),
            keyHash: hashToken(token),
            scopes,
            expiresAt: expires_at ?? null,
          }
          const event = keyEvent(
            c,
            'api_key.create',
            `Key made for ${holder.username}`,
            `users/${holder.id}`,
            {
              name,
              scopes,
            },
          )
          const [made] = await asCaller(db, c.get('caller'), createKey(db, key, event))
          if (made === undefined) throw new AppError('internal', 'The request failed.')
          once(made.id)
          return c.json({ ...made, key: token }, 201, { 'cache-control': 'no-store' })
        })
      },
    )
    .openapi(
      createRoute({
        method: 'delete',
        path: '/v1/api-keys/{id}',
        summary: 'Revoke a key, from the next request on',
        ...guard(deps, 'keys.delete'),
        parameters: [idempotencyKey],
        request: { params: z.object({ id: idParam }) },
        responses: { 204: { description: 'Revoked' }, ...problems },
      }),
      async (c) => {
        const { id } = c.req.valid('param')
        const event = keyEvent(c, 'api_key.revoke', 'Key revoked', `api-keys/${id}`)
        return await idempotent(c, deps, async (db) => {
          const [revoked] = await asCaller(db, c.get('caller'), deleteKey(db, id, event))
          if (revoked === undefined) throw notFound('key')
          return c.body(null, 204)
        })
      },
    )
}

/** Oneself, or an active user of strictly lower rank: owners make no keys for each other. */
async function keyHolder(
  c: Context<AppEnv>,
  db: CallerDeps['db'],
  id: number,
): Promise<Pick<User, 'id' | 'username' | 'role'>> {
  const caller = c.get('caller')
  const session = c.get('session')
  if (id === session.id) return session
  const [user] = await asCaller(db, caller, userById(db, id))
  if (user === undefined) throw notFound('user')
  if (rankOf(user.role) >= rankOf(caller.role as Role))
    throw new AppError('forbidden', 'You make keys for yourself and for users of lower rank.')
  if (!user.is_active) throw new AppError('conflict', 'The user is not active.')
  return user
}

function keyEvent(
  c: Context<AppEnv>,
  action: string,
  message: string,
  target: string,
  metadata: Record<string, string | string[]> = {},
) {
  return eventOf(c, { eventType: 'user_action', level: 'warning', action, target, message, metadata })
}
