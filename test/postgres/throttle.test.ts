import { describe, expect, it } from 'vitest'
import { createService } from '../../src/service.js'
import { readEnv } from '../../src/env.js'
import type { Log } from '../../src/routes/context.js'
import { PASSWORD, useService } from '../harness.js'
import { guardedPool } from '../engine.js'

const ENV = { TRUST_PROXY: 'x-real-ip' }
const service = useService(ENV)

async function login(password: string, from: string, username = 'owner') {
  return await service.call('POST', '/v1/auth/login', {
    body: { username, password },
    headers: { 'x-real-ip': from },
  })
}
const failures = async () =>
  (await service.database.read("select 1 from audit_events where action = 'auth.login_failed'")).length

const log: Log = { info: () => {}, warn: () => {}, error: () => {}, child: () => log }

/** Another one on the same database, with a pool of its own. */
function secondReplica() {
  const pool = guardedPool(service.database.url ?? '')
  return createService({
    env: readEnv({
      BCRYPT_COST: '4',
      ENCRYPTION_KEY: `test:${Buffer.alloc(32, 1).toString('base64')}`,
      ...ENV,
    }),
    source: pool,
    streamSource: pool,
    requestMs: 15_000,
    log,
    checkRoles: true,
    onSetupToken: () => {},
  })
}

describe('guesses at once', () => {
  it('of 200, five are looked at and audited, all others refused', async () => {
    const before = await failures()
    const answers = await Promise.all(
      Array.from({ length: 200 }, (_, index) => login(`guess ${index}`, '203.0.113.7')),
    )
    const statuses = answers.map(({ status }) => status)
    expect(statuses.filter((status) => status === 401)).toHaveLength(5)
    // All others are refused: by the count, or for want of a connection to count with.
    expect(statuses.filter((status) => status === 429 || status === 503)).toHaveLength(195)
    expect(await failures()).toBe(before + 5)
    expect((await login(PASSWORD, '203.0.113.7')).status).toBe(429)
    for (const { status, headers } of answers)
      if (status === 429) expect(Number(headers.get('retry-after'))).toBeGreaterThanOrEqual(1)
  })

  it('are one count for all replicas', async () => {
    const replica = secondReplica()
    const elsewhere = async (password: string) =>
      (
        await replica.app.request('/v1/auth/login', {
          method: 'POST',
          headers: { 'content-type': 'application/json', 'x-real-ip': '203.0.113.8' },
          body: JSON.stringify({ username: 'owner', password }),
        })
      ).status
    const statuses = await Promise.all(
      Array.from({ length: 20 }, async (_, index) =>
        index % 2 === 0 ? await elsewhere('wrong') : (await login('wrong', '203.0.113.8')).status,
      ),
    )
    expect(statuses.filter((status) => status === 401)).toHaveLength(5)
    expect(await elsewhere(PASSWORD)).toBe(429)
    await replica.end(1000)
  })

  it('of the right password, more than five, hold nobody up for longer than they take', async () => {
    const answers = await Promise.all(Array.from({ length: 12 }, () => login(PASSWORD, '203.0.113.9')))
    const refused = answers.filter(({ status }) => status === 429)
    expect(answers.length - refused.length).toBeGreaterThanOrEqual(5)
    for (const { headers } of refused) expect(headers.get('retry-after')).toBe('1')
    expect((await login(PASSWORD, '203.0.113.9')).status).toBe(200)
  })
})

describe('a session that is ended', () => {
  it('is ended for the next request on every replica', async () => {
    const replica = secondReplica()
    const { body } = await login(PASSWORD, '203.0.113.10')
    const there = async () =>
      (await replica.app.request('/v1/auth/session', { headers: { authorization: `Bearer ${body.token}` } }))
        .status
    expect(await there()).toBe(200)
    await service.call('DELETE', `/v1/sessions/${body.session.id}`, { token: service.ownerToken })
    expect(await there()).toBe(401)
    await replica.end(1000)
  })
})

describe('a sign-in that overlaps the end of its password', () => {
  it.each([
    ['rotation', 'POST', '/rotate-password', undefined],
    ['deactivation', 'DELETE', '', undefined],
    ['another role', 'PATCH', '', { role: 'guest' }],
  ] as const)('opens no session that outlives it: %s', async (name, method, path, body) => {
    const username = `overlap-${name.replaceAll(' ', '-')}`
    const created = await service.call('POST', '/v1/users', {
      token: service.ownerToken,
      body: { username, password: PASSWORD },
    })
    const logins = Array.from({ length: 20 }, (_, index) => login(PASSWORD, `198.51.100.${index}`, username))
    const ended = await service.call(method, `/v1/users/${created.body.id}${path}`, {
      token: service.ownerToken,
      body,
    })
    expect(ended.status).toBeLessThan(300)
    const changedAt = await service.database.read(
      `select s.id from auth_sessions s join auth_users u on u.id = s.user_id
        where u.id = ${created.body.id} and s.created_at <= u.updated_at`,
    )
    // 503: no connection in time, on a busy machine.
    for (const answer of await Promise.all(logins)) expect([200, 401, 503]).toContain(answer.status)
    expect(changedAt).toEqual([])
    // Of the old password or the old rights nothing is left; a role lets the same password open new ones.
    if (name !== 'another role')
      expect(
        await service.database.read(`select id from auth_sessions where user_id = ${created.body.id}`),
      ).toEqual([])
  })
})
