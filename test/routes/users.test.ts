import { describe, expect, it } from 'vitest'
import { PASSWORD, useService } from '../harness.js'

const key = `gzk_${'k'.repeat(43)}`
const service = useService({ SERVICE_API_KEY: key })
const asOwner = (method: string, path: string, body?: unknown, headers: Record<string, string> = {}) =>
  service.call(method, path, { token: service.ownerToken, body, headers })

let count = 0
async function createUser(fields: object = {}) {
  const username = `user-${(count += 1)}`
  const answer = await asOwner('POST', '/v1/users', { username, password: PASSWORD, ...fields })
  expect(answer.status).toBe(201)
  return answer.body as { id: number; username: string; version: number }
}
async function login(username: string, password = PASSWORD) {
  return await service.call('POST', '/v1/auth/login', { body: { username, password } })
}
async function signedIn(username: string, password = PASSWORD): Promise<string> {
  return (await login(username, password)).body.token
}
const sessionStatus = async (token: string) =>
  (await service.call('GET', '/v1/auth/session', { token })).status
async function events(action: string, target: string) {
  const { body } = await asOwner('GET', `/v1/audit/events?action=${action}&target=${target}`)
  return body.items
}

describe('creating a user', () => {
  it('answers with the user, its address and its version, and is audited', async () => {
    const answer = await asOwner('POST', '/v1/users', {
      username: ' Ａlice ',
      password: PASSWORD,
      role: 'admin',
    })
    expect(answer.status).toBe(201)
    expect(answer.body).toMatchObject({
      username: 'Alice',
      role: 'admin',
      is_active: true,
      must_change_password: false,
    })
    expect(answer.body).not.toHaveProperty('password')
    expect(answer.headers.get('location')).toBe(`/v1/users/${answer.body.id}`)
    expect(answer.headers.get('etag')).toBe('"1"')
    const { body } = await asOwner('GET', '/v1/audit/events?action=user.create&limit=1')
    expect(body.items[0].metadata).toEqual({ username: 'Alice', role: 'admin' })
  })

  it('makes a password where none is given, shows it once, and has it changed at the first sign-in', async () => {
    const answer = await asOwner('POST', '/v1/users', { username: 'made' }, { 'idempotency-key': 'made' })
    expect(answer.body).toMatchObject({ role: 'user', must_change_password: true })
    expect(answer.body.password).toMatch(/^[A-Za-z0-9_-]{32}$/)
    expect(answer.headers.get('cache-control')).toBe('no-store')
    const again = await asOwner('POST', '/v1/users', { username: 'made' }, { 'idempotency-key': 'made' })
    expect([again.status, again.body.code]).toEqual([409, 'already_done'])
    expect(again.body.detail).toContain(String(answer.body.id))
    const stored = await service.database.read("select response from idempotency_keys where key = 'made'")
    expect(JSON.stringify(stored)).not.toContain(answer.body.password)
    expect((await login('made', answer.body.password)).body.user.must_change_password).toBe(true)
  })

  it('takes a name once, without case, also of 50 at once', async () => {
    const answers = await Promise.all(
      Array.from({ length: 50 }, (_, index) =>
        asOwner('POST', '/v1/users', { username: index % 2 === 0 ? 'race' : 'RACE', password: PASSWORD }),
      ),
    )
    expect(answers.map(({ status }) => status).sort()).toEqual([201, ...Array<number>(49).fill(409)])
  })

  it.each([
    ['a name with a colon', { username: 'a:b' }, '/username'],
    ['a name of blanks', { username: '   ' }, '/username'],
    ['a name with a control character', { username: 'a\u0007b' }, '/username'],
    ['a password that is too short', { password: 'short' }, '/password'],
    ['a password that is common', { password: 'password1234' }, '/password'],
    ['a password built on the name', { username: 'montgomery', password: 'montgomery12' }, '/password'],
    ['a password over 72 bytes', { password: 'ü'.repeat(37) }, '/password'],
    ['a role that does not exist', { role: 'root' }, '/role'],
    ['a password for a service', { role: 'service' }, '/password'],
    ['an id', { id: 7 }, '/id'],
    ['a hash', { password_hash: 'x' }, '/password_hash'],
  ])('refuses %s: 422, and says where', async (_, fields, path) => {
    const answer = await asOwner('POST', '/v1/users', { username: 'refused', password: PASSWORD, ...fields })
    expect([answer.status, answer.body.errors?.[0]?.path]).toEqual([422, path])
    expect((await asOwner('GET', '/v1/users?username=refused')).body.items).toEqual([])
  })
})

describe('listing users', () => {
  it('pages by id, stable while users are added, and filters by name, role and activity', async () => {
    for (let index = 0; index < 5; index += 1) await createUser({ role: 'guest' })
    const seen: number[] = []
    let cursor = ''
    do {
      const { body } = await asOwner('GET', `/v1/users?role=guest&limit=2${cursor}`)
      seen.push(...body.items.map(({ id }: { id: number }) => id))
      if (seen.length === 2) await createUser({ role: 'guest' })
      cursor = body.next_cursor === null ? '' : `&cursor=${body.next_cursor}`
    } while (cursor !== '')
    expect(seen).toHaveLength(6)
    expect(seen).toEqual([...new Set(seen)].sort((a, b) => a - b))
    const other = await asOwner('GET', `/v1/users?role=admin&cursor=${'x'.repeat(10)}`)
    expect(other.status).toBe(400)
    const user = await createUser()
    await asOwner('DELETE', `/v1/users/${user.id}`)
    const inactive = await asOwner('GET', '/v1/users?is_active=false')
    expect(inactive.body.items.map(({ id }: { id: number }) => id)).toEqual([user.id])
    expect((await asOwner('GET', '/v1/users?active=false')).status).toBe(400)
  })
})

describe('changing a user', () => {
  it('gives another role and ends every session of the user, at once and audited', async () => {
    const user = await createUser()
    const token = await signedIn(user.username)
    const answer = await asOwner('PATCH', `/v1/users/${user.id}`, { role: 'auditor' }, { 'if-match': '"1"' })
    expect([answer.status, answer.body.role, answer.headers.get('etag')]).toEqual([200, 'auditor', '"2"'])
    expect(await sessionStatus(token)).toBe(401)
    expect(await events('user.change', `users/${user.id}`)).toHaveLength(1)
  })

  it('changes nothing on another version than the one named: 412', async () => {
    const user = await createUser()
    const stale = await asOwner('PATCH', `/v1/users/${user.id}`, { role: 'guest' }, { 'if-match': '"7"' })
    expect([stale.status, stale.body.code]).toEqual([412, 'version_mismatch'])
    expect((await asOwner('GET', `/v1/users/${user.id}`)).body.role).toBe('user')
  })

  it('that changes nothing ends no session, makes no version and no audit row', async () => {
    const user = await createUser()
    const token = await signedIn(user.username)
    const answer = await asOwner('PATCH', `/v1/users/${user.id}`, { role: 'user', is_active: true })
    expect([answer.status, answer.body.version]).toEqual([200, 1])
    expect(await sessionStatus(token)).toBe(200)
    expect(await events('user.change', `users/${user.id}`)).toEqual([])
  })

  it('answers 304 to who has this version already', async () => {
    const user = await createUser()
    const path = `/v1/users/${user.id}`
    expect((await asOwner('GET', path, undefined, { 'if-none-match': '"1"' })).status).toBe(304)
  })

  it.each([
    ['a name', { username: 'other' }],
    ['a version', { version: 7 }],
    ['nothing', {}],
    ['service as a role', { role: 'service' }],
  ])('refuses %s: 422', async (_, patch) => {
    const user = await createUser()
    expect((await asOwner('PATCH', `/v1/users/${user.id}`, patch)).status).toBe(422)
  })

  it('is a merge patch: 415 for any other type', async () => {
    const user = await createUser()
    const headers = { 'content-type': 'application/json' }
    expect((await asOwner('PATCH', `/v1/users/${user.id}`, { role: 'guest' }, headers)).status).toBe(415)
  })
})

describe('deactivating a user', () => {
  it('ends sessions, sign-in and keys from the next request on; activating lets the user sign in again', async () => {
    const user = await createUser()
    const token = await signedIn(user.username)
    const apiKey = await service.keyOf(user.id, ['config:read'])
    const withKey = () => service.call('GET', '/v1/config/user/me/none', { token: apiKey })
    expect((await withKey()).status).toBe(404)
    expect((await asOwner('DELETE', `/v1/users/${user.id}`)).status).toBe(204)
    expect(await sessionStatus(token)).toBe(401)
    expect((await withKey()).status).toBe(401)
    expect((await login(user.username)).status).toBe(401)
    expect((await asOwner('DELETE', `/v1/users/${user.id}`)).status).toBe(204)
    expect(await events('user.deactivate', `users/${user.id}`)).toHaveLength(1)
    await asOwner('PATCH', `/v1/users/${user.id}`, { is_active: true })
    expect((await login(user.username)).status).toBe(200)
  })

  it('and another role are for others: nobody does either to oneself', async () => {
    const { body: me } = await asOwner('GET', '/v1/users/me')
    const own = `/v1/users/${me.id}`
    expect((await asOwner('PATCH', own, { role: 'user' })).status).toBe(403)
    expect((await asOwner('PATCH', own, { is_active: false })).status).toBe(403)
    expect((await asOwner('DELETE', own)).status).toBe(403)
    expect((await asOwner('POST', `${own}/rotate-password`)).status).toBe(403)
  })

  it('never takes the last active owner away, also by two owners at once', async () => {
    const second = await createUser({ role: 'owner' })
    const token = await signedIn(second.username)
    const { body: me } = await asOwner('GET', '/v1/users/me')
    const answers = await Promise.all([
      asOwner('DELETE', `/v1/users/${second.id}`),
      service.call('PATCH', `/v1/users/${me.id}`, { token, body: { role: 'user' } }),
    ])
    // Whoever comes second is signed out by then, or was the last.
    expect(answers.filter(({ status }) => status < 300)).toHaveLength(1)
    const owners = await service.database.read("select id from auth_users where role = 'owner' and is_active")
    expect(owners).toHaveLength(1)
    if (answers[0]?.status !== 204) service.ownerToken = token
    await service.database.read(
      `update auth_users set role = 'owner', is_active = true where id in (${me.id}, ${second.id})`,
    )
    service.ownerToken = await signedIn('owner')
  })
})

describe('the password', () => {
  it('is changed by who knows it: all other sessions end, this one stays', async () => {
    const user = await createUser()
    const [token, other] = [await signedIn(user.username), await signedIn(user.username)]
    const change = (current_password: string, new_password: string) =>
      service.call('POST', '/v1/auth/password', { token, body: { current_password, new_password } })
    expect((await change('wrong', 'a quite new phrase')).status).toBe(401)
    expect((await change(PASSWORD, 'short')).body.errors[0].path).toBe('/new_password')
    expect(await sessionStatus(other)).toBe(200)
    expect((await change(PASSWORD, 'a quite new phrase')).status).toBe(204)
    expect([await sessionStatus(token), await sessionStatus(other)]).toEqual([200, 401])
    expect((await login(user.username)).status).toBe(401)
    expect((await login(user.username, 'a quite new phrase')).status).toBe(200)
    expect(await events('password.change', `users/${user.id}`)).toHaveLength(1)
  })

  it('changed under an Idempotency-Key gives its answer again, though the old password is wrong by then', async () => {
    const user = await createUser()
    const token = await signedIn(user.username)
    const change = () =>
      service.call('POST', '/v1/auth/password', {
        token,
        body: { current_password: PASSWORD, new_password: 'a quite new phrase' },
        headers: { 'idempotency-key': 'change' },
      })
    expect((await change()).status).toBe(204)
    const again = await change()
    expect([again.status, again.headers.get('idempotent-replayed')]).toEqual([204, 'true'])
    expect(await events('auth.login_failed', `users/${user.id}`)).toEqual([])
    const rows = await service.database.read("select response from idempotency_keys where key = 'change'")
    expect(JSON.stringify(rows)).not.toContain('phrase')
  })

  it('is not told by the repetition of a request: each difference counts as a failure, and locks', async () => {
    const user = await createUser()
    const token = await signedIn(user.username)
    const again = (password: string) =>
      service.call('POST', '/v1/auth/reauthenticate', {
        token,
        body: { password },
        headers: { 'idempotency-key': 'oracle' },
      })
    expect((await again(PASSWORD)).status).toBe(204)
    const { status } = await again('a guess')
    expect(status).toBe(422)
    for (let index = 0; index < 99; index += 1) await again(`guess ${index}`)
    expect([(await again('a guess')).status, (await again(PASSWORD)).status]).toEqual([429, 429])
  })

  it('is made anew for a user who lost it: shown once, to be changed, all sessions end', async () => {
    const user = await createUser()
    const token = await signedIn(user.username)
    const { status, body, headers } = await asOwner('POST', `/v1/users/${user.id}/rotate-password`)
    expect([status, headers.get('cache-control')]).toEqual([200, 'no-store'])
    expect(await sessionStatus(token)).toBe(401)
    const answer = await login(user.username, body.password)
    expect(answer.body.user).toMatchObject({ must_change_password: true, version: 2 })
  })

  it('that must be changed leaves reading the session, changing it and signing out; verify, validate and keys go on', async () => {
    const user = await createUser({ must_change_password: true })
    const token = await signedIn(user.username)
    const code = async (method: string, path: string, body?: unknown) => {
      const answer = await service.call(method, path, { token, body })
      return [answer.status, answer.body?.code]
    }
    for (const [method, path] of [
      ['GET', '/v1/sessions'],
      ['GET', '/v1/users/me'],
      ['GET', '/v1/config/user/me/x'],
      ['POST', '/v1/users/me/rotate-password'],
      ['POST', '/v1/api-keys'],
    ] as const)
      expect([path, await code(method, path, method === 'POST' ? {} : undefined)]).toEqual([
        path,
        [403, 'password_change_required'],
      ])
    const asProgram = { headers: { 'x-api-key': key } }
    const verify = { ...asProgram, body: { username: user.username, password: PASSWORD } }
    expect((await service.call('POST', '/v1/auth/verify', verify)).status).toBe(200)
    const valid = await service.call('POST', '/v1/sessions/validate', { ...asProgram, body: { token } })
    expect(valid.body).toMatchObject({ active: true, user: { must_change_password: true } })
    const own = await service.keyOf(user.id, ['config:read'])
    expect((await service.call('GET', '/v1/config/user/me/x', { token: own })).status).toBe(404)
    expect(await sessionStatus(token)).toBe(200)
    expect(
      (
        await code('POST', '/v1/auth/password', {
          current_password: PASSWORD,
          new_password: 'a quite new phrase',
        })
      )[0],
    ).toBe(204)
    expect((await code('GET', '/v1/users/me'))[0]).toBe(200)
  })

  it('made anew by its own user takes the old one, and this session stays', async () => {
    const user = await createUser()
    const token = await signedIn(user.username)
    const rotate = (current_password: string) =>
      service.call('POST', '/v1/users/me/rotate-password', { token, body: { current_password } })
    expect((await rotate('wrong')).status).toBe(401)
    const { body } = await rotate(PASSWORD)
    expect(await sessionStatus(token)).toBe(200)
    expect((await login(user.username, body.password)).body.user.must_change_password).toBe(false)
  })

  it('must have been given within 15 minutes to change a role, make a manager or a key, or let a manager in again', async () => {
    const user = await createUser()
    const manager = await createUser({ role: 'owner' })
    const colleague = await createUser({ role: 'owner' })
    const token = await signedIn(manager.username)
    const asManager = async (method: string, path: string, body: unknown) =>
      await service.call(method, path, { token, body })
    const attempts = async () => [
      (await asManager('PATCH', `/v1/users/${user.id}`, { role: 'guest' })).status,
      (await asManager('POST', '/v1/users', { username: 'late', password: PASSWORD, role: 'admin' })).status,
      (await asManager('POST', '/v1/api-keys', { name: 'late', scopes: ['config:read'] })).status,
      (await asManager('POST', `/v1/users/${colleague.id}/rotate-password`, undefined)).status,
      (await asManager('PATCH', `/v1/users/${colleague.id}`, { is_active: true })).status,
    ]
    await service.database.read(
      `update auth_sessions set authenticated_at = now() - interval '16 minutes' where user_id = ${manager.id}`,
    )
    expect(await attempts()).toEqual([403, 403, 403, 403, 403])
    const refused = await asManager('PATCH', `/v1/users/${user.id}`, { role: 'guest' })
    expect(refused.body.code).toBe('reauthentication_required')
    expect((await asManager('PATCH', `/v1/users/${user.id}`, { must_change_password: true })).status).toBe(
      200,
    )
    expect((await asManager('POST', '/v1/auth/reauthenticate', { password: 'wrong' })).status).toBe(401)
    expect((await asManager('POST', '/v1/auth/reauthenticate', { password: PASSWORD })).status).toBe(204)
    expect(await attempts()).toEqual([200, 201, 201, 200, 200])
  })
})
