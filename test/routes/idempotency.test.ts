import { randomBytes } from 'node:crypto'
import { describe, expect, it } from 'vitest'
import { createDatabase, type Db } from '../../src/db/database.js'
import { AppError } from '../../src/errors.js'
import { type Log, requestContext } from '../../src/routes/context.js'
import { errorResponse } from '../../src/routes/error-response.js'
import { idempotent } from '../../src/routes/idempotency.js'
import { userCaller } from '../../src/routes/identify.js'
import { createRouter, jsonBody } from '../../src/routes/validate.js'
import { type KeyRing, parseEncryptionKeys } from '../../src/security/secret-box.js'
import { createToken, hashToken } from '../../src/security/tokens.js'
import { type Answer, type CallOptions, useService } from '../harness.js'

const service = useService()
const fresh = (name: string): string => `${name}-${randomBytes(4).toString('hex')}`
const newKey = (): string => fresh('key')
const call = (method: string, path: string, { headers, ...rest }: CallOptions = {}, key?: string) =>
  service.call(method, path, {
    token: service.ownerToken,
    ...rest,
    headers: { ...headers, ...(key === undefined ? {} : { 'idempotency-key': key }) },
  })
const code = ({ status, body }: Answer) => [status, body?.code]
const isReplay = ({ headers }: Answer) => headers.get('idempotent-replayed')
const comparable = ({ status, text, headers }: Answer) => ({
  status,
  text,
  ...Object.fromEntries(
    ['etag', 'content-type', 'cache-control', 'location'].map((name) => [name, headers.get(name)]),
  ),
})

async function count(table: string, where: string): Promise<number> {
  return (await service.database.read(`select 1 from ${table} where ${where}`)).length
}
const revisionsOf = (key: string) => count('config_revisions', `key = '${key}'`)
const eventsOf = (key: string) => count('audit_events', `target like '%/${key}' and source = 'service'`)
const keptUnder = (key: string) => count('idempotency_keys', `key = '${key}'`)

/** A user straight from the tables, signed in; and a key of that user. */
async function user(name: string, role: string) {
  const [row] = (await service.database.read(
    `insert into auth_users (username, username_key, password_hash, role)
     values ('${name}', '${name}', 'x', '${role}') returning id`,
  )) as { id: number }[]
  const id = row?.id ?? 0
  const apiKey = createToken('gzk_')
  await service.database.read(
    `insert into auth_api_keys (user_id, name, prefix, key_hash, scopes)
     values (${id}, '${name}', 'gzk_', '${hashToken(apiKey)}', '{config:read,config:write}')`,
  )
  return { id, token: await session(id), apiKey }
}

async function session(userId: number, token = createToken('gzs_')): Promise<string> {
  await service.database.read(
    `insert into auth_sessions (session_token, user_id, expires_at)
     values ('${hashToken(token)}', ${userId}, now() + interval '1 day')`,
  )
  return token
}

describe('a change of configuration with an Idempotency-Key', () => {
  it.each<[what: string, before: unknown, method: string, body: unknown, headers: Record<string, string>]>([
    ['a creation', undefined, 'PUT', { value: { a: 1.5, token: 'hidden' }, tags: ['t'] }, {}],
    ['a creation only', undefined, 'PUT', { value: 'x' }, { 'if-none-match': '*' }],
    ['a replacement', { value: 1 }, 'PUT', { value: { b: ['\\ " \n é 𝄞'] } }, { 'if-match': '"1"' }],
    ['an overwriting', { value: 1 }, 'PUT', { value: 2 }, { 'if-match': '*' }],
    [
      'a replacement that keeps a secret',
      { value: { token: 'kept' } },
      'PUT',
      { value: { token: '****PSWD****', n: 1 } },
      { 'if-match': '"1"' },
    ],
    ['a patch', { value: { a: 1, token: 's' } }, 'PATCH', { a: null, b: 2 }, {}],
    ['a patch of a version', { value: { a: 1 } }, 'PATCH', { b: 2 }, { 'if-match': '"1"' }],
    ['a deletion', { value: 1 }, 'DELETE', undefined, { 'if-match': '"1"' }],
  ])(
    'answers %s again as the first time, byte for byte, and makes it once',
    async (_, before, method, body, headers) => {
      for (const scope of ['global', 'environment/test', 'service/api', 'user/me']) {
        const name = fresh('entry')
        const path = `/v1/config/${scope}/${name}`
        const key = newKey()
        if (before !== undefined) await call('PUT', path, { body: before })
        const [revisions, events] = [await revisionsOf(name), await eventsOf(name)]
        const first = await call(method, path, { body, headers }, key)
        expect(first.status).toBeLessThan(300)
        expect(isReplay(first)).toBeNull()
        for (let n = 0; n < 2; n += 1) {
          const again = await call(method, path, { body, headers }, key)
          expect(comparable(again)).toEqual(comparable(first))
          expect(isReplay(again)).toBe('true')
          expect(again.headers.get('x-request-id')).not.toBe(first.headers.get('x-request-id'))
        }
        expect([await revisionsOf(name), await eventsOf(name)]).toEqual([revisions + 1, events + 1])
      }
    },
  )

  it('gives the first answer also when others have changed the entry since, or deleted it', async () => {
    const name = fresh('moved')
    const path = `/v1/config/global/${name}`
    const key = newKey()
    await call('PUT', path, { body: { value: 1 } })
    const put = () => call('PUT', path, { body: { value: 2 }, headers: { 'if-match': '"1"' } }, key)
    const first = await put()
    await call('PUT', path, { body: { value: 3 }, headers: { 'if-match': '"2"' } })
    expect(comparable(await put())).toEqual(comparable(first))
    await call('DELETE', path, { headers: { 'if-match': '*' } })
    expect(comparable(await put())).toEqual(comparable(first))
    expect((await call('GET', path)).status).toBe(404)
  })

  it('sent twenty times at once is made once: all others hear in_progress or the same answer', async () => {
    for (const [method, body, headers] of [
      ['PUT', { value: { n: 1 } }, { 'if-match': '*' }],
      ['PATCH', { n: 2 }, {}],
      ['DELETE', undefined, { 'if-match': '*' }],
    ] as const) {
      const name = fresh('crowd')
      const path = `/v1/config/global/${name}`
      const key = newKey()
      await call('PUT', path, { body: { value: { n: 0 } } })
      const answers = await Promise.all(
        Array.from({ length: 20 }, () => call(method, path, { body, headers }, key)),
      )
      const done = answers.filter(({ status }) => status < 300)
      expect(done.filter((answer) => isReplay(answer) === null)).toHaveLength(1)
      expect(new Set(done.map((answer) => JSON.stringify(comparable(answer)))).size).toBe(1)
      for (const answer of answers.filter(({ status }) => status >= 300)) {
        expect(code(answer)).toEqual([409, 'in_progress'])
        expect(answer.headers.get('retry-after')).toBe('1')
      }
      expect(isReplay(await call(method, path, { body, headers }, key))).toBe('true')
      expect([await revisionsOf(name), await eventsOf(name)]).toEqual([2, 2])
    }
  })

  it('created by twenty of the same key at once is created by one, and none hears that it exists', async () => {
    const name = fresh('born')
    const key = newKey()
    const answers = await Promise.all(
      Array.from({ length: 20 }, () => call('PUT', `/v1/config/global/${name}`, { body: { value: 1 } }, key)),
    )
    const done = answers.filter(({ status }) => status === 201)
    expect(done.filter((answer) => isReplay(answer) === null)).toHaveLength(1)
    expect(new Set(done.map((answer) => JSON.stringify(comparable(answer)))).size).toBe(1)
    for (const answer of answers)
      if (answer.status !== 201) expect(code(answer)).toEqual([409, 'in_progress'])
    expect([await revisionsOf(name), await eventsOf(name)]).toEqual([1, 1])
  })

  it('is refused under the key of another request: other body, address, query or precondition', async () => {
    const name = fresh('other')
    const path = `/v1/config/service/api/${name}`
    const key = newKey()
    await call('PUT', path, { body: { value: 0 } })
    const first = { body: '{"value":1}', headers: { 'if-match': '"1"' } }
    expect((await call('PUT', path, first, key)).status).toBe(200)
    for (const [target, options] of [
      [path, { ...first, body: '{"value":2}' }],
      [path, { ...first, body: '{"value": 1}' }],
      [`${path}-2`, first],
      [`${path}?environment=test`, first],
      [path, { ...first, headers: { 'if-match': '"2"' } }],
      [path, { ...first, headers: { 'if-match': '*' } }],
      [path, { ...first, headers: { 'if-none-match': '*' } }],
      [path, { body: first.body }],
    ] as const) {
      const answer = await call('PUT', target, options, key)
      expect(code(answer)).toEqual([422, 'validation_failed'])
      expect(isReplay(answer)).toBeNull()
    }
    expect(await revisionsOf(name)).toBe(2)
    expect(await revisionsOf(`${name}-2`)).toBe(0)
    expect(isReplay(await call('PUT', path, first, key))).toBe('true')
  })

  it('under the same key is another one of another caller, another method and another kind of address', async () => {
    const key = newKey()
    const name = fresh('mine')
    const path = `/v1/config/user/me/${name}`
    const [eve, mallory] = [await user(fresh('eve'), 'admin'), await user(fresh('mallory'), 'user')]
    const body = { value: { n: 1 } }
    const owners = await Promise.all(
      [{ token: service.ownerToken }, { token: eve.token }, { token: mallory.token }].map(
        async (credential) => (await call('PUT', path, { ...credential, body }, key)).body.owner,
      ),
    )
    expect(owners).toEqual(['1', String(eve.id), String(mallory.id)])
    // A user and its own key: the same entry, another caller.
    const byKey = await service.call('PUT', path, {
      body,
      headers: { 'x-api-key': eve.apiKey, 'idempotency-key': key, 'if-match': '*' },
    })
    expect([byKey.status, byKey.body.version, isReplay(byKey)]).toEqual([200, 2, null])
    expect(isReplay(await call('PATCH', path, { body: {} }, key))).toBeNull()
    expect(isReplay(await call('PUT', `/v1/config/global/${name}`, { body }, key))).toBeNull()
    expect(await keptUnder(key)).toBe(6)
  })

  it('is the same one in another session of the same user', async () => {
    const path = `/v1/config/global/${fresh('again')}`
    const key = newKey()
    const first = await call('PUT', path, { body: { value: 1 } }, key)
    const again = await call('PUT', path, { token: await session(1), body: { value: 1 } }, key)
    expect(comparable(again)).toEqual(comparable(first))
  })

  it('that was refused is not kept: the same request works once its reason is gone', async () => {
    const name = fresh('refused')
    const path = `/v1/config/global/${name}`
    const key = newKey()
    expect((await call('PATCH', path, { body: { a: 1 } }, key)).status).toBe(404)
    await call('PUT', path, { body: { value: {} } })
    const patched = await call('PATCH', path, { body: { a: 1 } }, key)
    expect([patched.status, patched.body.version, isReplay(patched)]).toEqual([200, 2, null])

    const put = newKey()
    for (const [headers, status] of [
      [{}, 428],
      [{ 'if-match': '"7"' }, 412],
      [{ 'if-match': 'seven' }, 400],
      [{ 'if-none-match': '*' }, 412],
    ] as const) {
      const refused = await call('PUT', path, { body: { value: 9 }, headers }, put)
      expect([refused.status, refused.headers.get('etag')]).toEqual([status, null])
    }
    expect((await call('PUT', path, { body: { value: { token: '****PSWD****' } } }, put)).status).toBe(422)
    const corrected = await call('PUT', path, { body: { value: 9 }, headers: { 'if-match': '"2"' } }, put)
    expect([corrected.status, isReplay(corrected)]).toEqual([200, null])

    const remove = newKey()
    expect((await call('DELETE', path, {}, remove)).status).toBe(428)
    expect((await call('DELETE', path, { headers: { 'if-match': '"1"' } }, remove)).status).toBe(412)
    expect(await keptUnder(remove)).toBe(0)
    expect((await call('DELETE', path, { headers: { 'if-none-match': '*' } }, remove)).status).toBe(412)
    expect((await call('DELETE', path, { headers: { 'if-match': '"3"' } }, remove)).status).toBe(204)
    const gone = newKey()
    const removeGone = () => call('DELETE', path, { headers: { 'if-match': '*' } }, gone)
    expect(code(await removeGone())).toEqual([404, 'not_found'])
    expect(await keptUnder(gone)).toBe(0)
    await call('PUT', path, { body: { value: 1 } })
    expect((await removeGone()).status).toBe(204)
  })

  it('by who may not make it is refused as without a key, keeps nothing and replays nothing', async () => {
    const viewer = await user(fresh('viewer'), 'user')
    const key = newKey()
    const path = `/v1/config/global/${fresh('closed')}`
    const body = { value: 1 }
    expect((await call('PUT', path, { body, token: viewer.token }, key)).status).toBe(403)
    expect((await call('PUT', '/v1/config/user/1/x', { body, token: viewer.token }, key)).status).toBe(404)
    expect(await keptUnder(key)).toBe(0)

    const admin = await user(fresh('demoted'), 'admin')
    expect((await call('PUT', path, { body, token: admin.token }, key)).status).toBe(201)
    await service.database.read(`update auth_users set role = 'user' where id = ${admin.id}`)
    expect((await call('PUT', path, { body, token: admin.token }, key)).status).toBe(403)
  })

  it('is kept for 24 hours and then made anew', async () => {
    const name = fresh('old')
    const path = `/v1/config/global/${name}`
    const key = newKey()
    const age = (time: string) =>
      service.database.read(
        `update idempotency_keys set created_at = now() - interval '${time}' where key = '${key}'`,
      )
    const put = (value: number) => call('PUT', path, { body: { value }, headers: { 'if-match': '*' } }, key)
    await call('PUT', path, { body: { value: 0 } })
    const first = await put(1)
    await age('86340 seconds')
    expect(comparable(await put(1))).toEqual(comparable(first))
    await age('86400 seconds')
    const second = await put(1)
    expect([second.body.version, isReplay(second)]).toEqual([3, null])
    expect(comparable(await put(1))).toEqual(comparable(second))
    await age('86400 seconds')
    expect((await put(2)).body.version).toBe(4)
    expect(await keptUnder(key)).toBe(1)
  })

  it('is answered and kept as what others read: the same bytes, in the format of all kept answers', async () => {
    const path = `/v1/config/service/api/${fresh('bytes')}?environment=test`
    const value = String.raw`{"n":1.0,"big":12345678901234567890,"text":"\\ \" \u0001 \n é 𝄞","pin":"x","token":"y"}`
    const more = String.raw`"tags":["a\"b","\\"],"description":"of\nlines\t{}","secret_paths":["/pin"]`
    let headers: Record<string, string> = { 'if-none-match': '*' }
    for (const status of [201, 200, 200]) {
      const key = newKey()
      const first = await call('PUT', path, { body: `{"value":${value},${more}}`, headers }, key)
      const read = await call('GET', path)
      const etag = read.headers.get('etag') ?? ''
      expect(comparable(first)).toEqual({ ...comparable(read), status })
      const [row] = await service.database.read(
        `select status, response from idempotency_keys where key = '${key}'`,
      )
      const kept = row as { status: number; response: string }
      expect(kept.status).toBe(status)
      expect(JSON.parse(kept.response)).toEqual({
        headers: { 'content-type': 'application/json', etag },
        body: read.text,
      })
      headers = { 'if-match': etag }
    }
  })

  it('is given the answer that is kept, whoever kept it, and however', async () => {
    const path = `/v1/config/global/${fresh('kept')}`
    const key = newKey()
    const put = () => call('PUT', path, { body: { value: 1 } }, key)
    await put()
    const keptAs = (kept: object) =>
      service.database.read(
        `update idempotency_keys set status = 200, response = '${JSON.stringify(kept)}' where key = '${key}'`,
      )
    await keptAs({ headers: { 'content-type': 'text/x', etag: '"7"', location: '/x' }, body: 'as then' })
    const told = await put()
    expect([told.status, told.text, isReplay(told)]).toEqual([200, 'as then', 'true'])
    expect(['content-type', 'etag', 'location'].map((name) => told.headers.get(name))).toEqual([
      'text/x',
      '"7"',
      '/x',
    ])
    await keptAs({ headers: {}, shownOnce: 4711 })
    expect(code(await put())).toEqual([409, 'already_done'])
  })

  it('leaves no secret in what is kept, sealed or plain', async () => {
    const path = `/v1/config/global/${fresh('secret')}`
    const body = {
      value: { password: 'canary-1', pin: 'canary-2', nested: { api_keys: { a: 'canary-3' } } },
      secret_paths: ['/pin'],
    }
    const [create, change] = [newKey(), newKey()]
    const first = await call('PUT', path, { body }, create)
    await call('PATCH', path, { body: { nested: { token: 'canary-4' } } }, change)
    const rows = JSON.stringify(await service.database.read('select * from idempotency_keys'))
    expect(rows).toContain('****PSWD****')
    expect(rows).not.toContain('canary-')
    expect(rows).not.toContain('$sealed')
    expect((await call('PUT', path, { body }, create)).text).toBe(first.text)
    expect(service.logged()).not.toContain('canary-')
  })
})

describe('a key', () => {
  it('is the same bare and as a quoted string', async () => {
    const path = `/v1/config/global/${fresh('form')}`
    const key = newKey()
    const keys: [string, string][] = [
      [key, `"${key}"`],
      [`"${key}\\"\\\\x"`, `"${key}\\"\\\\x"`],
      [`${key}\\x`, `"${key}\\\\x"`],
      ['k'.repeat(255), `"${'k'.repeat(255)}"`],
    ]
    await call('PUT', path, { body: { value: 0 } })
    for (const [one, other] of keys) {
      const put = (key: string) =>
        call('PUT', path, { body: { value: one.length }, headers: { 'if-match': '*' } }, key)
      const first = await put(one)
      expect([first.status, isReplay(first)]).toEqual([200, null])
      expect(comparable(await put(other))).toEqual(comparable(first))
    }
  })

  it.each([
    ['empty', ''],
    ['an empty string', '""'],
    ['too long', 'k'.repeat(256)],
    ['too long in quotes', `"${'k'.repeat(256)}"`],
    ['with a space', 'a b'],
    ['two of them', 'a, b'],
    ['beyond ASCII', 'caf\u00e9'],
    ['half quoted', '"a'],
    ['a quote inside', 'a"b'],
    ['with a parameter', '"a";p=1'],
    ['an unknown escape', '"a\\b"'],
  ])('%s is refused and changes nothing', async (_, key) => {
    const name = fresh('malformed')
    const answer = await call('PUT', `/v1/config/global/${name}`, { body: { value: 1 } }, key)
    expect(code(answer)).toEqual([400, 'invalid_request'])
    expect(await revisionsOf(name)).toBe(0)
  })

  it('is documented by every change that honours it and refused by every other one', async () => {
    const { body: document } = await service.call('GET', '/openapi.json')
    const refused: string[] = []
    for (const [path, operations] of Object.entries<Record<string, { parameters?: { name: string }[] }>>(
      document.paths,
    )) {
      for (const [method, { parameters = [] }] of Object.entries(operations)) {
        if (method === 'get' || parameters.some(({ name }) => name === 'Idempotency-Key')) continue
        // Operators are no callers: what they set is set, however often.
        if (path.startsWith('/health')) continue
        refused.push(`${method} ${path}`)
        const answer = await call(method.toUpperCase(), path, { body: {} }, 'a')
        // Set-up is gone by now, and verify is for keys.
        expect([`${method} ${path}`, code(answer)]).toEqual([`${method} ${path}`, [422, 'validation_failed']])
      }
    }
    expect(refused.sort()).toEqual([
      'post /v1/auth/login',
      'post /v1/auth/verify',
      'post /v1/sessions/validate',
      'post /v1/setup',
    ])
  })

  it('stores events that were given no id once, however often they are sent', async () => {
    const events = Array.from({ length: 3 }, () => ({
      event_type: 'tool_execution',
      level: 'info',
      message: 'once',
    }))
    const key = newKey()
    const answers = [await call('POST', '/v1/audit/events', { body: events }, key)]
    answers.push(await call('POST', '/v1/audit/events', { body: events }, key))
    expect(answers.map(({ status, body }) => [status, body.accepted])).toEqual([
      [201, 3],
      [201, 3],
    ])
    expect(await count('audit_events', 'event like \'%"message":"once"%\'')).toBe(3)
    expect(code(await call('POST', '/v1/audit/events', { body: events.slice(1) }, key))).toEqual([
      422,
      'validation_failed',
    ])
  })
})

describe('signing out with an Idempotency-Key', () => {
  const logout = (token: string, key: string) => call('POST', '/v1/auth/logout', { token }, key)
  const signOuts = (id: number) => count('audit_events', `action = 'auth.logout' and actor_id = ${id}`)

  it('ends the session once and says the same to whoever was let in with it; then its token is nobody', async () => {
    const leaver = await user(fresh('leaver'), 'user')
    const key = newKey()
    const answers = await Promise.all(Array.from({ length: 10 }, () => logout(leaver.token, key)))
    const done = answers.filter(({ status }) => status === 204)
    expect(done.filter((answer) => isReplay(answer) === null)).toHaveLength(1)
    expect(new Set(done.map((answer) => JSON.stringify(comparable(answer)))).size).toBe(1)
    for (const { status } of answers) expect([204, 401, 409]).toContain(status)
    expect(await signOuts(leaver.id)).toBe(1)
    expect(code(await logout(leaver.token, key))).toEqual([401, 'unauthenticated'])
  })

  it('under the key of another session of the same user is refused, and that session goes on', async () => {
    const leaver = await user(fresh('leaver'), 'user')
    const other = await session(leaver.id)
    const key = newKey()
    expect((await logout(leaver.token, key)).status).toBe(204)
    expect(code(await logout(other, key))).toEqual([422, 'validation_failed'])
    expect((await call('GET', '/v1/auth/session', { token: other })).status).toBe(200)
    expect(await signOuts(leaver.id)).toBe(1)
  })
})

/** A route of the kind to come, over the run's database: what `change` answers to POST /things. */
function things(
  change: (c: Parameters<typeof idempotent>[0], db: Db, once: (id: number) => void) => Promise<Response>,
  ring: KeyRing | null = null,
) {
  const db = createDatabase(service.database.source)
  const log: Log = { info: () => {}, warn: () => {}, error: () => {}, child: () => log }
  const app = createRouter()
  app.use(requestContext(log, { requestMs: 15_000, trustedProxy: 0 }))
  app.onError(errorResponse)
  app.post('/things', jsonBody('strict'), async (c) => {
    c.set('caller', userCaller({ id: 1, username: 'owner', role: 'owner' }, null, c.var.deadline))
    return await idempotent(c, { db, ring }, (db, once) => change(c, db, once))
  })
  return async (key: string | undefined, body: unknown = {}) => {
    const response = await app.request('/things', {
      method: 'POST',
      headers: {
        'content-type': 'application/json',
        ...(key === undefined ? {} : { 'idempotency-key': key }),
      },
      body: JSON.stringify(body),
    })
    const text = await response.text()
    const parsed = text.startsWith('{') ? JSON.parse(text) : undefined
    return { status: response.status, headers: response.headers, text, body: parsed } as Answer
  }
}

describe('a route with an Idempotency-Key', () => {
  it('that shows a secret once has its id kept and not its answer', async () => {
    const post = things(async (c, _db, once) => {
      once(4711)
      c.header('location', '/things/4711')
      return c.json({ id: 4711, key: 'canary-once' }, 201, { 'cache-control': 'no-store' })
    })
    const key = newKey()
    const first = await post(key)
    expect([first.status, first.body.key]).toEqual([201, 'canary-once'])
    const again = await post(key)
    expect(code(again)).toEqual([409, 'already_done'])
    expect(again.headers.get('content-type')).toBe('application/problem+json')
    expect(again.body.detail).toContain('4711')
    expect(again.headers.get('location')).toBe('/things/4711')
    expect(isReplay(again)).toBe('true')
    expect(code(await post(key, { other: true }))).toEqual([422, 'validation_failed'])
    const rows = JSON.stringify(await service.database.read('select * from idempotency_keys'))
    expect(rows).not.toContain('canary')
    expect((await post(undefined)).status).toBe(201)
  })

  it('that shows a secret and forgets to say so fails, and keeps nothing', async () => {
    const post = things(async (c) => c.json({ key: 'canary' }, 201, { 'cache-control': 'no-store' }))
    const key = newKey()
    expect(code(await post(key))).toEqual([500, 'internal'])
    expect(await keptUnder(key)).toBe(0)
  })

  it('that answers with no success has nothing kept', async () => {
    let calls = 0
    const post = things(async (c) => c.json({ calls: (calls += 1) }, calls === 1 ? 409 : 200))
    const key = newKey()
    expect((await post(key)).status).toBe(409)
    expect((await post(key)).body).toEqual({ calls: 2 })
    expect((await post(key)).body).toEqual({ calls: 2 })
  })

  it('keeps Location and ETag, and no header of the request it was for', async () => {
    const post = things(async (c) => {
      c.header('etag', '"3"')
      return c.json({}, 201, { location: '/things/3', 'x-made-for': 'this one' })
    })
    const key = newKey()
    const first = await post(key)
    const again = await post(key)
    expect(comparable(again)).toEqual(comparable(first))
    expect(again.headers.get('location')).toBe('/things/3')
    expect(again.headers.get('x-made-for')).toBeNull()
  })

  it('has its request known by a hash that needs the key of the service', async () => {
    const ring = (...kids: string[]) =>
      parseEncryptionKeys(kids.map((kid) => `${kid}:${kid.repeat(32)}`).join(','))
    const answer = async (c: Parameters<typeof idempotent>[0]) => c.json({}, 200)
    const hashOf = async (key: string) => {
      const [row] = await service.database.read(
        `select request_hash from idempotency_keys where key = '${key}'`,
      )
      return (row as { request_hash: string }).request_hash
    }
    const [key, same, keyless] = [newKey(), newKey(), newKey()]
    await things(answer, ring('aa'))(key)
    expect(await hashOf(key)).toMatch(/^[0-9a-f]{64}$/)
    // A new key writes and the old one still reads: a retry is known.
    expect(isReplay(await things(answer, ring('bb', 'aa'))(key))).toBe('true')
    expect((await things(answer, ring('bb'))(key)).status).toBe(422)
    // Equal requests under two keys are not seen to be equal.
    await things(answer, ring('aa'))(same)
    expect(await hashOf(same)).not.toBe(await hashOf(key))
    // Without ENCRYPTION_KEY too, and in another process.
    await things(answer)(keyless)
    expect(isReplay(await things(answer)(keyless))).toBe('true')
    expect((await things(answer)(keyless, { other: 1 })).status).toBe(422)
  })

  it('is told to try again after an unknown outcome only with a key', async () => {
    const post = things(async () => {
      throw new AppError('outcome_unknown', 'The connection was lost before the answer.', {
        cause: Object.assign(new Error('reset'), { code: 'ECONNRESET' }),
      })
    })
    const keyed = await post(newKey())
    expect([keyed.status, keyed.headers.get('retry-after')]).toEqual([504, '1'])
    expect((await post(undefined)).headers.get('retry-after')).toBeNull()
  })
})
