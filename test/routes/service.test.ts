import { describe, expect, it } from 'vitest'
import { useService } from '../harness.js'

const key = `gzk_${'k'.repeat(43)}`
const service = useService({ SERVICE_API_KEY: key })

describe('the service', () => {
  it('is ready when the database answered, and live without it', async () => {
    for (const path of ['/health', '/ready', '/health/live', '/healthz']) {
      const { status, body } = await service.call('GET', path)
      expect([path, status, body.status]).toEqual([path, 200, 'ok'])
    }
  })

  it('echoes the ids of a request, makes one that is malformed, and tells them to the trail', async () => {
    const ids = {
      'x-request-id': 'req-1',
      'x-trace-id': 'trace-1',
      'x-span-id': 'span-1',
      'x-session-id': 'ses-1',
    }
    const answer = await service.call('GET', '/v1/config/global/none', {
      token: service.ownerToken,
      headers: ids,
    })
    for (const [name, value] of Object.entries(ids)) expect(answer.headers.get(name)).toBe(value)
    expect(answer.body.request_id).toBe('req-1')
    const bad = await service.call('GET', '/health', { headers: { 'x-request-id': 'a b' } })
    expect(bad.headers.get('x-request-id')).toMatch(/^[0-9a-f-]{36}$/)
    await service.call('PUT', '/v1/config/global/traced', {
      token: service.ownerToken,
      body: { value: 1 },
      headers: ids,
    })
    const { body } = await service.call('GET', '/v1/audit/events?request_id=req-1', {
      token: service.ownerToken,
    })
    expect(body.items[0]).toMatchObject({
      action: 'config.put',
      trace_id: 'trace-1',
      span_id: 'span-1',
      session_id: 'ses-1',
      target: 'config/global/traced',
      metadata: { version: 1 },
    })
  })

  it('answers an unknown address with 404, a wrong method with 405 and Allow, both as problems', async () => {
    const missing = await service.call('GET', '/v2')
    expect([missing.status, missing.body.code]).toEqual([404, 'not_found'])
    const wrong = await service.call('DELETE', '/v1/auth/login')
    expect([wrong.status, wrong.body.code, wrong.headers.get('allow')]).toEqual([
      405,
      'method_not_allowed',
      'POST',
    ])
    expect(Object.keys(wrong.body).sort()).toEqual([
      'code',
      'detail',
      'error',
      'message',
      'request_id',
      'status',
      'timestamp',
      'title',
      'type',
    ])
  })

  it('describes itself as OpenAPI 3.1', async () => {
    const { body } = await service.call('GET', '/openapi.json')
    expect(body.openapi).toBe('3.1.0')
    expect(Object.keys(body.paths)).toEqual(
      expect.arrayContaining(['/v1/auth/login', '/v1/config/user/{owner}/{key}', '/v1/audit/events']),
    )
  })

  it('is set up once: the set-up address is gone when there is a user', async () => {
    const body = { setup_token: `gzi_${'a'.repeat(43)}`, username: 'eve', password: 'a long password' }
    expect((await service.call('POST', '/v1/setup', { body })).status).toBe(404)
  })
})

describe('the key of SERVICE_API_KEY', () => {
  const asKey = { 'x-api-key': key }

  it('verifies passwords, in the body and as Basic, without making a session', async () => {
    const good = { username: 'owner', password: 'correct horse battery' }
    const verified = await service.call('POST', '/v1/auth/verify', { body: good, headers: asKey })
    expect(verified.body.user).toMatchObject({ username: 'owner', role: 'owner' })
    expect(verified.body).not.toHaveProperty('token')
    const basic = `Basic ${Buffer.from('owner:correct horse battery').toString('base64')}`
    expect(
      (await service.call('POST', '/v1/auth/verify', { headers: { ...asKey, authorization: basic } })).status,
    ).toBe(200)
    const wrong = await service.call('POST', '/v1/auth/verify', {
      body: { ...good, password: 'x' },
      headers: asKey,
    })
    expect([wrong.status, wrong.body.code]).toEqual([401, 'invalid_credentials'])
    expect((await service.call('POST', '/v1/auth/verify', { body: good })).status).toBe(401)
    expect(
      (await service.call('POST', '/v1/auth/verify', { body: good, token: service.ownerToken })).status,
    ).toBe(403)
  })

  it("reads and writes shared configuration, not anybody's own, and no reports", async () => {
    const put = await service.call('PUT', '/v1/config/service/gary/settings', {
      body: { value: { token: 's3' } },
      headers: asKey,
    })
    expect([put.status, put.body.updated_by]).toEqual([201, expect.stringContaining('SERVICE_API_KEY')])
    const revealed = await service.call('GET', '/v1/config/service/gary/settings?reveal=true', {
      headers: asKey,
    })
    expect(revealed.body.value).toEqual({ token: 's3' })
    expect((await service.call('GET', '/v1/config/user/me/settings', { headers: asKey })).status).toBe(403)
    const report = await service.call('GET', '/v1/reports', { headers: asKey })
    expect([report.status, report.body.code]).toEqual([403, 'insufficient_scope'])
    expect((await service.call('GET', '/v1/auth/session', { headers: asKey })).status).toBe(403)
  })

  it('needs a name and a password to verify', async () => {
    expect((await service.call('POST', '/v1/auth/verify', { headers: asKey })).status).toBe(400)
  })

  it('appends to the trail under its own name', async () => {
    const sent = await service.call('POST', '/v1/audit/events', {
      body: { event_type: 'x', agent_id: 'by-key' },
      headers: asKey,
    })
    expect(sent.status).toBe(201)
    const { body } = await service.call('GET', '/v1/audit/events?agent_id=by-key', { headers: asKey })
    expect(body.items[0].actor).toMatchObject({ type: 'api_key' })
  })
})
