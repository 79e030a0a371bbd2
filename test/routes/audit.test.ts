import { randomUUID } from 'node:crypto'
import { describe, expect, it } from 'vitest'
import { useService } from '../harness.js'

const service = useService()
const post = (body: unknown, query = '') =>
  service.call('POST', `/v1/audit/events${query}`, { token: service.ownerToken, body })
const get = (path: string) => service.call('GET', path, { token: service.ownerToken })
const event = (fields = {}) => ({
  event_id: randomUUID(),
  event_type: 'tool_execution',
  level: 'info',
  message: 'm',
  timestamp: 1763874933.5,
  ...fields,
})

describe('an event', () => {
  it('comes back with its fields, its microseconds and its numbers, and what the service knows beside them', async () => {
    const id = randomUUID()
    const text = `{"event_id":"${id}","event_type":"tool_execution","message":"hi","timestamp":1763874933.123456,
      "duration_ms":1.50,"endpoint":null,"output_data":null,"input_data":{"n":12345678901234567890},"custom":1.0}`
    expect((await post(text)).body).toEqual({ accepted: 1, duplicates: 0, conflicts: [] })
    const answer = await get(`/v1/audit/events/${id}`)
    expect(answer.body).toMatchObject({
      event_id: id,
      level: 'info',
      source: 'client',
      actor: { type: 'user', id: 1, name: 'owner' },
      on_behalf_of: null,
      action: null,
      target: null,
      metadata: { custom: 1 },
    })
    expect(answer.text).toContain('"timestamp":1763874933.123456,')
    expect(answer.text).toContain('"duration_ms":1.50')
    expect(answer.text).toContain('12345678901234567890')
    expect(answer.text).toContain('"custom":1.0')
    expect(answer.body.timestamp_iso).toMatch(
      service.database.url === null ? /05:15:33\.123000Z$/ : /05:15:33\.123456Z$/,
    )
    expect(answer.body).not.toHaveProperty('endpoint')
  })

  it('among many at once is stored once, whoever sends its id twice, and each sender hears of its own', async () => {
    const twice = event()
    const bodies = Array.from({ length: 24 }, (_, n) =>
      n < 2 ? twice : n === 2 ? { ...twice, message: 'n' } : event(),
    )
    const answers = (await Promise.all(bodies.map((body) => post(body)))).map(({ body }) => body)
    const [first, second, third, ...others] = answers
    expect([first, second, third].map(({ accepted }) => accepted).toSorted()).toEqual([0, 0, 1])
    if (third.accepted === 0) {
      expect(first.duplicates + second.duplicates).toBe(1)
      expect(third.conflicts).toEqual([twice.event_id])
    } else expect([first.conflicts, second.conflicts]).toEqual([[twice.event_id], [twice.event_id]])
    for (const answer of others) expect(answer).toEqual({ accepted: 1, duplicates: 0, conflicts: [] })
    const ids = bodies.map(({ event_id }) => `'${event_id}'`).join()
    expect(await service.database.read(`select from audit_events where event_id in (${ids})`)).toHaveLength(
      22,
    )
  })

  it('is the same text on a page and alone, whatever its columns hold', async () => {
    const { event_id: id } = event()
    await post(event({ event_id: id, agent_id: 'spelling' }))
    const awkward = 'a"b\\c\n\t\u001f\u007f\u2028</é😀'
    await service.database.read(
      `update audit_events set actor_name = '', target = '${awkward}', occurred_at = '2026-01-02 03:04:05.5+00'
        where event_id = '${id}'`,
    )
    const { text, body } = await get(`/v1/audit/events/${id}`)
    const known =
      `,"id":${body.id},"received_at":"${body.received_at}","source":"client","actor":{"type":"user","id":1,"name":""},` +
      `"on_behalf_of":null,"action":null,"target":${JSON.stringify(awkward)},"timestamp_iso":"2026-01-02T03:04:05.500000Z"}`
    expect(text.slice(-known.length)).toBe(known)
    const page = await get('/v1/audit/events?agent_id=spelling')
    expect(page.text).toBe(`{"items":[${text}],"next_cursor":null}`)
  })

  it('sent twice is stored once; the same id with another body is a conflict', async () => {
    const one = event()
    expect((await post([one, one])).body).toEqual({ accepted: 1, duplicates: 1, conflicts: [] })
    expect((await post(one)).body).toEqual({ accepted: 0, duplicates: 1, conflicts: [] })
    const other = { ...one, message: 'changed' }
    expect((await post([other, event()])).body).toEqual({
      accepted: 1,
      duplicates: 0,
      conflicts: [one.event_id],
    })
    expect((await get(`/v1/audit/events/${one.event_id}`)).body.message).toBe('m')
  })

  it('sent again with other correlation headers is still the same event', async () => {
    const one = event({ message: 'correlated' })
    const { event_id } = one
    const send = (headers: Record<string, string>) =>
      service.call('POST', '/v1/audit/events', { token: service.ownerToken, body: one, headers })
    expect((await send({ 'x-request-id': 'first', 'x-trace-id': 't1' })).body.accepted).toBe(1)
    expect((await send({})).body).toEqual({ accepted: 0, duplicates: 1, conflicts: [] })
    expect((await send({ 'x-request-id': 'third' })).body.duplicates).toBe(1)
    expect((await get(`/v1/audit/events/${event_id}`)).body).toMatchObject({
      request_id: 'first',
      trace_id: 't1',
    })
  })

  it('keeps a client from saying what only the service knows', async () => {
    const forged = event({
      source: 'service',
      action: 'auth.login',
      actor: { type: 'system' },
      id: 1,
      on_behalf_of: 1,
      received_at: 'x',
    })
    await post(forged)
    const { body } = await get(`/v1/audit/events/${forged.event_id}`)
    expect(body).toMatchObject({
      source: 'client',
      action: null,
      actor: { type: 'user', id: 1 },
      on_behalf_of: null,
    })
    expect(body.metadata).toMatchObject({ source: 'service', action: 'auth.login', id: 1 })
  })

  it('loses secrets, NUL and lone surrogates, and says so', async () => {
    const id = randomUUID()
    const token = `gzs_${'k'.repeat(43)}`
    await post(
      `{"event_id":"${id}","event_type":"x","message":"a\\u0000b \\ud800 ${token}","input_data":{"password":"canary-1"}}`,
    )
    const { text, body } = await get(`/v1/audit/events/${id}`)
    expect(text).not.toContain('canary-1')
    expect(text).not.toContain(token)
    expect(body.message).toContain('a\ufffdb \ufffd')
    expect(body.metadata._altered).toMatchObject({
      replaced: ['/message'],
      redacted: expect.arrayContaining(['/input_data/password']),
    })
  })

  it.each(['infinity', 'now', '2026-02-30T00:00:00Z', '2026-01-01', 1e300, true])(
    'with the time %s is refused',
    async (timestamp) => {
      expect((await post(event({ timestamp }))).status).toBe(422)
    },
  )

  it('with a time in any offset is the same instant', async () => {
    const one = event({ timestamp: '2026-03-01T01:30:00.5+02:00' })
    expect((await post(one)).status).toBe(201)
    expect((await get(`/v1/audit/events/${one.event_id}`)).body.timestamp_iso).toBe(
      '2026-02-28T23:30:00.500000Z',
    )
  })
})

describe('hostile events', () => {
  it('have one id in either case', async () => {
    const id = randomUUID()
    const upper = { event_id: id.toUpperCase(), event_type: 'x' }
    expect((await post(upper)).body).toEqual({ accepted: 1, duplicates: 0, conflicts: [] })
    expect((await post({ ...upper, event_id: id })).body).toMatchObject({ accepted: 0 })
    expect((await get(`/v1/audit/events/${id.toUpperCase()}`)).body.event_id).toBe(id)
  })

  it('with times at the edges are refused one by one, not with their batch', async () => {
    const times = [
      '0000-12-31T00:00:00Z',
      '0001-01-01T00:00:00+23:59',
      '2026-01-01T24:00:00Z',
      '9999-12-31T23:59:59-23:59',
      Infinity,
    ]
    const batch = [event(), ...times.map((timestamp) => event({ timestamp }))]
    const text = JSON.stringify(batch).replace('"timestamp":null', '"timestamp":1e400')
    const { status, body } = await post(text, '?partial=true')
    expect([status, body.accepted]).toEqual([201, 1])
    expect(body.rejected.map((r: { index: number; path: string }) => [r.index, r.path])).toEqual(
      [1, 2, 3, 4, 5].map((n) => [n, '/timestamp']),
    )
    const far = event({ timestamp: '9999-12-31T23:59:59.9999999Z' })
    await post(far)
    expect((await get(`/v1/audit/events/${far.event_id}`)).body.timestamp_iso).toMatch(
      /^9999-12-31T23:59:59\.999/,
    )
  })

  it("lose no field to metadata of the same name and cannot forge the service's marks", async () => {
    const one = event({ foo: 'outer', metadata: { foo: 'inner', _altered: { redacted: ['/x'] } } })
    await post(one)
    const { metadata } = (await get(`/v1/audit/events/${one.event_id}`)).body
    expect(metadata).toEqual({ foo: 'inner', 'event.foo': 'outer', 'event._altered': { redacted: ['/x'] } })
  })

  it('of more than 10 000 values are refused', async () => {
    expect(
      (await post(event({ input_data: { list: Array.from({ length: 10_001 }, () => 0) } }))).status,
    ).toBe(422)
  })

  it('do not come from an empty body', async () => {
    const { status, body } = await service.call('POST', '/v1/audit/events', { token: service.ownerToken })
    expect([status, body.code]).toEqual([400, 'invalid_request'])
  })
})

describe('a batch', () => {
  it('is all or nothing, unless partial is asked for', async () => {
    const good = event()
    const refused = await post([good, { level: 'loud' }])
    expect(refused.status).toBe(422)
    expect(refused.body.errors.map((e: { path: string }) => e.path)).toEqual(
      expect.arrayContaining(['/1/event_type', '/1/level']),
    )
    expect((await get(`/v1/audit/events/${good.event_id}`)).status).toBe(404)
    const { status, body } = await post([good, { event_type: 'x', level: 'loud' }], '?partial=true')
    expect([status, body.accepted, body.rejected]).toEqual([
      201,
      1,
      [{ index: 1, path: '/level', message: expect.any(String) }],
    ])
  })

  it('has at most 1000 events', async () => {
    expect((await post(Array.from({ length: 1001 }, () => event()))).status).toBe(422)
    expect((await post([])).status).toBe(422)
    expect((await post(Array.from({ length: 1000 }, () => event()))).body.accepted).toBe(1000)
  })
})

describe('reading', () => {
  it('pages through all events of a filter, newest first, each once, also while others arrive', async () => {
    const agent_id = 'pager'
    for (let n = 0; n < 5; n += 1) await post(Array.from({ length: 5 }, () => event({ agent_id })))
    const seen: string[] = []
    let cursor: string | null = ''
    while (cursor !== null) {
      const { body } = await get(
        `/v1/audit/events?agent_id=pager&limit=4${cursor === '' ? '' : `&cursor=${cursor}`}`,
      )
      seen.push(...body.items.map((item: { event_id: string }) => item.event_id))
      cursor = body.next_cursor
      await post(event({ agent_id }))
    }
    expect(seen).toHaveLength(25)
    expect(new Set(seen).size).toBe(25)
  })

  it('has as many events as asked for, and a cursor when there are more', async () => {
    await post(Array.from({ length: 102 }, () => event({ agent_id: 'sized' })))
    for (const size of [49, 50, 51, 100, 101, 102, 1000]) {
      const { body } = await get(`/v1/audit/events?agent_id=sized&limit=${size}`)
      expect([body.items.length, body.next_cursor !== null]).toEqual([Math.min(size, 102), size < 102])
    }
  })

  it('refuses a cursor of other filters, bad limits, bad times, unknown and doubled keys', async () => {
    const { body } = await get('/v1/audit/events?limit=1')
    for (const query of [
      `level=info&cursor=${body.next_cursor}`,
      'limit=0',
      'limit=-1',
      'limit=1.5',
      'limit=NaN',
      'limit=1001',
      'start_time=now',
      'start_time=infinity',
      'foo=1',
      'level=info&level=error',
      'actor_id=99999999999',
      'user_id=%00',
      'start_time=0000-01-01T00:00:00Z',
    ]) {
      const answer = await get(`/v1/audit/events?${query}`)
      expect([query, answer.status]).toEqual([query, 400])
    }
  })

  it('filters by time given as epoch or RFC 3339', async () => {
    const one = event({ agent_id: 'timed', timestamp: 1000000000 })
    await post(one)
    for (const query of [
      'start_time=999999999&end_time=1000000001',
      'start_time=2001-09-09T01:46:40Z&end_time=2001-09-09T01:46:40%2B00:00',
    ]) {
      const { body } = await get(`/v1/audit/events?agent_id=timed&${query}`)
      expect(body.items).toHaveLength(1)
    }
    expect((await get('/v1/audit/events?agent_id=timed&start_time=1000000001')).body.items).toEqual([])
  })
})
