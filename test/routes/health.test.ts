import { describe, expect, it } from 'vitest'
import { engine, LANES } from '../engine.js'
import { type CallOptions, useService } from '../harness.js'

const TOKEN = 'an-operations-token'
const service = useService({ OPERATIONS_TOKEN: TOKEN })
const withoutToken = useService()

const force = (state: unknown, options: CallOptions = { token: TOKEN }) =>
  service.call('POST', '/health/circuit', { body: { state }, ...options })

describe('/health and /ready', () => {
  it.each(['/health', '/ready'])(
    '%s tells the state, the pool and the last answer, to anyone',
    async (path) => {
      const { status, body } = await service.call('GET', path)
      expect([status, body.status]).toEqual([200, 'ok'])
      expect(body.database).toMatchObject({
        pool: { total: expect.any(Number), idle: expect.any(Number), waiting: 0, limit: expect.any(Number) },
        lanes:
          engine === 'memory' || LANES === 0
            ? null
            : { ready: expect.any(Number), in_flight: 0, limit: LANES },
        answered_seconds_ago: expect.any(Number),
        next_probe_seconds: null,
        last_error: null,
      })
      expect(body.database.breaker?.state ?? null).toBe(engine === 'memory' ? null : 'closed')
    },
  )
})

describe('/health/detailed', () => {
  it('is for the holder of OPERATIONS_TOKEN: 401 for others, 404 where none is set', async () => {
    expect((await service.call('GET', '/health/detailed')).status).toBe(401)
    expect((await service.call('GET', '/health/detailed', { token: `${TOKEN}x` })).status).toBe(401)
    expect((await service.call('GET', '/health/detailed', { token: service.ownerToken })).status).toBe(401)
    expect((await withoutToken.call('GET', '/health/detailed', { token: TOKEN })).status).toBe(404)
  })

  it('adds the pool of the streams and the process', async () => {
    const { status, body } = await service.call('GET', '/health/detailed', { token: TOKEN })
    expect(status).toBe(200)
    expect(body.streams.pool.limit).toBeGreaterThan(0)
    expect(body.process).toMatchObject({ rss_bytes: expect.any(Number), node: process.version })
  })
})

describe('POST /health/circuit', () => {
  it('is for the holder of OPERATIONS_TOKEN, and takes open, closed and auto', async () => {
    expect((await force('open', {})).status).toBe(401)
    expect((await withoutToken.call('POST', '/health/circuit', { body: { state: 'open' } })).status).toBe(404)
    expect((await force('ajar')).status).toBe(422)
    expect((await force('auto')).status).toBe(engine === 'memory' ? 501 : 200)
  })

  it.skipIf(engine === 'memory')('forces this replica open until it is told otherwise', async () => {
    const forced = await force('open')
    expect(forced.body.database.breaker.state).toBe('forced_open')
    const refused = await service.call('GET', '/v1/auth/session', { token: service.ownerToken })
    expect([refused.status, refused.body.code]).toEqual([503, 'unavailable'])
    expect(Number(refused.headers.get('retry-after'))).toBeGreaterThanOrEqual(1)
    expect((await service.call('GET', '/ready')).status).toBe(503)
    expect((await service.call('GET', '/health/live')).status).toBe(200)
    expect((await force('closed')).body.database.breaker.state).toBe('forced_closed')
    expect((await service.call('GET', '/v1/auth/session', { token: service.ownerToken })).status).toBe(200)
    expect((await force('auto')).body.database.breaker.state).toBe('closed')
  })

  it.skipIf(engine === 'memory')(
    'is logged at once and audited, also while the circuit is open',
    async () => {
      const headers = { 'x-request-id': 'the-command', authorization: `Bearer ${TOKEN}` }
      await force('open', { headers })
      expect(service.logged()).toContain('forced by an operator')
      const stored = () =>
        service.database.read("select event from audit_events where request_id = 'the-command'") as Promise<
          { event: string }[]
        >
      await expect.poll(async () => (await stored()).length).toBe(1)
      expect(JSON.parse((await stored())[0]?.event ?? '')).toMatchObject({ metadata: { state: 'open' } })
      await force('auto')
    },
  )
})
