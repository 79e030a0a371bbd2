import { type Compilable, CompiledQuery, sql } from 'kysely'
import type { Caller } from './as-caller.js'
import { compileBySet, compileForList, compileOnce } from './compile-once.js'
import type { Db } from './database.js'
import { actorText } from './identity.js'
import { timestampToIso } from './pool.js'

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
export const storedIds = compileForList(
  (db, eventIds: readonly string[]): Compilable<{ event_id: string; actor: string; body_hash: string }> =>
    db
      .selectFrom('audit_event_ids')
      .select(['event_id', 'actor', 'body_hash'])
      .where('event_id', 'in', eventIds),
)

/** An event's columns as JSON spells them; the times as RFC 3339, without quotes. */
export interface StoredEvent {
  event: string
  id: string
  received_at: string
  occurred_at: string
  source: string
  actor_type: string
  actor_id: string
  actor_name: string
  on_behalf_of: string
  action: string
  target: string
}

/** Stands between two fields; JSON escapes it, so it is in none. */
export const BETWEEN = '\u001f'

/**
 * Around a query for events: all that it finds as one text, field behind field. To PostgreSQL and to the service one
 * value costs half of what eleven columns of each row do, and less than JSON made there: to_char is slow.
 */
export const AS_TEXT_HEAD =
  "select array_to_string(array(select concat(event, E'\\x1f', id, E'\\x1f', received_at, E'\\x1f', occurred_at, " +
  "E'\\x1f', to_json(source), E'\\x1f', to_json(actor_type), E'\\x1f', actor_id, E'\\x1f', to_json(actor_name), " +
  "E'\\x1f', on_behalf_of, E'\\x1f', to_json(action), E'\\x1f', to_json(target)) from ("
export const AS_TEXT_TAIL = ") as found order by received_at desc, id desc), E'\\x1f') as events"
const FIELDS = 11

function asText(query: Compilable<unknown>): Compilable<EventsText> {
  const compiled = query.compile()
  const text = { ...compiled, sql: `${AS_TEXT_HEAD}${compiled.sql}${AS_TEXT_TAIL}` }
  return { compile: () => text as CompiledQuery<EventsText> }
}

export interface EventsText {
  events: string
}

/** The events of such a text. */
export function eventsIn(text: string): StoredEvent[] {
  const fields = text === '' ? [] : text.split(BETWEEN)
  const events: StoredEvent[] = []
  for (let at = 0; at < fields.length; at += FIELDS) {
    const field = (offset: number): string => fields[at + offset] || 'null'
    events.push({
      event: field(0),
      id: field(1),
      received_at: timestampToIso(field(2)),
      occurred_at: timestampToIso(field(3)),
      source: field(4),
      actor_type: field(5),
      actor_id: field(6),
      actor_name: field(7),
      on_behalf_of: field(8),
      action: field(9),
      target: field(10),
    })
  }
  return events
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

export interface EventsPage extends EventFilter {
  limit: number
  afterReceivedAt?: string | undefined
  afterId?: number | undefined
}

/** `literal`: the limit in the text, in place of the one given. */
function pageQuery(literal?: number): (db: Db, page: EventsPage) => Compilable<EventsText> {
  return compileBySet((db, page) => {
    let query = db
      .selectFrom('audit_events')
      .select(EVENT_COLUMNS)
      .orderBy('received_at', 'desc')
      .orderBy('id', 'desc')
      .limit(literal === undefined ? page.limit : sql.lit(literal))
    for (const name of EQUALS) {
      const value = page[name]
      if (value !== undefined) query = query.where(name, '=', value as never)
    }
    if (page.start_time !== undefined) query = query.where('occurred_at', '>=', page.start_time)
    if (page.end_time !== undefined) query = query.where('occurred_at', '<=', page.end_time)
    if (page.received_after !== undefined) query = query.where('received_at', '>', page.received_after)
    const { afterReceivedAt, afterId } = page
    if (afterReceivedAt !== undefined && afterId !== undefined) {
      // The first condition alone can walk the index, and leaves later partitions out; the second cuts its edge.
      query = query
        .where('received_at', '<=', afterReceivedAt)
        .where((eb) => eb.or([eb('received_at', '<', afterReceivedAt), eb('id', '<', afterId)]))
    }
    return asText(query)
  })
}

/**
 * With a limit that it does not know PostgreSQL expects a tenth of the table, finds no plan that is good for all, and
 * makes one for each page: three times the work. So those that are asked for most are in the text; few, since each
 * set of filters with each of them is a prepared statement.
 */
const COMMON_PAGES = new Map([50, 100, 1000].map((size) => [size + 1, pageQuery(size + 1)]))
const otherPage = pageQuery()

/** A page of events, newest arrival first, behind a place where given. */
export function eventsPage(db: Db, page: EventsPage): Compilable<EventsText> {
  return (COMMON_PAGES.get(page.limit) ?? otherPage)(db, page)
}

/** One event by its id; the table of ids says which partition it is in. */
export const eventById = compileOnce((db, eventId: string): Compilable<EventsText> => {
  const query = db
    .selectFrom('audit_event_ids')
    .innerJoin('audit_events', (join) =>
      join
        .onRef('audit_events.received_at', '=', 'audit_event_ids.received_at')
        .onRef('audit_events.event_id', '=', 'audit_event_ids.event_id'),
    )
    .select(EVENT_COLUMNS)
    .where('audit_event_ids.event_id', '=', sql<string>`cast(${eventId} as uuid)`)
  return asText(query)
}, 1)
