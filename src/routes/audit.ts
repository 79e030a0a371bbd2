import { createRoute, z } from '@hono/zod-openapi'
import { appendTogether } from '../db/append-together.js'
import { type Caller, asCaller } from '../db/as-caller.js'
import {
  type EventFilter,
  type NewEvent,
  type StoredEvent,
  eventById,
  eventsIn,
  eventsPage,
  storedIds,
} from '../db/audit-events.js'
import type { Db } from '../db/database.js'
import { actorText } from '../db/identity.js'
import { AppError, type FieldError, notFound } from '../errors.js'
import type { JsonTree } from '../security/json-tree.js'
import { isWellFormedText } from '../security/well-formed-text.js'
import { eventSchema, readEvent } from './audit-event.js'
import { type CallerDeps, guard } from './caller.js'
import { decodeCursor, limit, pageOf } from './cursor.js'
import { type IdempotencyDeps, idempotencyKey, idempotent } from './idempotency.js'
import { idParam, json, problems, timestamp } from './schemas.js'
import { timeIn } from './time.js'
import { createRouter, jsonBody, jsonText } from './validate.js'

export type AuditDeps = IdempotencyDeps & CallerDeps

export const MAX_BATCH = 1000
/** So many places of one kind an event tells that were altered. */
const MAX_MARKS = 100

const eventOut = z
  .looseObject({
    id: z.int(),
    event_id: z.uuid(),
    event_type: z.string(),
    level: z.string(),
    timestamp: z.number(),
    timestamp_iso: timestamp,
    received_at: timestamp,
    source: z.enum(['service', 'client']),
    actor: z.object({ type: z.string(), id: z.int().nullable(), name: z.string().nullable() }),
    on_behalf_of: z.int().nullable(),
    action: z.string().nullable(),
    target: z.string().nullable(),
  })
  .openapi('AuditEvent')

const word = z
  .string()
  .min(1)
  .max(512)
  .refine(isWellFormedText, 'must be well-formed text without NUL')
  .optional()
const filters = z.strictObject({
  event_type: word,
  level: z.enum(['debug', 'info', 'warning', 'error', 'critical']).optional(),
  user_id: word,
  actor_id: idParam.optional(),
  on_behalf_of: idParam.optional(),
  agent_id: word,
  session_id: word,
  action: word,
  target: word,
  request_id: word,
  trace_id: word,
  source: z.enum(['service', 'client']).optional(),
  start_time: timeIn.optional(),
  end_time: timeIn.optional(),
  received_after: timeIn.optional(),
})

/** Append events, one or many; read them newest first. */
export function auditRoutes(deps: AuditDeps) {
  const { db } = deps
  const router = createRouter()
  router.openAPIRegistry.register('AuditEventIn', eventSchema)
  return router
    .openapi(
      createRoute({
        method: 'post',
        path: '/v1/audit/events',
        summary: 'Append one event, or an array of up to 1000; idempotent by event_id',
        ...guard(deps, 'audit.append', jsonBody('audit')),
        parameters: [idempotencyKey],
        request: {
          query: z.strictObject({ partial: z.enum(['true', 'false']).optional() }),
          body: {
            required: true,
            ...json(
              z
                .unknown()
                .openapi({ oneOf: [{ $ref: '#/components/schemas/AuditEventIn' }, { type: 'array' }] }),
            ),
          },
        },
        responses: {
          201: {
            description: 'Stored; duplicates were there already, conflicts are the same id with another body',
            ...json(
              z.object({
                accepted: z.int(),
                duplicates: z.int(),
                conflicts: z.array(z.string()),
                rejected: z
                  .array(z.object({ index: z.int(), path: z.string(), message: z.string() }))
                  .optional(),
              }),
            ),
          },
          ...problems,
        },
      }),
      async (c) => {
        const body = await c.req.json<JsonTree>()
        const trees = Array.isArray(body) ? body : [body]
        if (trees.length === 0 || trees.length > MAX_BATCH) {
          throw new AppError('validation_failed', `A batch has 1 to ${MAX_BATCH} events.`, {
            errors: [{ path: '', message: `must have 1 to ${MAX_BATCH} events` }],
          })
        }
        const partial = c.req.valid('query').partial === 'true'
        const replaced = c.get('replacedAt') ?? []
        const correlation = c.get('correlation')
        // An id that this service made for the request says nothing of the events in it.
        const requestId = c.req.header('x-request-id') === undefined ? null : correlation.requestId
        const { good, rejected } = readAll(trees, Array.isArray(body), replaced, {
          ...correlation,
          requestId,
        })
        if (rejected.length > 0 && !partial) {
          const errors = rejected.map(({ index, path, message }) => ({
            path: Array.isArray(body) ? `/${index}${path}` : path,
            message,
          }))
          throw new AppError('validation_failed', 'Nothing was stored: some events do not fit.', { errors })
        }
        // Events are idempotent by their ids; a key covers those whose sender gave them none.
        return await idempotent(c, deps, async (db) => {
          const outcome = await append(db, c.get('caller'), good)
          return c.json({ ...outcome, ...(partial ? { rejected } : {}) }, 201)
        })
      },
    )
    .openapi(
      createRoute({
        method: 'get',
        path: '/v1/audit/events',
        summary: 'Events by filters, newest arrival first',
        ...guard(deps, 'audit.read'),
        request: { query: filters.extend({ limit, cursor: z.string().max(1024).optional() }) },
        responses: {
          200: {
            description: 'A page of events',
            ...json(z.object({ items: z.array(eventOut), next_cursor: z.string().nullable() })),
          },
          ...problems,
        },
      }),
      async (c) => {
        const { limit: size, cursor, ...filter } = c.req.valid('query')
        const after =
          cursor === undefined
            ? undefined
            : decodeCursor(
                cursor,
                filter,
                z.tuple([timestamp.refine((at) => !at.startsWith('0000')), z.int().min(1)]),
              )
        const [row] = await asCaller(
          db,
          c.get('caller'),
          eventsPage(db, {
            ...(filter as EventFilter),
            limit: size + 1,
            afterReceivedAt: after?.[0],
            afterId: after?.[1],
          }),
        )
        const { items, next_cursor } = pageOf(
          eventsIn(row?.events ?? ''),
          size,
          filter,
          ({ received_at, id }) => [received_at, Number(id)],
        )
        return jsonText(
          c,
          `{"items":[${items.map(eventJson).join(',')}],"next_cursor":${JSON.stringify(next_cursor)}}`,
          200,
        )
      },
    )
    .openapi(
      createRoute({
        method: 'get',
        path: '/v1/audit/events/{event_id}',
        summary: 'One event by its event_id',
        ...guard(deps, 'audit.read'),
        request: { params: z.object({ event_id: z.uuid() }) },
        responses: { 200: { description: 'The event', ...json(eventOut) }, ...problems },
      }),
      async (c) => {
        const [row] = await asCaller(
          db,
          c.get('caller'),
          eventById(db, c.req.valid('param').event_id.toLowerCase()),
        )
        const [event] = eventsIn(row?.events ?? '')
        if (event === undefined) throw notFound('event')
        return jsonText(c, eventJson(event), 200)
      },
    )
}

interface Rejected extends FieldError {
  index: number
}

function readAll(
  trees: JsonTree[],
  isBatch: boolean,
  replacedAt: string[],
  correlation: Parameters<typeof readEvent>[2],
): { good: NewEvent[]; rejected: Rejected[] } {
  const good: NewEvent[] = []
  const rejected: Rejected[] = []
  const replacedIn = new Map<number, string[]>()
  for (const place of replacedAt) {
    const index = isBatch ? Number(/^\/(\d+)/.exec(place)?.[1]) : 0
    const inside = isBatch ? place.slice(String(index).length + 1) : place
    replacedIn.set(index, [...(replacedIn.get(index) ?? []), inside].slice(0, MAX_MARKS))
  }
  for (const [index, tree] of trees.entries()) {
    const replaced = replacedIn.get(index) ?? []
    const event = readEvent(tree, { replaced }, correlation)
    if (Array.isArray(event)) rejected.push(...event.map((fault) => ({ index, ...fault })))
    else good.push(event)
  }
  return { good, rejected }
}

/** Stores what is new by its id; the same id with the same body is a duplicate, with another a conflict. */
async function append(
  db: Db,
  caller: Caller,
  events: NewEvent[],
): Promise<{ accepted: number; duplicates: number; conflicts: string[] }> {
  const first = new Map<string, NewEvent>()
  for (const event of events) if (!first.has(event.columns.eventId)) first.set(event.columns.eventId, event)
  const freshIds =
    first.size === 0 ? new Set<string>() : await appendTogether(db, caller, [...first.values()])
  if (freshIds.size === events.length) return { accepted: freshIds.size, duplicates: 0, conflicts: [] }
  const stored = new Map<string, string>()
  const known: string[] = []
  for (const [eventId, { columns }] of first) {
    if (freshIds.has(eventId)) stored.set(eventId, columns.bodyHash)
    else known.push(eventId)
  }
  if (known.length > 0) {
    for (const row of await asCaller(db, caller, storedIds(db, known))) {
      if (row.actor === actorText(caller.actor)) stored.set(row.event_id, row.body_hash)
    }
  }
  const counted = new Set(freshIds)
  let duplicates = 0
  const conflicts = new Set<string>()
  for (const { columns } of events) {
    if (counted.delete(columns.eventId)) continue
    if (stored.get(columns.eventId) === columns.bodyHash) duplicates += 1
    else conflicts.add(columns.eventId)
  }
  return { accepted: freshIds.size, duplicates, conflicts: [...conflicts] }
}

/** The stored text with what the service knows beside it: spliced, so that numbers keep their spelling. */
function eventJson(row: StoredEvent): string {
  return (
    `${row.event.slice(0, -1)},"id":${row.id},"received_at":"${row.received_at}","source":${row.source},` +
    `"actor":{"type":${row.actor_type},"id":${row.actor_id},"name":${row.actor_name}},` +
    `"on_behalf_of":${row.on_behalf_of},"action":${row.action},"target":${row.target},` +
    `"timestamp_iso":"${row.occurred_at}"}`
  )
}
