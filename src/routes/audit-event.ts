import { hash, randomUUID } from 'node:crypto'
import { z } from '@hono/zod-openapi'
import type { NewEvent } from '../db/audit-events.js'
import type { FieldError } from '../errors.js'
import { canonicalJson } from '../security/json-text.js'
import {
  type JsonObject,
  type JsonTree,
  exceedsNodes,
  isJsonNumber,
  isJsonObject,
  toPointer,
} from '../security/json-tree.js'
import { redactSecrets } from '../security/redact.js'
import { textPrefix } from '../security/well-formed-text.js'
import { readTime } from './time.js'

const LEVELS = ['debug', 'info', 'warning', 'error', 'critical'] as const
const EVENT_TYPE_LENGTH = 128
/** What a filter column holds; the event's text keeps a longer value up to redact's own limit. */
const ID_LENGTH = 256
/** Values of one event: redaction visits each. */
const MAX_NODES = 10_000

const text = z.string().nullish()
const number = z.custom<JsonTree>(isJsonNumber, 'must be a number').nullish().openapi({ type: 'number' })
const object = z
  .custom<JsonObject>((value) => isJsonObject(value as JsonTree), 'must be an object')
  .nullish()
  .openapi({ type: 'object' })

/** An event as the consumer sends it; unknown fields go into metadata. */
export const eventSchema = z
  .object({
    event_id: z.uuid().nullish(),
    event_type: z.string().min(1).max(EVENT_TYPE_LENGTH),
    level: z.enum(LEVELS).nullish(),
    message: text,
    timestamp: z.union([z.custom<JsonTree>(isJsonNumber).openapi({ type: 'number' }), z.string()]).nullish(),
    timestamp_iso: text,
    user_id: text,
    agent_id: text,
    session_id: text,
    ip_address: text,
    user_agent: text,
    endpoint: text,
    tool_name: text,
    operation: text,
    component: text,
    function_name: text,
    input_data: object,
    output_data: object,
    duration_ms: number,
    cpu_usage: number,
    memory_usage: number,
    error_type: text,
    error_message: text,
    error_details: z.unknown().optional(),
    stack_trace: text,
    request_id: text,
    trace_id: text,
    span_id: text,
    parent_span_id: text,
    metadata: object,
  })
  .catchall(z.unknown())

/** Where an event tells what the service altered in it. */
const ALTERED = '_altered'

const FIELDS = Object.keys(eventSchema.shape).toSorted()
/** In the canonical order. timestamp_iso is told anew from the timestamp. */
const KEPT_FIELDS = FIELDS.filter((name) => name !== 'timestamp_iso')
const KNOWN = new Set(FIELDS)

/** What eventSchema says of each field that is neither absent nor null; zod's own way through an event is dear. */
const CHECKS = new Map<string, (value: JsonTree) => boolean>(
  Object.entries(eventSchema.shape).map(([name, type]) => {
    if (type === text) return [name, isText]
    if (type === number) return [name, isJsonNumber]
    if (type === object) return [name, isJsonObject]
    const check = (value: JsonTree): boolean => type.safeParse(value).success
    return [name, name === 'event_type' ? (value) => isShortName(value) || check(value) : check]
  }),
)
CHECKS.set('level', (value) => (LEVELS as readonly JsonTree[]).includes(value))
CHECKS.set('timestamp', (value) => isText(value) || isJsonNumber(value))

/** The length that counts is that in code points, which are never more than the units. */
function isShortName(value: JsonTree): boolean {
  return isText(value) && value !== '' && value.length <= EVENT_TYPE_LENGTH
}

function isText(value: JsonTree): value is string {
  return typeof value === 'string'
}

/** Whether eventSchema takes it. */
export function isEvent(tree: JsonTree): tree is JsonObject {
  if (!isJsonObject(tree) || typeof tree['event_type'] !== 'string') return false
  for (const name of Object.keys(tree)) {
    const value = tree[name] as JsonTree
    if (value !== null && CHECKS.get(name)?.(value) === false) return false
  }
  return true
}

/** Faults of one event, with pointers into it; an event without any comes back ready to store. */
export function readEvent(
  tree: JsonTree,
  marks: { replaced: string[] },
  ids: Correlated,
): NewEvent | FieldError[] {
  if (exceedsNodes(tree, MAX_NODES)) return [{ path: '', message: `has more than ${MAX_NODES} values` }]
  const refusal = isEvent(tree) ? undefined : eventSchema.safeParse(tree).error
  if (refusal !== undefined) {
    return refusal.issues.map(({ path, message }) => ({ path: toPointer(path.map(String)), message }))
  }
  const sent = tree as JsonObject
  let occurredAt: string
  try {
    occurredAt = readTime(sent['timestamp'] ?? null)
  } catch {
    return [{ path: '/timestamp', message: 'must be RFC 3339 or epoch seconds' }]
  }
  const { tree: clean, redacted, truncated } = redactSecrets(withUnknownInMetadata(sent))
  const event = markChanges(clean as JsonObject, { replaced: marks.replaced, redacted, truncated })
  // PostgreSQL and the answers spell a UUID in lower case: so does everything that compares them.
  const eventId = (sent['event_id'] as string | null | undefined)?.toLowerCase() ?? randomUUID()
  const level = (sent['level'] as string | null | undefined) ?? 'info'
  const timestamp = epochOf(sent['timestamp'], occurredAt)
  const stored: JsonObject = {}
  for (const name of KEPT_FIELDS) {
    const told = name === 'event_id' ? eventId : name === 'level' ? level : undefined
    const value = told ?? (name === 'timestamp' ? timestamp : event[name]) ?? null
    if (value !== null) stored[name] = value
  }
  // What the service adds is left out of the hash: it must not make a repeated event another one.
  const asSent = canonicalJson(stored)
  const present = withMissing(stored, {
    timestamp: Date.parse(occurredAt) / 1000,
    request_id: ids.requestId,
    trace_id: ids.traceId,
    session_id: ids.sessionId,
  })
  return {
    columns: {
      eventId,
      bodyHash: hash('sha256', asSent),
      occurredAt,
      eventType: typeColumn(stored['event_type'] as string),
      level,
      userId: column(present['user_id']),
      agentId: column(present['agent_id']),
      sessionId: column(present['session_id']),
      requestId: column(present['request_id']),
      traceId: column(present['trace_id']),
    },
    text: present === stored ? asSent : canonicalJson(present),
  }
}

/** The event with what it does not say itself; the very same one when nothing is missing. */
function withMissing(event: JsonObject, known: JsonObject): JsonObject {
  let present = event
  for (const name of Object.keys(known)) {
    const value = known[name] ?? null
    if (event[name] === undefined && value !== null) {
      if (present === event) present = { ...event }
      present[name] = value
    }
  }
  return present
}

/** A number as it was spelt; a text as epoch seconds; nothing when no time was sent. */
function epochOf(timestamp: JsonTree | undefined, occurredAt: string): JsonTree {
  if (timestamp === undefined || timestamp === null) return null
  // Seconds and microseconds together: a Date would lose the latter.
  const micros = Number(occurredAt.slice(20, 26))
  return isJsonNumber(timestamp) ? timestamp : Math.floor(Date.parse(occurredAt) / 1000) + micros / 1e6
}

interface Correlated {
  requestId: string | null
  traceId: string | null
  sessionId: string | null
}

function column(value: JsonTree | undefined): string | null {
  return typeof value === 'string' ? textPrefix(value, ID_LENGTH) : null
}

/** As it is stored, so that no filter column shows what was redacted; that may have made it longer. */
function typeColumn(type: string): string {
  return type.length <= EVENT_TYPE_LENGTH ? type : Array.from(type).slice(0, EVENT_TYPE_LENGTH).join('')
}

function withUnknownInMetadata(event: JsonObject): JsonObject {
  const metadata = isJsonObject(event['metadata']) ? event['metadata'] : {}
  const forged = Object.hasOwn(metadata, ALTERED)
  if (!forged && Object.keys(event).every((name) => KNOWN.has(name))) return event
  const unknown = Object.entries(event).filter(([name]) => !KNOWN.has(name))
  const known = Object.fromEntries(Object.entries(event).filter(([name]) => KNOWN.has(name)))
  // A name that metadata has as well, and the mark that only the service sets, are kept under another name.
  const added = unknown.map(([name, value]) => [
    Object.hasOwn(metadata, name) || name === ALTERED ? `event.${name}` : name,
    value,
  ])
  const own = Object.entries(metadata).map(([name, value]) => [
    name === ALTERED ? `event.${name}` : name,
    value,
  ])
  return { ...known, metadata: Object.fromEntries([...added, ...own]) as JsonObject }
}

/** What was changed on the way in is told in the event itself: nothing is altered in silence. */
function markChanges(
  event: JsonObject,
  changes: Record<'replaced' | 'redacted' | 'truncated', string[]>,
): JsonObject {
  const { replaced, redacted, truncated } = changes
  if (replaced.length + redacted.length + truncated.length === 0) return event
  const marks = Object.entries(changes).filter(([, places]) => places.length > 0)
  const metadata = isJsonObject(event['metadata']) ? event['metadata'] : {}
  return { ...event, metadata: { ...metadata, [ALTERED]: Object.fromEntries(marks) } }
}
