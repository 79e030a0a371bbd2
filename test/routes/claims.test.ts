import { randomBytes } from 'node:crypto'
import { describe, expect, it } from 'vitest'
import { type CallOptions, PASSWORD, useService } from '../harness.js'

// Who asks is taken from a moment ago and confirmed by the first statement: what another replica, or direct SQL, has
// changed meanwhile is in force for the very next request.
const service = useService()
const sql = (text: string) => service.database.read(text)
const event = { event_type: 'user_action', level: 'info', message: 'hello' }

async function signedIn(role = 'admin') {
  const username = `u-${randomBytes(4).toString('hex')}`
  const { body: user } = await service.call('POST', '/v1/users', {
    token: service.ownerToken,
    body: { username, password: PASSWORD, role },
  })
  const { body } = await service.call('POST', '/v1/auth/login', { body: { username, password: PASSWORD } })
  const token = String(body.token)
  // From here on it is one who asked a moment ago.
  expect((await service.call('GET', '/v1/users/me', { token })).status).toBe(200)
  return { id: Number(user.id), username, token, session: Number(body.session.id) }
}

const read = async (options: CallOptions) => await service.call('GET', '/v1/config/global/absent', options)
const write = async (options: CallOptions) =>
  await service.call('PUT', `/v1/config/global/k${randomBytes(4).toString('hex')}`, {
    body: { value: 1 },
    ...options,
  })
const entries = async () => (await sql('select key from config_entries')).length
const append = async (options: CallOptions) =>
  await service.call('POST', '/v1/audit/events', { body: event, ...options })

describe('a session that ended elsewhere', () => {
  it.each([
    ['deleted', ({ session }) => `delete from auth_sessions where id = ${session}`],
    ['expired', ({ session }) => `update auth_sessions set expires_at = now() where id = ${session}`],
    [
      'idle',
      ({ session }) =>
        `update auth_sessions set last_activity = now() - interval '3 hours' where id = ${session}`,
    ],
    ["its user's, who is inactive", ({ id }) => `update auth_users set is_active = false where id = ${id}`],
  ] as [string, (of: Awaited<ReturnType<typeof signedIn>>) => string][])(
    '(%s) reads, writes and appends nothing from the next request on',
    async (_, end) => {
      for (const ask of [read, write, append]) {
        const user = await signedIn()
        await sql(end(user))
        const before = await entries()
        const { status, body } = await ask({ token: user.token })
        expect([status, body.code]).toEqual([401, 'unauthenticated'])
        expect(await entries()).toBe(before)
      }
    },
  )

  it('is told so even where the request is wrong, or is answered without the database', async () => {
    const { token, session } = await signedIn()
    await sql(`delete from auth_sessions where id = ${session}`)
    expect((await append({ token, body: { nonsense: true } })).status).toBe(401)
    const other = await signedIn()
    await service.call('GET', '/v1/reports', { token: other.token })
    await sql(`delete from auth_sessions where id = ${other.session}`)
    expect((await service.call('GET', '/v1/reports', { token: other.token })).status).toBe(401)
  })
})

describe('a caller who has become another', () => {
  it('of lower role may no more, from the next request on, with the session still alive', async () => {
    const { id, token } = await signedIn('admin')
    await sql(`update auth_users set role = 'guest' where id = ${id}`)
    const before = await entries()
    expect((await write({ token })).status).toBe(403)
    expect(await entries()).toBe(before)
    expect((await write({ token })).status).toBe(403)
  })

  it('of higher role may more at once', async () => {
    const { id, token } = await signedIn('user')
    expect((await write({ token })).status).toBe(403)
    await sql(`update auth_users set role = 'admin' where id = ${id}`)
    expect((await write({ token })).status).toBe(201)
  })

  it('by another name is told to try again, and then acts under the new one', async () => {
    const { id, username, token } = await signedIn()
    await sql(`update auth_users set username = '${username}-new' where id = ${id}`)
    const first = await append({ token })
    expect([first.status, first.headers.get('retry-after')]).toEqual([503, '1'])
    expect((await append({ token })).status).toBe(201)
    const rows = await sql(
      `select distinct actor_name from audit_events where source = 'client' and actor_id = ${id}`,
    )
    expect(rows).toEqual([{ actor_name: `${username}-new` }])
  })

  it('who must change the password may do nothing else', async () => {
    const { id, token } = await signedIn()
    await sql(`update auth_users set must_change_password = true where id = ${id}`)
    for (const ask of [read, write, append]) {
      const { status, body } = await ask({ token })
      expect([status, body.code]).toEqual([403, 'password_change_required'])
    }
  })
})

describe('an API key', () => {
  const scopes = ['config:read', 'config:write', 'audit:write', 'act:on-behalf']

  it.each([
    ['deleted', (id: number) => `delete from auth_api_keys where user_id = ${id}`, 401],
    ['expired', (id: number) => `update auth_api_keys set expires_at = now() where user_id = ${id}`, 401],
    ['of an inactive user', (id: number) => `update auth_users set is_active = false where id = ${id}`, 401],
    [
      'without its scopes',
      (id: number) => `update auth_api_keys set scopes = '{}' where user_id = ${id}`,
      403,
    ],
  ])('that is %s elsewhere does nothing from the next request on', async (_, end, expected) => {
    for (const ask of [read, write, append]) {
      const { id } = await signedIn()
      const token = await service.keyOf(id, scopes)
      expect((await ask({ token })).status).toBeLessThan(405)
      await sql(end(id))
      const before = await entries()
      expect((await ask({ token })).status).toBe(expected)
      expect(await entries()).toBe(before)
    }
  })

  it('acts for nobody who was deactivated, promoted or is another: each is a caller of its own', async () => {
    const { id } = await signedIn('admin')
    const token = await service.keyOf(id, scopes)
    const [one, other] = [await signedIn('user'), await signedIn('user')]
    const as = (user: { id: number }) => ({ token, headers: { 'x-on-behalf-of': String(user.id) } })
    const mine = (user: { id: number }) =>
      service.call('PUT', '/v1/config/users/me/note', { ...as(user), body: { value: user.id } })
    for (const user of [one, other, one, other]) {
      expect((await mine(user)).status).not.toBe(401)
      expect((await service.call('GET', '/v1/users/me', as(user))).status).toBe(403)
    }
    expect((await append(as(one))).status).toBe(201)
    await sql(`update auth_users set is_active = false where id = ${one.id}`)
    expect((await append(as(one))).status).toBe(403)
    expect((await append(as(other))).status).toBe(201)
    await sql(`update auth_users set role = 'owner' where id = ${other.id}`)
    expect((await append(as(other))).status).toBe(403)
    expect((await append({ token })).status).toBe(201)
  })

  it('that means another by now, though its caller is the same, is told to try again and is not refused', async () => {
    const { id } = await signedIn('admin')
    const token = await service.keyOf(id, scopes)
    const user = await signedIn('user')
    const as = { token, headers: { 'x-on-behalf-of': String(user.id) } }
    expect((await append(as)).status).toBe(201)
    await sql(`update auth_users set role = 'auditor' where id = ${user.id}`)
    expect((await append(as)).status).toBe(503)
    expect((await append(as)).status).toBe(201)
  })

  it('does not let a session act on behalf of anybody', async () => {
    const { id, token } = await signedIn('admin')
    expect((await append({ token })).status).toBe(201)
    expect((await append({ token, headers: { 'x-on-behalf-of': String(id) } })).status).toBe(403)
  })
})
