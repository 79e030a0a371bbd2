// What everything but the service answers with and stores: made the same way, so that only the stacks differ.
import { createHash, randomUUID } from 'node:crypto'

/** @param {string} text */
export const sha256 = (text) => createHash('sha256').update(text).digest('hex')

/** `value` is JSON text already. @param {Record<string, any>} row */
export function entryOf({ value, ...rest }) {
  return `${JSON.stringify(rest).slice(0, -1)},"value":${value}}`
}

/** Of 51 rows, of which the last says that there are more. @param {Record<string, any>[]} rows */
export function pageOf(rows) {
  const items = rows.slice(0, 50).map(({ event, ...known }) => {
    return `${event.slice(0, -1)},${JSON.stringify(known).slice(1)}`
  })
  const last = rows[49]
  return `{"items":[${items.join(',')}],"next":${JSON.stringify([last?.['received_at'], last?.['id']])}}`
}

/** The audit row of a change. @param {string} key */
export function configEvent(key) {
  const eventId = randomUUID()
  const event = JSON.stringify({ event_id: eventId, event_type: 'config_change', message: `put ${key}` })
  return { eventId, bodyHash: sha256(event), event }
}

/** @param {any} event as it was sent */
export function stored(event) {
  const eventId = event.event_id ?? randomUUID()
  const text = JSON.stringify({ ...event, event_id: eventId })
  return {
    eventId,
    bodyHash: sha256(text),
    occurredAt: new Date().toISOString(),
    eventType: event.event_type,
    level: event.level,
    userId: event.user_id,
    agentId: event.agent_id,
    sessionId: event.session_id,
    requestId: event.request_id,
    traceId: event.trace_id,
    event: text,
  }
}

/** @param {Record<string, any>} row */
export function csvLine(row) {
  const cells = Object.values(row).map((value) => {
    const text = value instanceof Date ? value.toISOString() : String(value ?? '')
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text
  })
  return `${cells.join(',')}\n`
}
