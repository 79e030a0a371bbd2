import { describe, expect, it } from 'vitest'
import { PASSWORD, useService } from '../harness.js'

const service = useService()

describe('signing in', () => {
  it('gives a token that reads the session, and the name is taken without case', async () => {
    const login = await service.call('POST', '/v1/auth/login', {
      body: { username: ' OWNER ', password: PASSWORD },
    })
    expect(login.status).toBe(200)
    expect(login.body.token).toMatch(/^gzs_[A-Za-z0-9_-]{43}$/)
    expect(login.headers.get('cache-control')).toBe('no-store')
    const { body } = await service.call('GET', '/v1/auth/session', { token: login.body.token })
    expect(body.user).toEqual(login.body.user)
    expect(body.session).toMatchObject({ id: login.body.session.id, current: true })
    expect(Object.keys(body.user).sort()).toEqual(
      [
        'created_at',
        'id',
        'is_active',
        'last_login',
        'must_change_password',
        'password_changed_at',
        'role',
        'updated_at',
        'username',
        'version',
      ].sort(),
    )
    for (const time of [body.session.expires_at, body.session.idle_expires_at, body.user.last_login]) {
      expect(time).toMatch(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$/)
    }
    const lifetime = Date.parse(body.session.expires_at) - Date.parse(body.session.created_at)
    expect(lifetime).toBe(24 * 3600 * 1000)
  })

  it('answers an unknown name and a wrong password with the same problem', async () => {
    const wrong = await service.call('POST', '/v1/auth/login', {
      body: { username: 'owner', password: 'wrong password' },
    })
    const unknown = await service.call('POST', '/v1/auth/login', {
      body: { username: 'nobody', password: 'wrong password' },
    })
    const comparable = ({ status, body }: typeof wrong) => ({ status, ...body, timestamp: 0, request_id: '' })
    expect(comparable(wrong)).toEqual(comparable(unknown))
    expect(wrong.body).toMatchObject({
      status: 401,
      code: 'invalid_credentials',
      error: 'invalid_credentials',
    })
    expect(wrong.headers.get('content-type')).toBe('application/problem+json')
  })

  it('is audited, success and failure, and an unknown name is never stored in the clear', async () => {
    await service.call('POST', '/v1/auth/login', {
      body: { username: 'secret-name-7', password: 'wrong password' },
    })
    const { body, text } = await service.call('GET', '/v1/audit/events?event_type=authentication', {
      token: service.ownerToken,
    })
    const actions = body.items.map((event: { action: string }) => event.action)
    expect(actions).toContain('auth.login')
    expect(actions).toContain('auth.login_failed')
    expect(text).not.toContain('secret-name-7')
    expect(body.items[0]).toMatchObject({ source: 'service', actor: { type: 'system', id: null } })
  })

  it.each([
    ['a password over 72 bytes', { username: 'owner', password: 'ü'.repeat(37) }, '/password'],
    ['a lone surrogate in the password', { username: 'owner', password: '\ud800abcdefghijkl' }, '/password'],
    ['NUL in the name', { username: 'own\u0000er', password: PASSWORD }, '/username'],
    ['an unknown field', { username: 'owner', password: PASSWORD, role: 'owner' }, '/role'],
    ['a missing password', { username: 'owner' }, '/password'],
  ])('refuses %s with 422 and its place', async (_, body, path) => {
    const answer = await service.call('POST', '/v1/auth/login', { body: JSON.stringify(body) })
    expect(answer.status).toBe(422)
    expect(answer.body.errors[0].path).toBe(path)
  })

  it('takes an address only from keys that may tell one', async () => {
    const body = { username: 'owner', password: PASSWORD, ip_address: '192.0.2.1' }
    expect((await service.call('POST', '/v1/auth/login', { body })).status).toBe(422)
  })

  it('refuses an Idempotency-Key: a token shown once cannot be replayed', async () => {
    const answer = await service.call('POST', '/v1/auth/login', {
      body: { username: 'owner', password: PASSWORD },
      headers: { 'idempotency-key': 'a' },
    })
    expect(answer.status).toBe(422)
  })
})

describe('a session', () => {
  it('ends with sign-out, at once and with an audit row', async () => {
    const { body } = await service.call('POST', '/v1/auth/login', {
      body: { username: 'owner', password: PASSWORD },
    })
    expect((await service.call('POST', '/v1/auth/logout', { token: body.token })).status).toBe(204)
    expect((await service.call('GET', '/v1/auth/session', { token: body.token })).status).toBe(401)
    const events = await service.call('GET', '/v1/audit/events?action=auth.logout', {
      token: service.ownerToken,
    })
    expect(events.body.items).toHaveLength(1)
  })

  it('is not opened by a token of the wrong form, a stored hash, or two credentials', async () => {
    for (const token of [
      'nonsense',
      `gzs_${'a'.repeat(42)}`,
      `gzs_${'a'.repeat(43)}`,
      `gzx_${'a'.repeat(43)}`,
    ]) {
      const answer = await service.call('GET', '/v1/auth/session', { token })
      expect(answer.status).toBe(401)
      expect(answer.headers.get('www-authenticate')).toContain('Bearer realm="gary"')
    }
    const two = await service.call('GET', '/v1/auth/session', {
      token: service.ownerToken,
      headers: { 'x-api-key': 'gzk_a' },
    })
    expect(two.status).toBe(400)
  })

  it('leaves neither token nor password in the log', () => {
    expect(service.logged()).not.toContain(service.ownerToken)
    expect(service.logged()).not.toContain(PASSWORD)
  })
})
