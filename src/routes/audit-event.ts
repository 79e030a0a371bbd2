import { createHash, randomUUID } from 'node:crypto'
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
    event_type: z.string().min(1).max(128),
    level: z.enum(['debug', 'info', 'warning', 'error', 'critical']).nullish(),
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

const KNOWN = new Set(Object.keys(eventSchema.shape))

/** Faults of one event, with pointers into it; an event without any comes back ready to store. */
export function readEvent(
  tree: JsonTree,
  marks: { replaced: string[] },
  ids: Correlated,
): NewEvent | FieldError[] {
  if (exceedsNodes(tree, MAX_NODES)) return [{ path: '', message: `has more than ${MAX_NODES} values` }]
  const parsed = eventSchema.safeParse(tree)
  if (!parsed.success) {
    return parsed.error.issues.map(({ path, message }) => ({ path: toPointer(path.map(String)), message }))
  }
  const event = tree as JsonObject
  let occurredAt: string
  try {
    occurredAt = readTime(event['timestamp'] ?? null)
  } catch {
    return [{ path: '/timestamp', message: 'must be RFC 3339 or epoch seconds' }]
  }
  const { tree: clean, redacted, truncated } = redactSecrets(withUnknownInMetadata(event))
  // PostgreSQL and the answers spell a UUID in lower case: so does everything that compares them.
  const eventId = parsed.data.event_id?.toLowerCase() ?? randomUUID()
  const { timestamp_iso: _, ...sent } = clean as JsonObject
  const stored = withoutNulls(
    markChanges(
      {
        ...sent,
        event_id: eventId,
        level: parsed.data.level ?? 'info',
        timestamp: epochOf(event['timestamp'], occurredAt),
      },
      { replaced: marks.replaced, redacted, truncated },
    ),
  )
  // What the service adds is left out of the hash: it must not make a repeated event another one.
  const { timestamp = Date.parse(occurredAt) / 1000, request_id = ids.requestId } = stored
  const { trace_id = ids.traceId, session_id = ids.sessionId } = stored
  const asSent = canonicalJson(stored)
  const present = withoutNulls({ ...stored, timestamp, request_id, trace_id, session_id })
  const isAsSent = Object.keys(present).length === Object.keys(stored).length
  const text = isAsSent ? asSent : canonicalJson(present)
  return {
    eventId,
    bodyHash: createHash('sha256').update(asSent).digest('hex'),
    occurredAt,
    eventType: parsed.data.event_type,
    level: parsed.data.level ?? 'info',
    userId: column(present['user_id']),
    agentId: column(present['agent_id']),
    sessionId: column(present['session_id']),
    requestId: column(present['request_id']),
    traceId: column(present['trace_id']),
    event: text,
  }
}

/** A number as it was spelt; a text as epoch seconds; nothing when no time was sent. */
function epochOf(timestamp: JsonTree | undefined, occurredAt: string): JsonTree {
  if (timestamp === undefined || timestamp === null) return null
  // Seconds and microseconds together: a Date would lose the latter.
  const micros = Number(occurredAt.slice(20, 26))
  return isJsonNumber(timestamp) ? timestamp : Math.floor(Date.parse(occurredAt) / 1000) + micros / 1e6
}

function withoutNulls(event: JsonObject): JsonObject {
  const present: JsonObject = {}
  for (const name of Object.keys(event)) {
    const value = event[name]
    if (value !== null && value !== undefined) present[name] = value
  }
  return present
}

interface Correlated {
  requestId: string | null
  traceId: string | null
  sessionId: string | null
}

function column(value: JsonTree | undefined): string | null {
  return typeof value === 'string' ? textPrefix(value, ID_LENGTH) : null
}

function withUnknownInMetadata(event: JsonObject): JsonObject {
  const metadata = isJsonObject(event['metadata']) ? event['metadata'] : {}
  const unknown = Object.entries(event).filter(([name]) => !KNOWN.has(name))
  const forged = Object.hasOwn(metadata, ALTERED)
  if (unknown.length === 0 && !forged) return event
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
  const marks = Object.entries(changes).filter(([, places]) => places.length > 0)
  if (marks.length === 0) return event
  const metadata = isJsonObject(event['metadata']) ? event['metadata'] : {}
  return { ...event, metadata: { ...metadata, [ALTERED]: Object.fromEntries(marks) } }
}
