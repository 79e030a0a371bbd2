import { beforeAll, describe, expect, it } from 'vitest'
import pg from 'pg'
import { SCOPES } from '../../src/db/api-keys.js'
import { ROLES, type Role } from '../../src/db/users.js'
import { outranks, rankOf } from '../../src/routes/access.js'
import { PASSWORD, useService } from '../harness.js'

const service = useService()

interface Person {
  id: number
  username: string
  role: Role
}
/** Two of each role: whom one is, and whom one is not. */
const people: Person[] = []

beforeAll(async () => {
  for (const role of ROLES)
    for (const which of ['one', 'other']) {
      const { body } = await service.call('POST', '/v1/users', {
        token: service.ownerToken,
        body: { username: `${role}-${which}`, role, ...(role === 'service' ? {} : { password: PASSWORD }) },
      })
      people.push(body as Person)
    }
})

const one = (role: Role): Person => people.find((person) => person.username === `${role}-one`) as Person
const other = (role: Role): Person => people.find((person) => person.username === `${role}-other`) as Person

async function credentialOf(role: Role): Promise<string> {
  if (role === 'service') return await service.keyOf(one(role).id, SCOPES)
  const { body } = await service.call('POST', '/v1/auth/login', {
    body: { username: one(role).username, password: PASSWORD },
  })
  return body.token
}

describe('rank', () => {
  it('is one rule in the table of the routes and in the functions of the database', async () => {
    const client = new pg.Client({ connectionString: service.database.url ?? '' })
    await client.connect()
    for (const role of ROLES)
      for (const target of ROLES) {
        const { rows } = await client.query<{ manages: boolean; rank: number }>(
          `select set_config('app.role', $1, false), set_config('app.scopes', '*', false),
                  gary.manages($2, 'users:write') as manages, gary.rank($2) as rank`,
          [role, target],
        )
        // Who has no right to act on users at all is refused by the route.
        const acts = ['owner', 'admin', 'service'].includes(role) && outranks(role, target)
        expect([role, target, rows[0]?.manages, rows[0]?.rank]).toEqual([role, target, acts, rankOf(target)])
      }
    await client.end()
  })
})

describe.each(['owner', 'admin', 'service'] as const)('%s, acting on users', (role) => {
  let token: string
  beforeAll(async () => void (token = await credentialOf(role)))
  const status = async (method: string, path: string, body?: unknown) =>
    (await service.call(method, path, { token, body })).status

  it.each(ROLES)('of the role %s: sees and changes those below, and knows of no others', async (target) => {
    const { id } = other(target)
    const acts = outranks(role, target)
    const hidden = acts ? 200 : 404
    expect(await status('GET', `/v1/users/${id}`)).toBe(hidden)
    expect(await status('GET', `/v1/users/${id}/sessions`)).toBe(hidden)
    expect(await status('PATCH', `/v1/users/${id}`, { must_change_password: true })).toBe(hidden)
    expect(await status('POST', `/v1/users/${id}/unlock`)).toBe(acts ? 204 : 404)
    expect(await status('DELETE', `/v1/users/${id}/sessions`)).toBe(acts ? 204 : 404)
    const rotated = acts ? (target === 'service' ? 409 : 200) : 404
    expect(await status('POST', `/v1/users/${id}/rotate-password`)).toBe(rotated)
    expect(await status('DELETE', `/v1/users/${id}`)).toBe(acts ? 204 : 404)
    await status('PATCH', `/v1/users/${id}`, { is_active: true })
  })

  it('on oneself sees, and changes nothing', async () => {
    const { id } = one(role)
    expect(await status('GET', `/v1/users/${id}`)).toBe(200)
    for (const [method, path, body] of [
      ['PATCH', '', { must_change_password: true }],
      ['PATCH', '', { role: 'user' }],
      ['DELETE', '', undefined],
      ['POST', '/unlock', undefined],
      ['POST', '/rotate-password', undefined],
    ] as const)
      expect([path, await status(method, `/v1/users/${id}${path}`, body)]).toEqual([path, 403])
  })

  it.each(ROLES)('gives the role %s only below', async (given) => {
    const username = `given-${role}-${given}`
    const body = { username, role: given, ...(given === 'service' ? {} : { password: PASSWORD }) }
    expect(await status('POST', '/v1/users', body)).toBe(outranks(role, given) ? 201 : 403)
    if (given !== 'service') {
      const changed = await status('PATCH', `/v1/users/${other('guest').id}`, { role: given })
      expect(changed).toBe(outranks(role, given) ? 200 : 403)
    }
    await service.call('PATCH', `/v1/users/${other('guest').id}`, {
      token: service.ownerToken,
      body: { role: 'guest' },
    })
  })

  it('lists those below and oneself', async () => {
    const { body } = await service.call('GET', '/v1/users?limit=1000', { token })
    for (const { id, role: listed } of body.items as Person[])
      expect([listed, id === one(role).id || outranks(role, listed)]).toEqual([listed, true])
  })
})

/** What a role must not come by: rights, passwords, sessions and keys of its own rank or above. */
async function stateAbove(role: Role): Promise<unknown> {
  const { id } = one(role)
  const above = ROLES.filter((each) => rankOf(each) >= rankOf(role)).map((each) => `'${each}'`)
  const users = `select id from auth_users where role in (${above.join(',')}) and id <> ${id}`
  return [
    await service.database.read(
      `select id, username, role, is_active, password_hash, must_change_password from auth_users
        where id in (${users}) order by id`,
    ),
    await service.database.read(`select id, role, is_active from auth_users where id = ${id}`),
    await service.database.read(
      `select user_id, session_token from auth_sessions where user_id in (${users}) order by 1, 2`,
    ),
    await service.database.read(
      `select user_id, key_hash, scopes from auth_api_keys where user_id in (${users}) order by 1, 2`,
    ),
  ]
}

// Owners may act on owners, and a service on all below admins: that is theirs by the contract.
describe.each(ROLES.filter((role) => role !== 'owner' && role !== 'service'))(
  'a user of the role %s who tries every route',
  (role) => {
    it('gains no right, password, session or key of the own rank or above', async () => {
      const token = await credentialOf(role)
      const ownKey = await service.keyOf(one(role).id, SCOPES)
      // Everybody has a session and a key that could be taken or ended.
      for (const target of ROLES) {
        await service.keyOf(other(target).id, ['config:read'])
        if (target !== 'service')
          await service.call('POST', '/v1/auth/login', {
            body: { username: other(target).username, password: PASSWORD },
          })
      }
      const before = await stateAbove(role)
      const targets = [
        one(role).id,
        ...people.filter((person) => rankOf(person.role) >= rankOf(role)).map(({ id }) => id),
      ]
      const keys = (await service.database.read('select id from auth_api_keys')) as { id: number }[]
      const sessions = (await service.database.read('select id from auth_sessions')) as { id: number }[]
      const tries: [string, string, unknown?][] = []
      for (const given of ROLES)
        if (rankOf(given) >= rankOf(role))
          tries.push(['POST', '/v1/users', { username: `up-${role}-${given}`, role: given }])
      for (const id of targets) {
        for (const given of ROLES) tries.push(['PATCH', `/v1/users/${id}`, { role: given }])
        tries.push(
          ['PATCH', `/v1/users/${id}`, { is_active: false }],
          ['PATCH', `/v1/users/${id}`, { must_change_password: true }],
          ['DELETE', `/v1/users/${id}`],
          ['POST', `/v1/users/${id}/rotate-password`],
          ['DELETE', `/v1/users/${id}/sessions`],
        )
        if (id !== one(role).id)
          tries.push(['POST', '/v1/api-keys', { name: 'up', scopes: ['config:read'], user_id: id }])
      }
      for (const { id } of keys) tries.push(['DELETE', `/v1/api-keys/${id}`])
      for (const { id } of sessions) tries.push(['DELETE', `/v1/sessions/${id}`])
      for (const credential of [ownKey, token])
        for (const [method, path, body] of tries)
          for (const behalf of credential === ownKey ? [undefined, ...targets.slice(0, 4)] : [undefined])
            await service.call(method, path, {
              token: credential,
              body,
              ...(behalf === undefined ? {} : { headers: { 'x-on-behalf-of': String(behalf) } }),
            })
      expect(await stateAbove(role)).toEqual(before)
    }, 120_000)
  },
)
