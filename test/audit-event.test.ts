import { hash } from 'node:crypto'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { eventSchema, isEvent, readEvent } from '../src/routes/audit-event.js'
import type { NewEvent } from '../src/db/audit-events.js'
import { canonicalJson, parseJson } from '../src/security/json-text.js'
import type { JsonObject, JsonTree } from '../src/security/json-tree.js'

type Correlated = Parameters<typeof readEvent>[2]
const NOBODY: Correlated = { requestId: null, traceId: null, sessionId: null }
const SOMEBODY: Correlated = { requestId: 'r', traceId: 't', sessionId: 's' }
const ID = '0b5fd2c7-e8a3-4b35-ac59-1cca33fd0345'
const TOKEN = `gzs_${'k'.repeat(43)}`

function read(tree: JsonTree, ids = NOBODY): NewEvent {
  return readEvent(tree, { replaced: [] }, ids) as NewEvent
}

const value = fc.constantFrom(
  ...['{}', '{"a":1.0}', '[]', '"text"', '""', '1', '1.0', '1e400', '-0', 'true', 'null', '{"value":"1"}'],
  ...[`"${ID}"`, `"${ID.toUpperCase()}"`, `"${ID}0"`, '"info"', '"loud"', '"INFO"', '"toString"'],
  ...['"2026-03-01T01:30:00.5+02:00"', '"1763874933.123456"', `"${'x'.repeat(128)}"`, `"${'😀'.repeat(65)}"`],
)
const name = fc.constantFrom(...Object.keys(eventSchema.shape), 'custom', 'toString', '_altered')
const members = fc.dictionary(name, value, { maxKeys: 6 })
const written = (fields: Record<string, string>): string =>
  `{${Object.entries(fields)
    .map(([field, json]) => `"${field}":${json}`)
    .join(',')}}`
const typed = fc.tuple(members, value).map(([fields, type]) => written({ ...fields, event_type: type }))
const sent = fc.oneof(members.map(written), typed)

describe('an event', () => {
  test('is taken exactly when its schema takes it', () => {
    fc.assert(
      fc.property(fc.oneof({ weight: 20, arbitrary: sent }, value), (text) => {
        const tree = parseJson(text)
        expect(isEvent(tree)).toBe(eventSchema.safeParse(tree).success)
      }),
      { numRuns: 5_000 },
    )
  })

  test('is canonical text without line breaks, whatever the order of its fields', () => {
    fc.assert(
      fc.property(sent, (text) => {
        const tree = {
          ...(parseJson(text) as JsonObject),
          event_type: 'x\n\u2028\r',
          event_id: ID,
          timestamp: 1,
        }
        const event = readEvent(tree, { replaced: [] }, SOMEBODY)
        fc.pre(!Array.isArray(event))
        expect(canonicalJson(parseJson(event.text))).toBe(event.text)
        expect(event.text).not.toMatch(/[\r\n]/)
        const reversed = Object.fromEntries(Object.entries(tree).reverse())
        expect(readEvent(reversed, { replaced: [] }, SOMEBODY)).toEqual(event)
      }),
    )
  })

  test('has the hash of what was sent, without what the service knows beside it', () => {
    const tree = { event_type: 'x', event_id: ID }
    const alone = read(tree)
    const { columns, text } = read(tree, SOMEBODY)
    expect(columns.bodyHash).toBe(hash('sha256', `{"event_id":"${ID}","event_type":"x","level":"info"}`))
    expect(alone.columns.bodyHash).toBe(columns.bodyHash)
    expect(JSON.parse(text)).toMatchObject({ request_id: 'r', trace_id: 't', session_id: 's' })
    expect([columns.requestId, columns.traceId, columns.sessionId]).toEqual(['r', 't', 's'])
    expect(read({ ...tree, request_id: 'own' }, SOMEBODY).columns.requestId).toBe('own')
  })

  test('shows no credential in its text or its columns, whichever field it is sent in', () => {
    for (const field of [...Object.keys(eventSchema.shape), 'custom', `${TOKEN}_name`]) {
      for (const secret of [
        TOKEN,
        [TOKEN],
        { a: [TOKEN] },
        { [TOKEN]: 1 },
        { 'Set-Cookie': TOKEN.slice(4) },
      ]) {
        const event = readEvent({ event_type: 'x', [field]: secret }, { replaced: [] }, NOBODY)
        if (!Array.isArray(event)) expect(JSON.stringify(event), field).not.toContain(TOKEN.slice(4))
      }
    }
    expect(read({ event_type: `x ${TOKEN}` }).columns.eventType).toBe('x [redacted]')
    expect(read({ event_type: 'pwd=x '.repeat(21) }).columns.eventType).toHaveLength(128)
    expect(read({ event_type: '😀'.repeat(128) }).columns.eventType).toBe('😀'.repeat(128))
  })
})
