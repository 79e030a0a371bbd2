import { hash, randomUUID } from 'node:crypto'
import { type Compilable, type QueryCreator, type RawBuilder, sql } from 'kysely'
import { canonicalJson } from '../security/json-text.js'
import type { JsonObject, JsonTree } from '../security/json-tree.js'
import { type Caller, SYSTEM } from './as-caller.js'
import { compileBySet } from './compile-once.js'
import type { Db, Tx } from './database.js'
import { actorText } from './identity.js'
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

/** What an audit row is made of: the parameters of a statement that writes one. */
export interface AuditValues {
  eventId: string
  occurredAt: string
  eventType: string
  level: string
  actor: string
  actorType: string
  actorId: number | null
  actorName: string
  onBehalfOf: number | null
  action: string
  target: string | null
  userId: string | null
  sessionId: string | null
  requestId: string | null
  traceId: string | null
  bodyHash: string
  text: string
  /** What follows the change's version, where the event tells it. */
  textBehindVersion: string | undefined
}

/** With `{ version: true }` the event tells `change.version`. */
export function auditValues(event: ServiceEvent, options: { version?: true } = {}): AuditValues {
  const eventId = randomUUID()
  const now = new Date()
  const metadata = { ...event.metadata, ...(options.version === undefined ? {} : { version: VERSION_HOLE }) }
  const whole = eventText(event, eventId, now, metadata)
  const [text = '', textBehindVersion] = whole.split(JSON.stringify(VERSION_HOLE))
  const { caller, correlation } = event
  return {
    eventId,
    occurredAt: now.toISOString(),
    eventType: event.eventType,
    level: event.level,
    actor: actorText(caller.actor),
    actorType: caller.actor.type,
    actorId: caller.actor.id,
    actorName: caller.actor.name,
    onBehalfOf: caller.onBehalfOf,
    action: event.action,
    target: event.target,
    userId: userIdText(caller),
    sessionId: correlation.sessionId,
    requestId: correlation.requestId,
    traceId: correlation.traceId,
    bodyHash: hash('sha256', whole),
    text,
    textBehindVersion,
  }
}

/**
 * Adds to a statement whose CTE `change` makes a change: the audit row of it, in the same statement.
 * No row of `change`, no audit row.
 */
export function withAuditRow<D extends DB>(creator: QueryCreator<D>, row: AuditValues): QueryCreator<D> {
  // The statement's own CTEs stay what they are; only Kysely's type of them is beyond a generic function.
  return (creator as unknown as QueryCreator<DB>)
    .with(
      'audit_id',
      () => sql<object>`(insert into audit_event_ids (event_id, actor, on_behalf_of, body_hash)
        select cast(${row.eventId} as uuid), ${asText(row.actor)}, cast(${row.onBehalfOf} as integer),
          ${asText(row.bodyHash)} from change limit 1)`,
    )
    .with(
      'audit_row',
      () => sql<object>`(insert into audit_events (event_id, occurred_at, event_type, level, source, actor_type, actor_id,
          actor_name, on_behalf_of, action, target, user_id, session_id, request_id, trace_id, event)
        select cast(${row.eventId} as uuid), cast(${row.occurredAt} as timestamptz), ${asText(row.eventType)},
          ${asText(row.level)}, 'service', ${asText(row.actorType)}, cast(${row.actorId} as integer),
          ${asText(row.actorName)}, cast(${row.onBehalfOf} as integer), ${asText(row.action)},
          ${asText(row.target)}, ${asText(row.userId)}, ${asText(row.sessionId)},
          ${asText(row.requestId)}, ${asText(row.traceId)}, ${eventExpression(row)}
        from change limit 1)`,
    ) as unknown as QueryCreator<D>
}

/** An event of the service that tells of no change (a report was run): a statement of its own. */
export function recordEvent(db: Db | Tx, event: ServiceEvent): Compilable<{ one: number }> {
  return insertEvent(db as Db, auditValues(event))
}

const insertEvent = compileBySet((db, row: AuditValues): Compilable<{ one: number }> => {
  const change = db.with('change', () => sql<{ one: number }>`(select 1 as one)`)
  return withAuditRow(change, row).selectFrom('change').select('change.one')
})

/** The same with no caller to tell of (a failed sign-in): for asApp. */
export function recordSystemEvent(db: Db, event: Omit<ServiceEvent, 'caller'>): Compilable<{ one: number }> {
  return recordEvent(db, { ...event, caller: SYSTEM })
}

/** Its names are in the canonical order already. */
function eventText(event: ServiceEvent, eventId: string, occurredAt: Date, metadata: JsonObject): string {
  const { correlation } = event
  const fields: Record<string, JsonTree> = {
    endpoint: correlation.endpoint,
    event_id: eventId,
    event_type: event.eventType,
    ip_address: correlation.ipAddress,
    level: event.level,
    message: event.message,
    metadata,
    request_id: correlation.requestId,
    session_id: correlation.sessionId,
    span_id: correlation.spanId,
    timestamp: occurredAt.getTime() / 1000,
    trace_id: correlation.traceId,
    user_agent: correlation.userAgent,
    user_id: userIdText(event.caller),
  }
  const present: JsonObject = {}
  for (const name of Object.keys(fields)) {
    const value = fields[name] ?? null
    if (value !== null) present[name] = value
  }
  return canonicalJson(present)
}

function eventExpression({ text, textBehindVersion }: AuditValues): RawBuilder<string> {
  return textBehindVersion === undefined
    ? asText(text)
    : sql`${text} || cast(change.version as text) || ${textBehindVersion}`
}

function userIdText(caller: Caller): string | null {
  return caller.userId === null ? null : String(caller.userId)
}

/** In a SELECT list a parameter has no column to take its type from. */
function asText(value: string | null): RawBuilder<string> {
  return sql<string>`cast(${value} as text)`
}
