import { createRoute, z } from '@hono/zod-openapi'
import { asApp, asCaller } from '../db/as-caller.js'
import {
  endSession,
  endSessionOnce,
  endSessions,
  sessionByTokenHash,
  sessionsPage,
  touchSession,
  userOf,
} from '../db/sessions.js'
import { notFound } from '../errors.js'
import { hashToken, tokenKind } from '../security/tokens.js'
import { type CallerDeps, guard } from './caller.js'
import { idBehind, limit, pageOf } from './cursor.js'
import { eventOf } from './events.js'
import { type IdempotencyDeps, idempotencyKey, idempotent, idempotentStatement } from './idempotency.js'
import { idParam, json, problems, sessionOut, sessionSchema, userSchema } from './schemas.js'
import { createRouter, jsonBody, refuseIdempotencyKey } from './validate.js'

const pageSchema = z.object({ items: z.array(sessionSchema), next_cursor: z.string().nullable() })
const validBody = z.strictObject({ token: z.string().max(256) })
const validity = z.union([
  z.object({ active: z.literal(true), user: userSchema, session: sessionSchema }),
  z.object({ active: z.literal(false) }),
])

/** One's own sessions: read the one that asks, list, end; and whether a token is good, for programs. */
export function sessionRoutes(deps: CallerDeps & IdempotencyDeps) {
  const { db, sessionIdleSeconds } = deps
  const validate = guard(deps, 'sessions.validate', jsonBody('strict'))
  return createRouter()
    .openapi(
      createRoute({
        method: 'get',
        path: '/v1/auth/session',
        summary: 'Who is signed in: the cheap check',
        ...guard(deps, 'session.read'),
        responses: {
          200: {
            description: 'The session and its user',
            ...json(z.object({ user: userSchema, session: sessionSchema })),
          },
          ...problems,
        },
      }),
      (c) => {
        const session = c.get('session')
        return c.json({ user: userOf(session), session: sessionOut(session, session.session_id) }, 200)
      },
    )
    .openapi(
      createRoute({
        method: 'post',
        path: '/v1/auth/logout',
        summary: 'Sign out: the session ends',
        ...guard(deps, 'session.end'),
        parameters: [idempotencyKey],
        responses: { 204: { description: 'Signed out' }, ...problems },
      }),
      async (c) => {
        const caller = c.get('caller')
        const session = c.get('session')
        const event = eventOf(c, {
          eventType: 'authentication',
          action: 'auth.logout',
          target: `users/${session.id}`,
          message: 'Signed out',
        })
        const { session_id: sessionId, id } = session
        return await idempotentStatement(c, deps, {
          async change() {
            await asCaller(db, caller, endSession(db, sessionId, id, event))
            return c.body(null, 204)
          },
          async once(values) {
            const [found] = await asCaller(db, caller, endSessionOnce(db, sessionId, id, event, values))
            return found
          },
          status: 204,
          about: `sessions/${sessionId}`,
        })
      },
    )
    .openapi(
      createRoute({
        method: 'post',
        path: '/v1/sessions/validate',
        summary: 'Whether a session token is good, as RFC 7662; counts as activity of that session',
        ...validate,
        middleware: [refuseIdempotencyKey, ...validate.middleware] as const,
        request: { body: { required: true, ...json(validBody) } },
        responses: {
          200: { description: 'Active, with user and session, or not', ...json(validity) },
          ...problems,
        },
      }),
      async (c) => {
        const { token } = c.req.valid('json')
        if (tokenKind(token) !== 'session') return c.json({ active: false as const }, 200)
        const [session] = await asApp(
          db,
          sessionByTokenHash(db, hashToken(token), sessionIdleSeconds),
          c.get('deadline'),
        )
        if (session === undefined) return c.json({ active: false as const }, 200)
        if (session.due) await asApp(db, touchSession(db, session.session_id))
        return c.json(
          { active: true as const, user: userOf(session), session: sessionOut(session, null) },
          200,
        )
      },
    )
    .openapi(
      createRoute({
        method: 'get',
        path: '/v1/sessions',
        summary: 'Your sessions, newest first',
        ...guard(deps, 'sessions.list'),
        request: { query: z.strictObject({ limit, cursor: z.string().max(512).optional() }) },
        responses: { 200: { description: 'A page of sessions', ...json(pageSchema) }, ...problems },
      }),
      async (c) => {
        const { limit: size, cursor } = c.req.valid('query')
        const caller = c.get('caller')
        const session = c.get('session')
        const filters = { of: session.id }
        const before = idBehind(cursor, filters)
        const rows = await asCaller(
          db,
          caller,
          sessionsPage(db, session.id, sessionIdleSeconds, before, size + 1),
        )
        return c.json(sessionPageOut(rows, size, filters, session.session_id), 200)
      },
    )
    .openapi(
      createRoute({
        method: 'delete',
        path: '/v1/sessions/{id}',
        summary: 'End one of your sessions',
        ...guard(deps, 'sessions.end'),
        parameters: [idempotencyKey],
        request: { params: z.object({ id: idParam }) },
        responses: { 204: { description: 'Ended' }, ...problems },
      }),
      async (c) => {
        const { id } = c.req.valid('param')
        const caller = c.get('caller')
        const session = c.get('session')
        const event = eventOf(c, {
          eventType: 'authentication',
          action: 'session.end',
          target: `sessions/${id}`,
          message: 'Ended one of the own sessions',
        })
        return await idempotent(c, deps, async (db) => {
          const [ended] = await asCaller(db, caller, endSession(db, id, session.id, event))
          if (ended === undefined) throw notFound('session')
          return c.body(null, 204)
        })
      },
    )
    .openapi(
      createRoute({
        method: 'post',
        path: '/v1/sessions/revoke-others',
        summary: 'End all your sessions but this one',
        ...guard(deps, 'sessions.end'),
        parameters: [idempotencyKey],
        responses: { 204: { description: 'Ended' }, ...problems },
      }),
      async (c) => {
        const caller = c.get('caller')
        const session = c.get('session')
        const event = eventOf(c, {
          eventType: 'authentication',
          action: 'session.end_others',
          target: `users/${session.id}`,
          message: 'Ended all other sessions of the own',
        })
        return await idempotent(
          c,
          deps,
          async (db) => {
            await asCaller(db, caller, endSessions(db, session.id, session.session_id, event))
            return c.body(null, 204)
          },
          { about: `sessions/${session.session_id}` },
        )
      },
    )
}

/** A page of `size` rows, of which one more was asked for. */
export function sessionPageOut(
  rows: Parameters<typeof sessionOut>[0][],
  size: number,
  filters: object,
  currentId: number | null,
): z.output<typeof pageSchema> {
  const { items, next_cursor } = pageOf(rows, size, filters, ({ session_id }) => [session_id])
  return { items: items.map((row) => sessionOut(row, currentId)), next_cursor }
}
