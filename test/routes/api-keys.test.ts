import { beforeAll, describe, expect, it } from 'vitest'
import { PASSWORD, useService } from '../harness.js'

const service = useService()
const asOwner = (method: string, path: string, body?: unknown, headers: Record<string, string> = {}) =>
  service.call(method, path, { token: service.ownerToken, body, headers })

interface Person {
  id: number
  token: string
}
let user: Person
let admin: Person
let program: number

async function person(username: string, role: string): Promise<Person> {
  const { body } = await asOwner('POST', '/v1/users', { username, password: PASSWORD, role })
  const login = await service.call('POST', '/v1/auth/login', { body: { username, password: PASSWORD } })
  return { id: body.id, token: login.body.token }
}
beforeAll(async () => {
  user = await person('key-user', 'user')
  admin = await person('key-admin', 'admin')
  program = (await asOwner('POST', '/v1/users', { username: 'program', role: 'service' })).body.id
})
const make = (who: Person, body: object, headers = {}) =>
  service.call('POST', '/v1/api-keys', { token: who.token, body: { name: 'mine', ...body }, headers })

describe('a key', () => {
  it('is made for oneself, shown once, listed without it, works, and ends when it is revoked', async () => {
    const made = await make(user, { scopes: ['config:read', 'config:write'] })
    expect([made.status, made.headers.get('cache-control')]).toEqual([201, 'no-store'])
    expect(made.body.key).toMatch(/^gzk_[A-Za-z0-9_-]{43}$/)
    expect(made.body).toMatchObject({ name: 'mine', user_id: user.id, expires_at: null, last_used_at: null })
    const list = await service.call('GET', '/v1/api-keys', { token: user.token })
    expect(list.body.items[0]).toMatchObject({ id: made.body.id, prefix: made.body.key.slice(0, 8) })
    expect(list.text).not.toContain(made.body.key)
    const use = () => service.call('GET', '/v1/config/user/me/none', { token: made.body.key })
    expect((await use()).status).toBe(404)
    expect((await service.call('DELETE', `/v1/api-keys/${made.body.id}`, { token: user.token })).status).toBe(
      204,
    )
    expect((await use()).status).toBe(401)
    const { body } = await asOwner('GET', '/v1/audit/events?limit=3')
    const actions = body.items.map(({ action }: { action: string }) => action)
    expect(actions).toEqual(expect.arrayContaining(['api_key.create', 'api_key.revoke']))
  })

  it('ends at its time, given with any offset or as epoch seconds; a time that is over is refused', async () => {
    const soon = new Date(Date.now() + 3_600_000)
    const made = await make(user, { scopes: ['config:read'], expires_at: Math.floor(soon.getTime() / 1000) })
    expect(made.body.expires_at).toMatch(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.000000Z$/)
    await service.database.read(`update auth_api_keys set expires_at = now() where id = ${made.body.id}`)
    expect((await service.call('GET', '/v1/config/user/me/none', { token: made.body.key })).status).toBe(401)
    const past = await make(user, { scopes: ['config:read'], expires_at: '2020-01-01T00:00:00+02:00' })
    expect([past.status, past.body.errors[0].path]).toEqual([422, '/expires_at'])
  })

  it('keeps only the id under an Idempotency-Key: 409 already_done, never the key', async () => {
    const headers = { 'idempotency-key': 'one-key' }
    const made = await make(user, { scopes: ['config:read'] }, headers)
    const again = await make(user, { scopes: ['config:read'] }, headers)
    expect([again.status, again.body.code]).toEqual([409, 'already_done'])
    expect(again.body.detail).toContain(String(made.body.id))
    expect(
      JSON.stringify(await service.database.read('select response from idempotency_keys')),
    ).not.toContain(made.body.key)
  })

  it.each([
    ['no scope', { scopes: [] }],
    ['an unknown scope', { scopes: ['root'] }],
    ['a scope twice', { scopes: ['config:read', 'config:read'] }],
    ['a scope of no use to the role', { scopes: ['config:read', 'users:write'] }],
    ['an empty name', { name: ' ', scopes: ['config:read'] }],
    ["a name of the service's own keys", { name: 'SERVICE_API_KEY x', scopes: ['config:read'] }],
    ['30 February', { scopes: ['config:read'], expires_at: '2030-02-30T00:00:00Z' }],
  ])('with %s is refused: 422', async (_, body) => {
    expect((await make(user, body)).status).toBe(422)
  })

  it('is made for users of strictly lower rank, with scopes that its maker has a use for too', async () => {
    expect((await make(admin, { user_id: user.id, scopes: ['config:read'] })).status).toBe(201)
    expect((await make(admin, { user_id: program, scopes: ['auth:verify'] })).status).toBe(201)
    // An owner's right: an admin would have it by the program.
    expect((await make(admin, { user_id: program, scopes: ['config:reveal'] })).status).toBe(422)
    const owner = { id: 1, token: service.ownerToken }
    expect((await make(owner, { user_id: program, scopes: ['config:reveal'] })).status).toBe(201)
    expect((await make(owner, { user_id: 999_999, scopes: ['config:read'] })).status).toBe(404)
    expect([403, 404]).toContain((await make(user, { user_id: admin.id, scopes: ['config:read'] })).status)
    const second = await person('second-owner', 'owner')
    expect((await make(owner, { user_id: second.id, scopes: ['config:read'] })).status).toBe(403)
  })

  it('makes no key and opens no session', async () => {
    const key = await service.keyOf(1, ['users:write', 'users:read', 'config:read'])
    expect((await service.call('POST', '/v1/api-keys', { token: key, body: {} })).status).toBe(403)
    for (const path of ['/v1/auth/session', '/v1/sessions'])
      expect((await service.call('GET', path, { token: key })).status).toBe(403)
  })
})
