import { beforeAll, describe, expect, it } from 'vitest'
import type { Scope } from '../../src/db/api-keys.js'
import { SCOPES } from '../../src/db/api-keys.js'
import { ROLES, type Role } from '../../src/db/users.js'
import { PASSWORD, useService } from '../harness.js'

const service = useService()

/** The contract's table once more, by hand: who may by session, the scope that a key needs, and who may by key. */
const PEOPLE = 'owner admin user guest subordinate_agent analyst auditor'
const MANAGERS = 'owner admin'
const SHARED_READERS = 'owner admin user subordinate_agent auditor'
const REPORT_READERS = 'owner admin analyst auditor'
type Cell = [route: string, bySession: string, scope: Scope | null, byKey: string, path?: string]
const CELLS: Cell[] = [
  ['get /v1/auth/session', PEOPLE, null, ''],
  ['post /v1/auth/logout', PEOPLE, null, ''],
  ['post /v1/auth/password', PEOPLE, null, ''],
  ['post /v1/auth/reauthenticate', PEOPLE, null, ''],
  ['post /v1/users/me/rotate-password', PEOPLE, null, ''],
  ['post /v1/auth/verify', '', 'auth:verify', `${MANAGERS} service`],
  ['post /v1/sessions/validate', '', 'sessions:validate', `${MANAGERS} service`],
  ['get /v1/sessions', PEOPLE, null, ''],
  ['delete /v1/sessions/{id}', PEOPLE, null, '', '/v1/sessions/999999'],
  ['post /v1/sessions/revoke-others', PEOPLE, null, ''],
  ['get /v1/users/me', PEOPLE, 'users:read', `${MANAGERS} service`],
  ['get /v1/users', MANAGERS, 'users:read', `${MANAGERS} service`],
  ['post /v1/users', MANAGERS, 'users:write', `${MANAGERS} service`],
  ['get /v1/users/{id}', MANAGERS, 'users:read', `${MANAGERS} service`, '/v1/users/999999'],
  ['patch /v1/users/{id}', MANAGERS, 'users:write', `${MANAGERS} service`, '/v1/users/999999'],
  ['delete /v1/users/{id}', MANAGERS, 'users:write', `${MANAGERS} service`, '/v1/users/999999'],
  [
    'post /v1/users/{id}/rotate-password',
    MANAGERS,
    'users:write',
    `${MANAGERS} service`,
    '/v1/users/999999/rotate-password',
  ],
  ['post /v1/users/{id}/unlock', MANAGERS, 'users:write', `${MANAGERS} service`, '/v1/users/999999/unlock'],
  ['get /v1/users/{id}/sessions', MANAGERS, 'users:read', `${MANAGERS} service`, '/v1/users/999999/sessions'],
  [
    'delete /v1/users/{id}/sessions',
    MANAGERS,
    'users:write',
    `${MANAGERS} service`,
    '/v1/users/999999/sessions',
  ],
  ['get /v1/api-keys', PEOPLE, 'users:read', `${MANAGERS} service`],
  ['post /v1/api-keys', PEOPLE, null, ''],
  ['delete /v1/api-keys/{id}', PEOPLE, 'users:write', `${MANAGERS} service`, '/v1/api-keys/999999'],
  ...shared('/v1/config/global/{key}', '/v1/config/global/none'),
  ...shared('/v1/config/environment/{owner}/{key}', '/v1/config/environment/prod/none'),
  ...shared('/v1/config/service/{owner}/{key}', '/v1/config/service/gary/none'),
  ['get /v1/config/user/{owner}/{key}', PEOPLE, 'config:read', PEOPLE, '/v1/config/user/me/none'],
  [
    'get /v1/config/user/{owner}/{key}/revisions',
    PEOPLE,
    'config:read',
    PEOPLE,
    '/v1/config/user/me/none/revisions',
  ],
  ['put /v1/config/user/{owner}/{key}', PEOPLE, 'config:write', PEOPLE, '/v1/config/user/me/none'],
  ['patch /v1/config/user/{owner}/{key}', PEOPLE, 'config:write', PEOPLE, '/v1/config/user/me/none'],
  ['delete /v1/config/user/{owner}/{key}', PEOPLE, 'config:write', PEOPLE, '/v1/config/user/me/none'],
  ['post /v1/audit/events', PEOPLE, 'audit:write', `${PEOPLE} service`],
  ['get /v1/audit/events', PEOPLE, 'audit:read', `${PEOPLE} service`],
  [
    'get /v1/audit/events/{event_id}',
    PEOPLE,
    'audit:read',
    `${PEOPLE} service`,
    '/v1/audit/events/3f2b0f5c-0000-4000-8000-000000000000',
  ],
  ['get /v1/reports', REPORT_READERS, 'reports:read', `${REPORT_READERS} service`],
  ['get /v1/reports/{name}', REPORT_READERS, 'reports:read', `${REPORT_READERS} service`, '/v1/reports/none'],
]

function shared(route: string, path: string): Cell[] {
  const readers = `${SHARED_READERS} service`
  const writers = `${MANAGERS} service`
  return [
    [`get ${route}`, SHARED_READERS, 'config:read', readers, path],
    [`get ${route}/revisions`, SHARED_READERS, 'config:read', readers, `${path}/revisions`],
    [`put ${route}`, MANAGERS, 'config:write', writers, path],
    [`patch ${route}`, MANAGERS, 'config:write', writers, path],
    [`delete ${route}`, MANAGERS, 'config:write', writers, path],
  ]
}

const PUBLIC = [
  'get /health',
  'get /ready',
  'get /health/live',
  'get /healthz',
  'get /health/detailed',
  'post /health/circuit',
  'post /v1/setup',
  'post /v1/auth/login',
]

interface Someone {
  id: number
  username: string
  /** Of all scopes that the role has a use for; made past the API, as is one that lacks a scope. */
  keyWith(scopes: readonly Scope[]): Promise<string>
}
const someone = {} as Record<Role, Someone>

beforeAll(async () => {
  for (const role of ROLES) {
    const { status, body } = await service.call('POST', '/v1/users', {
      token: service.ownerToken,
      body: { username: `the-${role}`, role, ...(role === 'service' ? {} : { password: PASSWORD }) },
    })
    expect(status).toBe(201)
    someone[role] = {
      id: body.id,
      username: body.username,
      keyWith: (scopes) => service.keyOf(body.id, scopes),
    }
  }
})

async function signedIn(role: Role): Promise<string> {
  const { body } = await service.call('POST', '/v1/auth/login', {
    body: { username: someone[role].username, password: PASSWORD },
  })
  return body.token
}

/** Refused for who asks, and not for what is asked: the bodies are empty, the things are not there. */
async function isRefused([route, , , , path]: Cell, credential: string): Promise<boolean> {
  const [method = '', template = ''] = route.split(' ')
  const answer = await service.call(method.toUpperCase(), path ?? template, {
    token: credential,
    ...(method === 'get' || method === 'delete' ? {} : { body: {} }),
  })
  expect([route, answer.status]).not.toEqual([route, 401])
  expect(answer.status, `${route}: ${answer.text}`).toBeLessThan(500)
  return answer.status === 403
}

const has = (list: string, role: string): boolean => list.split(' ').includes(role)

describe('every route', () => {
  it('is in this table or open to anyone, and the document says what it takes', async () => {
    const { body } = await service.call('GET', '/openapi.json')
    const routes: string[] = []
    const open: string[] = []
    for (const [path, operations] of Object.entries<Record<string, { 'x-access'?: { scope: string } }>>(
      body.paths,
    ))
      for (const [method, { 'x-access': access }] of Object.entries(operations)) {
        const route = `${method} ${path}`
        if (access === undefined) open.push(route)
        else routes.push(route)
        const cell = CELLS.find(([name]) => name === route)
        expect([route, access?.scope]).toEqual([route, cell?.[2]])
      }
    expect(routes.sort()).toEqual(CELLS.map(([route]) => route).sort())
    expect(open.sort()).toEqual([...PUBLIC].sort())
  })

  it.each(CELLS)('%s asks for a credential', async (route, _session, _scope, _key, path) => {
    const [method = '', template = ''] = route.split(' ')
    expect((await service.call(method.toUpperCase(), path ?? template)).status).toBe(401)
  })
})

describe.each(ROLES.filter((role) => role !== 'service'))('the session of a user of the role %s', (role) => {
  let token: string
  beforeAll(async () => void (token = await signedIn(role)))

  it.each(CELLS)('%s: by session for %s', async (...cell) => {
    // What ends the session has one of its own.
    const credential = cell[0] === 'post /v1/auth/logout' ? await signedIn(role) : token
    expect(await isRefused(cell, credential)).toBe(!has(cell[1], role))
  })
})

describe.each(ROLES)('the key of a user of the role %s', (role) => {
  let all: string
  beforeAll(async () => void (all = await someone[role].keyWith(SCOPES)))

  it.each(CELLS)('%s: (session %s) by key with the scope %s for %s', async (...cell) => {
    expect(await isRefused(cell, all)).toBe(!has(cell[3], role))
  })

  it.each(SCOPES)('without the scope %s does nothing that takes it', async (scope) => {
    const key = await someone[role].keyWith(SCOPES.filter((one) => one !== scope))
    for (const cell of CELLS.filter(([, , needed]) => needed === scope))
      expect([cell[0], await isRefused(cell, key)]).toEqual([cell[0], true])
  })
})

it('a scope that its user lost with the role gives nothing, from the next request on', async () => {
  const { body } = await service.call('POST', '/v1/users', {
    token: service.ownerToken,
    body: { username: 'demoted', password: PASSWORD, role: 'admin' },
  })
  const key = await service.keyOf(body.id, ['users:read', 'config:read'])
  expect((await service.call('GET', '/v1/users', { token: key })).status).toBe(200)
  await service.call('PATCH', `/v1/users/${body.id}`, { token: service.ownerToken, body: { role: 'user' } })
  expect((await service.call('GET', '/v1/users', { token: key })).status).toBe(403)
  expect((await service.call('GET', '/v1/config/global/none', { token: key })).status).toBe(404)
})

describe('the named scope alone', () => {
  let target: number
  beforeAll(async () => {
    const { body } = await service.call('POST', '/v1/users', {
      token: service.ownerToken,
      body: { username: 'acted-on', password: PASSWORD },
    })
    target = body.id
  })

  it.each([
    ['users:read', 'GET', '/v1/users', undefined, 200],
    ['users:read', 'GET', '/v1/users/{id}', undefined, 200],
    ['users:read', 'GET', '/v1/users/{id}/sessions', undefined, 200],
    ['users:read', 'GET', '/v1/api-keys?user_id={id}', undefined, 200],
    ['users:write', 'POST', '/v1/users', { username: 'made-by-key', password: PASSWORD }, 201],
    ['users:write', 'PATCH', '/v1/users/{id}', { must_change_password: true }, 200],
    ['users:write', 'POST', '/v1/users/{id}/rotate-password', undefined, 200],
    ['users:write', 'POST', '/v1/users/{id}/unlock', undefined, 204],
    ['users:write', 'DELETE', '/v1/users/{id}/sessions', undefined, 204],
    ['users:write', 'DELETE', '/v1/api-keys/{key}', undefined, 204],
    ['users:write', 'DELETE', '/v1/users/{id}', undefined, 204],
  ] as const)('%s is enough for %s %s', async (scope, method, path, body, status) => {
    const credential = await someone.service.keyWith([scope])
    await service.keyOf(target, ['config:read'])
    const [held] = (await service.database.read(
      `select id from auth_api_keys where user_id = ${target} order by id desc limit 1`,
    )) as { id: number }[]
    const address = path.replace('{id}', String(target)).replace('{key}', String(held?.id))
    const answer = await service.call(method, address, { token: credential, body })
    expect([path, answer.status]).toEqual([path, status])
  })
})

it('a query that a route does not know is refused, also where it knows none', async () => {
  for (const path of ['/v1/users/me?x=1', '/v1/auth/session?x=1', '/v1/users?x=1', '/v1/users?username=%00'])
    expect([path, (await service.call('GET', path, { token: service.ownerToken })).status]).toEqual([
      path,
      400,
    ])
  expect((await service.call('GET', '/health?x=1')).status).toBe(200)
})
