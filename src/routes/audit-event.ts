import { createHash, randomUUID } from 'node:crypto'
import { z } from '@hono/zod-openapi'
import type { NewEvent } from '../db/audit-events.js'
import { AppError, type FieldError } from '../errors.js'
import { canonicalJson } from '../security/json-text.js'
import {
  type JsonObject,
  type JsonTree,
  isJsonNumber,
  isJsonObject,
  toPointer,
} from '../security/json-tree.js'
import { redactSecrets } from '../security/redact.js'
import { textPrefix } from '../security/well-formed-text.js'

/** What a filter column holds; the event's text keeps a longer value up to redact's own limit. */
const ID_LENGTH = 256

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

const KNOWN = new Set(Object.keys(eventSchema.shape))

/** Faults of one event, with pointers into it; an event without any comes back ready to store. */
export function readEvent(
  tree: JsonTree,
  marks: { replaced: string[] },
  ids: Correlated,
): NewEvent | FieldError[] {
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
  const eventId = parsed.data.event_id ?? randomUUID()
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
  const added = withoutNulls({
    ...(stored['timestamp'] === undefined ? { timestamp: Date.parse(occurredAt) / 1000 } : {}),
    ...(stored['request_id'] === undefined ? { request_id: ids.requestId } : {}),
    ...(stored['trace_id'] === undefined ? { trace_id: ids.traceId } : {}),
    ...(stored['session_id'] === undefined ? { session_id: ids.sessionId } : {}),
  })
  const asSent = canonicalJson(stored)
  const present = { ...stored, ...added }
  const text = Object.keys(added).length === 0 ? asSent : canonicalJson(present)
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
  return isJsonNumber(timestamp) ? timestamp : Date.parse(occurredAt) / 1000
}

function withoutNulls(event: JsonObject): JsonObject {
  return Object.fromEntries(
    Object.entries(event).filter(([, value]) => value !== null && value !== undefined),
  )
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
  const unknown = Object.entries(event).filter(([name]) => !KNOWN.has(name))
  if (unknown.length === 0) return event
  const known = Object.fromEntries(Object.entries(event).filter(([name]) => KNOWN.has(name)))
  const metadata = isJsonObject(event['metadata']) ? event['metadata'] : {}
  return { ...known, metadata: { ...Object.fromEntries(unknown), ...metadata } }
}

/** What was changed on the way in is told in the event itself: nothing is altered in silence. */
function markChanges(
  event: JsonObject,
  changes: Record<'replaced' | 'redacted' | 'truncated', string[]>,
): JsonObject {
  const marks = Object.entries(changes).filter(([, places]) => places.length > 0)
  if (marks.length === 0) return event
  const metadata = isJsonObject(event['metadata']) ? event['metadata'] : {}
  return { ...event, metadata: { ...metadata, _altered: Object.fromEntries(marks) } }
}

/** From 0001 to 9999; RFC 3339 knows no other years and PostgreSQL none that are not finite. */
const MIN_EPOCH = -62_135_596_800
const MAX_EPOCH = 253_402_300_799
const RFC3339 = /^(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(\.\d{1,9})?(?:[Zz]|[+-]\d\d:\d\d)$/

/**
 * A time as text that PostgreSQL reads to the microsecond: RFC 3339 with any offset, or epoch seconds.
 * null is now. Throws `invalid_request` for all else, the 30th of February among it.
 */
export function readTime(time: JsonTree): string {
  if (time === null) return new Date().toISOString()
  if (isJsonNumber(time)) return epochToIso(String(time))
  if (typeof time === 'string') {
    const match = RFC3339.exec(time)
    const day = match?.[1] ?? ''
    // Date.parse rolls the 30th of February over; the day itself must come back.
    if (
      match !== null &&
      !Number.isNaN(Date.parse(time)) &&
      new Date(`${day}T00:00:00Z`).toISOString().startsWith(day)
    )
      return time
    if (/^-?\d{1,12}(\.\d+)?$/.test(time)) return epochToIso(time)
  }
  throw new AppError('invalid_request', 'A time is RFC 3339 or epoch seconds.')
}

/** A double has no room for microseconds since 1970 in milliseconds: whole seconds and fraction go apart. */
function epochToIso(token: string): string {
  const seconds = Number(token)
  if (!(seconds >= MIN_EPOCH && seconds <= MAX_EPOCH))
    throw new AppError('invalid_request', 'This time is out of range.')
  const whole = Math.floor(seconds)
  const fraction = /^-?\d+\.(\d+)$/.exec(token)?.[1]
  const micros =
    seconds >= 0 && fraction !== undefined
      ? fraction.slice(0, 6).padEnd(6, '0')
      : String(Math.floor((seconds - whole) * 1e6)).padStart(6, '0')
  return new Date(whole * 1000).toISOString().replace('.000Z', `.${micros}Z`)
}
