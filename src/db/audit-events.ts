import { type Compilable, CompiledQuery, sql } from 'kysely'
import { type Caller, actorText } from './as-caller.js'
import type { Db } from './database.js'

/** What is stored of an event beside its text. */
export interface EventColumns {
  eventId: string
  bodyHash: string
  occurredAt: string
  eventType: string
  level: string
  userId: string | null
  agentId: string | null
  sessionId: string | null
  requestId: string | null
  traceId: string | null
}

/** A caller's event, ready to store: `text` is canonical JSON. */
export interface NewEvent {
  columns: EventColumns
  text: string
}

/**
 * Appends in one statement: each event that is new by its id, both its rows; the others are left out.
 * In the order of ids, so that two batches with the same events wait for each other and never in a ring.
 * The texts come apart from the columns, as lines: canonical JSON has no line break, and within the JSON of the
 * columns they would be escaped here and read again there.
 */
export const APPEND_EVENTS = `
with input as (
  select * from rows from (
    json_to_recordset($1::json) as ("eventId" uuid, "bodyHash" text, "occurredAt" timestamptz, "eventType" text,
      level text, "userId" text, "agentId" text, "sessionId" text, "requestId" text, "traceId" text),
    unnest(string_to_array($7, E'\\n'))
  ) as e("eventId", "bodyHash", "occurredAt", "eventType", level, "userId", "agentId", "sessionId", "requestId",
    "traceId", event)
), ids as (
  insert into audit_event_ids (event_id, actor, on_behalf_of, body_hash)
  select "eventId", $2, $3::integer, "bodyHash" from input
  on conflict (event_id) do nothing
  returning event_id
), appended as (
  insert into audit_events (event_id, occurred_at, event_type, level, source, actor_type, actor_id, actor_name,
    on_behalf_of, user_id, agent_id, session_id, request_id, trace_id, event)
  select i."eventId", i."occurredAt", i."eventType", i.level, 'client', $4, $5::integer, $6, $3::integer,
    i."userId", i."agentId", i."sessionId", i."requestId", i."traceId", i.event
  from input i join ids on ids.event_id = i."eventId"
)
select event_id from ids`

/** Answers with the ids that were new. */
export function appendEvents(caller: Caller, events: readonly NewEvent[]): Compilable<{ event_id: string }> {
  const sorted = events.toSorted((a, b) => (a.columns.eventId < b.columns.eventId ? -1 : 1))
  const columns = JSON.stringify(sorted.map((event) => event.columns))
  const texts = sorted.map(({ text }) => text).join('\n')
  const { actor, onBehalfOf } = caller
  const parameters = [columns, actorText(actor), onBehalfOf, actor.type, actor.id, actor.name, texts]
  return {
    compile: () => CompiledQuery.raw(APPEND_EVENTS, parameters) as CompiledQuery<{ event_id: string }>,
  }
}

/** What is stored under these ids, as far as the caller may see it: another's id stays invisible. */
export function storedIds(
  db: Db,
  eventIds: readonly string[],
): Compilable<{ event_id: string; actor: string; body_hash: string }> {
  return db
    .selectFrom('audit_event_ids')
    .select(['event_id', 'actor', 'body_hash'])
    .where('event_id', 'in', eventIds)
}

export interface StoredEvent {
  id: number
  received_at: string
  event_id: string
  occurred_at: string
  source: string
  actor_type: string
  actor_id: number | null
  actor_name: string | null
  on_behalf_of: number | null
  action: string | null
  target: string | null
  event: string
}

export interface EventFilter {
  event_type?: string | undefined
  level?: string | undefined
  user_id?: string | undefined
  actor_id?: number | undefined
  on_behalf_of?: number | undefined
  agent_id?: string | undefined
  session_id?: string | undefined
  action?: string | undefined
  target?: string | undefined
  request_id?: string | undefined
  trace_id?: string | undefined
  source?: string | undefined
  start_time?: string | undefined
  end_time?: string | undefined
  received_after?: string | undefined
}

const EVENT_COLUMNS = [
  'audit_events.id',
  'audit_events.received_at',
  'audit_events.event_id',
  'audit_events.occurred_at',
  'audit_events.source',
  'audit_events.actor_type',
  'audit_events.actor_id',
  'audit_events.actor_name',
  'audit_events.on_behalf_of',
  'audit_events.action',
  'audit_events.target',
  'audit_events.event',
] as const

const EQUALS = [
  'event_type',
  'level',
  'user_id',
  'actor_id',
  'on_behalf_of',
  'agent_id',
  'session_id',
  'action',
  'target',
  'request_id',
  'trace_id',
  'source',
] as const

/** A page of events, newest arrival first, behind `after` where given. */
export function eventsPage(
  db: Db,
  filter: EventFilter,
  limit: number,
  after: { receivedAt: string; id: number } | undefined,
): Compilable<StoredEvent> {
  let query = db
    .selectFrom('audit_events')
    .select(EVENT_COLUMNS)
    .orderBy('received_at', 'desc')
    .orderBy('id', 'desc')
    .limit(limit)
  for (const name of EQUALS) {
    const value = filter[name]
    if (value !== undefined) query = query.where(name, '=', value as never)
  }
  if (filter.start_time !== undefined) query = query.where('occurred_at', '>=', filter.start_time)
  if (filter.end_time !== undefined) query = query.where('occurred_at', '<=', filter.end_time)
  if (filter.received_after !== undefined) query = query.where('received_at', '>', filter.received_after)
  if (after !== undefined) {
    const { receivedAt, id } = after
    // The first condition alone can walk the index; the second cuts its edge.
    query = query
      .where('received_at', '<=', receivedAt)
      .where((eb) => eb.or([eb('received_at', '<', receivedAt), eb('id', '<', id)]))
  }
  return query
}

/** One event by its id; the table of ids says which partition it is in. */
export function eventById(db: Db, eventId: string): Compilable<StoredEvent> {
  return db
    .selectFrom('audit_event_ids')
    .innerJoin('audit_events', (join) =>
      join
        .onRef('audit_events.received_at', '=', 'audit_event_ids.received_at')
        .onRef('audit_events.event_id', '=', 'audit_event_ids.event_id'),
    )
    .select(EVENT_COLUMNS)
    .where('audit_event_ids.event_id', '=', sql<string>`cast(${eventId} as uuid)`)
}
