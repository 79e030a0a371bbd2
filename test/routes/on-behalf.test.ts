import { randomUUID } from 'node:crypto'
import { beforeAll, describe, expect, it } from 'vitest'
import { PASSWORD, useService } from '../harness.js'

const key = `gzk_${'k'.repeat(43)}`
const service = useService({ SERVICE_API_KEY: key })
const ids: Record<string, number> = {}

beforeAll(async () => {
  for (const role of ['user', 'guest', 'auditor', 'analyst', 'admin', 'owner', 'service']) {
    const { body } = await service.call('POST', '/v1/users', {
      token: service.ownerToken,
      body: { username: `b-${role}`, role, ...(role === 'service' ? {} : { password: PASSWORD }) },
    })
    ids[role] = body.id
  }
})
const call = (method: string, path: string, whom: string | number | undefined, body?: unknown, token = key) =>
  service.call(method, path, {
    token,
    body,
    headers: whom === undefined ? {} : { 'x-on-behalf-of': String(ids[whom] ?? whom) },
  })

describe('X-On-Behalf-Of', () => {
  it('makes `me` the user named, and the audit trail names both', async () => {
    const put = await call('PUT', '/v1/config/user/me/theme', 'user', { value: 'dark' })
    expect(put.status).toBe(201)
    expect(put.body.owner).toBe(String(ids['user']))
    expect((await call('GET', `/v1/config/user/${ids['user']}/theme`, 'user')).body.value).toBe('dark')
    expect((await call('GET', '/v1/config/user/me/theme', 'guest')).status).toBe(404)
    expect((await call('GET', `/v1/config/user/${ids['user']}/theme`, 'guest')).status).toBe(404)
    const { body } = await call('GET', '/v1/audit/events?action=config.put', undefined)
    expect(body.items[0]).toMatchObject({ actor: { type: 'api_key' }, on_behalf_of: ids['user'] })
  })

  it('leaves the rights of both only: what the role of the user named may not, the key may not either', async () => {
    expect((await call('PUT', '/v1/config/global/x', undefined, { value: 1 })).status).toBe(201)
    expect((await call('PUT', '/v1/config/global/y', 'user', { value: 1 })).status).toBe(403)
    expect((await call('GET', '/v1/config/global/x', 'user')).status).toBe(200)
    expect((await call('GET', '/v1/config/global/x', 'guest')).status).toBe(403)
    expect((await call('GET', '/v1/config/global/x?reveal=true', 'user')).status).toBe(403)
    const narrow = await service.keyOf(1, ['act:on-behalf', 'audit:read'])
    expect((await call('GET', '/v1/config/global/x', 'auditor', undefined, narrow)).status).toBe(403)
  })

  it('names users below the key’s own in rank or of rank 1, active ones, and no service', async () => {
    const path = '/v1/audit/events?limit=1'
    expect((await call('GET', path, 'auditor')).status).toBe(200)
    for (const whom of ['admin', 'owner', 'service', 999_999])
      expect([whom, (await call('GET', path, whom)).status]).toEqual([whom, 403])
    const ofOwner = await service.keyOf(1, ['act:on-behalf', 'audit:read'])
    expect((await call('GET', path, 'admin', undefined, ofOwner)).status).toBe(200)
    expect((await call('GET', path, 'owner', undefined, ofOwner)).status).toBe(403)
    await service.call('DELETE', `/v1/users/${ids['analyst']}`, { token: service.ownerToken })
    expect((await call('GET', path, 'analyst')).status).toBe(403)
  })

  it('takes the scope act:on-behalf, and no session has it', async () => {
    const without = await service.keyOf(1, ['config:read'])
    const answer = await call('GET', '/v1/config/global/x', 'user', undefined, without)
    expect([answer.status, answer.body.code]).toEqual([403, 'insufficient_scope'])
    expect((await call('GET', '/v1/config/global/x', 'user', undefined, service.ownerToken)).status).toBe(403)
    const scopes = ['act:on-behalf', 'config:read']
    const ofUser = await service.keyOf(ids['user'] ?? 0, scopes)
    expect((await call('GET', '/v1/config/global/x', 'guest', undefined, ofUser)).status).toBe(403)
  })

  it.each(['0', '-1', 'me', '1.0', '99999999999'])('of %s is malformed: 400', async (whom) => {
    expect((await call('GET', '/v1/audit/events', whom)).status).toBe(400)
  })

  it('on an event is attribution: the key stays who sent it, and its own rights are what counts', async () => {
    const event = { event_id: randomUUID(), event_type: 'tool_execution', level: 'info', message: 'ran' }
    expect((await call('POST', '/v1/audit/events', 'guest', event)).body.accepted).toBe(1)
    const { body } = await call('GET', `/v1/audit/events/${event.event_id}`, undefined)
    expect(body).toMatchObject({ actor: { type: 'api_key' }, on_behalf_of: ids['guest'], source: 'client' })
    expect((await call('GET', `/v1/audit/events/${event.event_id}`, 'guest')).status).toBe(200)
  })

  it('is part of what an Idempotency-Key is about', async () => {
    const put = (whom: string) =>
      service.call('PUT', '/v1/config/user/me/keyed', {
        token: key,
        body: { value: 1 },
        headers: { 'x-on-behalf-of': String(ids[whom]), 'idempotency-key': 'k' },
      })
    expect((await put('user')).status).toBe(201)
    expect((await put('guest')).status).toBe(422)
  })
})
