import { createHash, randomUUID } from 'node:crypto'
import { type Compilable, type QueryCreator, type RawBuilder, sql } from 'kysely'
import { canonicalJson } from '../security/json-text.js'
import type { JsonObject } from '../security/json-tree.js'
import { type Caller, SYSTEM, actorText } from './as-caller.js'
import type { Db, Tx } from './database.js'
import type { DB } from './types.js'

/** What ties an event to the request it came with; all of it reaches the trail and the log. */
export interface Correlation {
  requestId: string | null
  traceId: string | null
  spanId: string | null
  /** The consumer's own session id (X-Session-ID), not a session of this service. */
  sessionId: string | null
  ipAddress: string | null
  userAgent: string | null
  endpoint: string | null
}

/** Of what no request asked for: starts, migrations. */
export const NO_REQUEST: Correlation = {
  requestId: null,
  traceId: null,
  spanId: null,
  sessionId: null,
  ipAddress: null,
  userAgent: null,
  endpoint: null,
}

/** An event that the service itself tells, with the change it is about. */
export interface ServiceEvent {
  caller: Caller
  correlation: Correlation
  eventType: 'authentication' | 'authorization' | 'config_change' | 'user_action' | 'system_event'
  level: 'info' | 'warning' | 'error'
  /** What was done, as `config.put`. */
  action: string
  /** What it was done to, as `config/global/settings`. */
  target: string | null
  message: string
  metadata?: JsonObject
}

/** Stands where the change's own version will be, which only the statement knows; no text holds a NUL. */
const VERSION_HOLE = '\u0000'

/**
 * Adds to a statement whose CTE `change` makes a change: the audit row of it, in the same statement.
 * No row of `change`, no audit row. With `{ version: true }` the event tells `change.version`.
 */
export function withAudit<D extends DB>(
  creator: QueryCreator<D>,
  event: ServiceEvent,
  options: { version?: true } = {},
): QueryCreator<D> {
  const eventId = randomUUID()
  const occurredAt = new Date()
  const metadata = { ...event.metadata, ...(options.version === undefined ? {} : { version: VERSION_HOLE }) }
  const text = eventText(event, eventId, occurredAt, metadata)
  const { caller, correlation } = event
  // The statement's own CTEs stay what they are; only Kysely's type of them is beyond a generic function.
  return (creator as unknown as QueryCreator<DB>)
    .with('audit_id', () => auditIdRow(caller, eventId, text))
    .with(
      'audit_row',
      () => sql<object>`(insert into audit_events (event_id, occurred_at, event_type, level, source, actor_type, actor_id,
          actor_name, on_behalf_of, action, target, user_id, session_id, request_id, trace_id, event)
        select cast(${eventId} as uuid), cast(${occurredAt.toISOString()} as timestamptz), ${asText(event.eventType)},
          ${asText(event.level)}, 'service', ${asText(caller.actor.type)}, cast(${caller.actor.id} as integer),
          ${asText(caller.actor.name)}, cast(${caller.onBehalfOf} as integer), ${asText(event.action)},
          ${asText(event.target)}, ${asText(userIdText(caller))}, ${asText(correlation.sessionId)},
          ${asText(correlation.requestId)}, ${asText(correlation.traceId)}, ${eventExpression(text)}
        from change limit 1)`,
    ) as unknown as QueryCreator<D>
}

/** An event of the service that tells of no change (a report was run): a statement of its own. */
export function recordEvent(db: Db | Tx, event: ServiceEvent): Compilable<{ one: number }> {
  const change = db.with('change', () => sql<{ one: number }>`(select 1 as one)`)
  return withAudit(change, event).selectFrom('change').select('change.one')
}

/** The same with no caller to tell of (a failed sign-in): for asApp. */
export function recordSystemEvent(db: Db, event: Omit<ServiceEvent, 'caller'>): Compilable<{ one: number }> {
  return recordEvent(db, { ...event, caller: SYSTEM })
}

function auditIdRow(caller: Caller, eventId: string, text: string): RawBuilder<object> {
  const bodyHash = createHash('sha256').update(text).digest('hex')
  return sql<object>`(insert into audit_event_ids (event_id, actor, on_behalf_of, body_hash)
    select cast(${eventId} as uuid), ${asText(actorText(caller.actor))}, cast(${caller.onBehalfOf} as integer),
      ${asText(bodyHash)} from change limit 1)`
}

function eventText(event: ServiceEvent, eventId: string, occurredAt: Date, metadata: JsonObject): string {
  const { correlation } = event
  const fields = {
    event_id: eventId,
    event_type: event.eventType,
    level: event.level,
    message: event.message,
    timestamp: occurredAt.getTime() / 1000,
    user_id: userIdText(event.caller),
    session_id: correlation.sessionId,
    ip_address: correlation.ipAddress,
    user_agent: correlation.userAgent,
    endpoint: correlation.endpoint,
    request_id: correlation.requestId,
    trace_id: correlation.traceId,
    span_id: correlation.spanId,
    metadata,
  }
  return canonicalJson(Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== null)))
}

function eventExpression(text: string): RawBuilder<string> {
  const [before, after] = text.split(JSON.stringify(VERSION_HOLE))
  return after === undefined ? asText(text) : sql`${before} || cast(change.version as text) || ${after}`
}

function userIdText(caller: Caller): string | null {
  return caller.userId === null ? null : String(caller.userId)
}

/** In a SELECT list a parameter has no column to take its type from. */
function asText(value: string | null): RawBuilder<string> {
  return sql<string>`cast(${value} as text)`
}
