import { describe, expect, it } from 'vitest'
import { type Answer, PASSWORD, useService } from '../harness.js'

const key = `gzk_${'k'.repeat(43)}`
const service = useService({ TRUST_PROXY: 'x-real-ip', SERVICE_API_KEY: key })

let count = 0
async function freshUser(): Promise<string> {
  const username = `user-${(count += 1)}`
  const { status } = await service.call('POST', '/v1/users', {
    token: service.ownerToken,
    body: { username, password: PASSWORD },
  })
  expect(status).toBe(201)
  return username
}

/** An address that no other test has. */
function freshAddress(): string {
  count += 1
  return `198.51.${count >> 8}.${count & 255}`
}

async function login(username: string, password: string, from: string): Promise<Answer> {
  return await service.call('POST', '/v1/auth/login', {
    body: { username, password },
    headers: { 'x-real-ip': from },
  })
}

async function fail(username: string, from: string, times: number): Promise<number[]> {
  const statuses: number[] = []
  for (let index = 0; index < times; index += 1)
    statuses.push((await login(username, 'wrong password', from)).status)
  return statuses
}

describe('guessing at one account from one address', () => {
  it('ends with the fifth failure, for a quarter of an hour, also for the right password', async () => {
    const [username, from] = [await freshUser(), freshAddress()]
    expect(await fail(username, from, 6)).toEqual([401, 401, 401, 401, 401, 429])
    const answer = await login(username, PASSWORD, from)
    expect([answer.status, answer.body.code]).toEqual([429, 'too_many_requests'])
    const wait = Number(answer.headers.get('retry-after'))
    expect(wait).toBeGreaterThan(890)
    expect(wait).toBeLessThanOrEqual(900)
  })

  it('is the same for a name that nobody has, and a locked name is no other body than an unknown one', async () => {
    const from = freshAddress()
    const username = await freshUser()
    expect(await fail('nobody-of-this-name', from, 6)).toEqual([401, 401, 401, 401, 401, 429])
    await fail(username, from, 5)
    const comparable = ({ status, body }: Answer) => ({ status, ...body, timestamp: 0, request_id: '' })
    expect(comparable(await login(username, 'x', from))).toEqual(
      comparable(await login('nobody-of-this-name', 'x', from)),
    )
  })

  it('holds up neither another account nor another address', async () => {
    const [victim, other, from] = [await freshUser(), await freshUser(), freshAddress()]
    await fail(victim, from, 5)
    expect((await login(other, PASSWORD, from)).status).toBe(200)
    expect((await login(victim, PASSWORD, freshAddress())).status).toBe(200)
    expect((await login(victim, PASSWORD, from)).status).toBe(429)
  })

  it('is one count for a name in any case, and for an IPv6 network of 64 bits', async () => {
    const username = await freshUser()
    const address = (host: number): string => `2001:db8:7:${count}::${host.toString(16)}`
    for (let host = 1; host <= 5; host += 1)
      await login(host % 2 === 0 ? username.toUpperCase() : username, 'x', address(host))
    expect((await login(username, PASSWORD, address(99))).status).toBe(429)
    expect((await login(username, PASSWORD, `2001:db8:8:${count}::1`)).status).toBe(200)
  })

  it('begins anew with a success, at this address alone', async () => {
    const [username, from, elsewhere] = [await freshUser(), freshAddress(), freshAddress()]
    await fail(username, elsewhere, 4)
    await fail(username, from, 4)
    expect((await login(username, PASSWORD, from)).status).toBe(200)
    expect(await fail(username, from, 4)).toEqual([401, 401, 401, 401])
    expect(await fail(username, elsewhere, 2)).toEqual([401, 429])
  })

  it('locks for twice as long the next time, and for as long as at first after a success', async () => {
    const [username, from] = [await freshUser(), freshAddress()]
    const retryAfter = async () => Number((await login(username, 'x', from)).headers.get('retry-after'))
    const timePasses = () =>
      service.database.read(
        "update auth_throttle set locked_until = now() - interval '1 second' where locked_until is not null",
      )
    await fail(username, from, 5)
    expect(await retryAfter()).toBeLessThanOrEqual(900)
    await timePasses()
    await fail(username, from, 5)
    expect(await retryAfter()).toBeGreaterThan(1790)
    await timePasses()
    expect((await login(username, PASSWORD, from)).status).toBe(200)
    await fail(username, from, 5)
    expect(await retryAfter()).toBeLessThanOrEqual(900)
  })

  it('is forgotten a quarter of an hour after it began, when it did not go so far as to lock', async () => {
    const [username, from] = [await freshUser(), freshAddress()]
    await fail(username, from, 4)
    await service.database.read("update auth_throttle set window_start = now() - interval '16 minutes'")
    expect(await fail(username, from, 4)).toEqual([401, 401, 401, 401])
  })

  it('is one count over sign-in, verify, password change, giving it again and rotation', async () => {
    const [username, from] = [await freshUser(), freshAddress()]
    const { body } = await login(username, PASSWORD, from)
    const own = { token: body.token, headers: { 'x-real-ip': from } }
    const wrong = async (path: string, sent: object) =>
      (await service.call('POST', path, { ...own, body: sent })).status
    expect(
      await wrong('/v1/auth/password', { current_password: 'x', new_password: 'a quite new phrase' }),
    ).toBe(401)
    expect(await wrong('/v1/auth/reauthenticate', { password: 'x' })).toBe(401)
    expect(await wrong('/v1/users/me/rotate-password', { current_password: 'x' })).toBe(401)
    const verify = async (password: string) =>
      await service.call('POST', '/v1/auth/verify', {
        headers: { 'x-api-key': key },
        body: { username, password, ip_address: from },
      })
    expect((await verify('x')).status).toBe(401)
    expect(await fail(username, from, 1)).toEqual([401])
    expect((await verify(PASSWORD)).status).toBe(429)
    expect(await wrong('/v1/auth/reauthenticate', { password: PASSWORD })).toBe(429)
  })

  it('ends with an unlock by who manages the user, at all addresses', async () => {
    const [username, ...addresses] = [await freshUser(), freshAddress(), freshAddress()]
    for (const from of addresses) await fail(username, from, 5)
    const { body } = await service.call('GET', `/v1/users?username=${username.toUpperCase()}`, {
      token: service.ownerToken,
    })
    const unlock = `/v1/users/${body.items[0].id}/unlock`
    const keyed = { token: service.ownerToken, headers: { 'idempotency-key': 'unlock' } }
    expect((await service.call('POST', unlock, keyed)).status).toBe(204)
    for (const from of addresses) expect((await login(username, PASSWORD, from)).status).toBe(200)
    const events = await service.call('GET', '/v1/audit/events?action=user.unlock', {
      token: service.ownerToken,
    })
    expect(events.body.items).toHaveLength(1)
    expect((await service.call('POST', unlock, keyed)).headers.get('idempotent-replayed')).toBe('true')
  })
})

describe('guessing at one account from everywhere', () => {
  it('ends with the hundredth failure in an hour, but for addresses it has signed in from', async () => {
    const [username, home] = [await freshUser(), freshAddress()]
    expect((await login(username, PASSWORD, home)).status).toBe(200)
    for (let address = 0; address < 25; address += 1) await fail(username, freshAddress(), 4)
    const stranger = await login(username, PASSWORD, freshAddress())
    expect(stranger.status).toBe(429)
    expect(Number(stranger.headers.get('retry-after'))).toBeGreaterThan(3500)
    expect((await login(username, PASSWORD, home)).status).toBe(200)
    expect((await login(await freshUser(), PASSWORD, freshAddress())).status).toBe(200)
  })
})

it('an unlock forgets failures, not the addresses the account has signed in from', async () => {
  const [username, home] = [await freshUser(), freshAddress()]
  await login(username, PASSWORD, home)
  const flood = async () => {
    for (let address = 0; address < 25; address += 1) await fail(username, freshAddress(), 4)
  }
  await flood()
  const { body } = await service.call('GET', `/v1/users?username=${username}`, { token: service.ownerToken })
  const path = `/v1/users/${body.items[0].id}/unlock`
  expect((await service.call('POST', path, { token: service.ownerToken })).status).toBe(204)
  await flood()
  expect((await login(username, PASSWORD, freshAddress())).status).toBe(429)
  expect((await login(username, PASSWORD, home)).status).toBe(200)
})

it('an address with a zone is the address', async () => {
  const username = await freshUser()
  const answer = await login(username, PASSWORD, 'fe80::1%eth0')
  expect([answer.status, answer.body.session.ip_address]).toEqual([200, 'fe80::1'])
})

describe('one password at many names from one address', () => {
  it('ends with the fiftieth failure, but for accounts that have signed in from there', async () => {
    const [neighbour, stranger, from] = [await freshUser(), await freshUser(), freshAddress()]
    expect((await login(neighbour, PASSWORD, from)).status).toBe(200)
    for (let name = 0; name < 50; name += 1) await fail(`sprayed-${name}`, from, 1)
    expect((await login(stranger, PASSWORD, from)).status).toBe(429)
    expect((await login(neighbour, PASSWORD, from)).status).toBe(200)
    expect((await login(stranger, PASSWORD, freshAddress())).status).toBe(200)
  })
})

describe('where it comes from', () => {
  it('is not known to a key that does not say: nothing is counted but the account', async () => {
    const username = await freshUser()
    const verify = async (name: string, password: string) =>
      (
        await service.call('POST', '/v1/auth/verify', {
          headers: { 'x-api-key': key, 'x-real-ip': '192.0.2.200' },
          body: { username: name, password },
        })
      ).status
    for (let index = 0; index < 60; index += 1) await verify(`no-${index}`, 'x')
    for (let index = 0; index < 6; index += 1) expect(await verify(username, 'x')).toBe(401)
    expect(await verify(username, PASSWORD)).toBe(200)
  })

  it('is said by a key at sign-in too, and is then the address of the session', async () => {
    const username = await freshUser()
    const { body } = await service.call('POST', '/v1/auth/login', {
      headers: { 'x-api-key': key },
      body: { username, password: PASSWORD, ip_address: '203.0.113.9', user_agent: 'browser' },
    })
    expect(body.session).toMatchObject({ ip_address: '203.0.113.9', user_agent: 'browser' })
  })

  it('leaves no address and no name in the table', async () => {
    const rows = (await service.database.read('select bucket from auth_throttle')) as { bucket: string }[]
    expect(rows.length).toBeGreaterThan(50)
    for (const { bucket } of rows)
      expect(bucket).toMatch(/^(pair:[0-9a-f]{32}:|account:|address:)[0-9a-f]{32}$/)
  })
})

it('an attempt whose end was never told counts as a failure after a minute', async () => {
  const [username, from] = [await freshUser(), freshAddress()]
  await fail(username, from, 1)
  await service.database.read(
    `update auth_throttle set pending = 4, pending_since = now() - interval '2 minutes', failures = 1
      where bucket like 'pair:%' and touched_at = (select max(touched_at) from auth_throttle)`,
  )
  expect((await login(username, PASSWORD, from)).status).toBe(429)
})
