import { describe, expect, it } from 'vitest'
import { useService } from '../harness.js'
import { settingsDocument } from '../settings-document.js'

const service = useService()
const token = (): string => service.ownerToken
const put = (path: string, body: unknown, headers = {}) =>
  service.call('PUT', path, { token: token(), body, headers })
const get = (path: string, headers = {}) => service.call('GET', path, { token: token(), headers })
const patch = (path: string, body: unknown, headers = {}) =>
  service.call('PATCH', path, { token: token(), body, headers })

describe.each([
  ['global', '/v1/config/global', null, null],
  ['environment', '/v1/config/environment/production', 'production', null],
  ['service', '/v1/config/service/gary', 'gary', null],
  ['user', '/v1/config/user/me', '1', null],
])('an entry of scope %s', (scope, base, owner, environment) => {
  it('is created once, read back with its ETag, and replaced only on the version the writer read', async () => {
    const path = `${base}/limits`
    const created = await put(path, { value: { max: 3 }, tags: ['a'], description: 'd' })
    expect(created.status).toBe(201)
    expect(created.headers.get('etag')).toBe('"1"')
    expect(created.body).toMatchObject({
      scope,
      owner,
      environment,
      key: 'limits',
      version: 1,
      tags: ['a'],
      description: 'd',
      updated_by: 'owner',
    })
    expect((await get(path)).body).toEqual(created.body)
    expect((await get(path, { 'if-none-match': '"1"' })).status).toBe(304)
    expect((await put(path, { value: 4 })).body.code).toBe('precondition_required')
    expect((await put(path, { value: 4 }, { 'if-none-match': '*' })).status).toBe(412)
    expect((await put(path, { value: 4 }, { 'if-match': '"7"' })).body.code).toBe('version_mismatch')
    const replaced = await put(path, { value: 4 }, { 'if-match': '"1"' })
    expect([replaced.status, replaced.body.version, replaced.body.value]).toEqual([200, 2, 4])
    expect((await put(path, { value: 5 }, { 'if-match': '*' })).body.version).toBe(3)
  })

  it('is deleted on its version, and its versions go on when it is created again', async () => {
    const path = `${base}/fleeting`
    await put(path, { value: 1 })
    const remove = (headers = {}) => service.call('DELETE', path, { token: token(), headers })
    expect((await remove()).status).toBe(428)
    expect((await remove({ 'if-match': '"9"' })).status).toBe(412)
    expect((await remove({ 'if-match': '"1"' })).status).toBe(204)
    expect((await get(path)).status).toBe(404)
    expect((await remove({ 'if-match': '*' })).status).toBe(404)
    expect((await patch(path, {})).status).toBe(404)
    const again = await put(path, { value: 2 })
    expect([again.status, again.body.version]).toEqual([201, 3])
    const { body } = await get(`${path}/revisions?values=true`)
    expect(
      body.items.map((r: { version: number; operation: string; value: unknown }) => [
        r.version,
        r.operation,
        r.value,
      ]),
    ).toEqual([
      [3, 'put', 2],
      [2, 'delete', null],
      [1, 'put', 1],
    ])
  })
})

describe('an entry', () => {
  it('of a service in an environment is another one than without', async () => {
    await put('/v1/config/service/api/url', { value: 'a' })
    await put('/v1/config/service/api/url?environment=test', { value: 'b' })
    expect((await get('/v1/config/service/api/url')).body.value).toBe('a')
    expect((await get('/v1/config/service/api/url?environment=test')).body).toMatchObject({
      value: 'b',
      environment: 'test',
    })
  })

  it('keeps every number as it was spelt', async () => {
    const value = '{"float":1.0,"big":12345678901234567890,"exp":1e5,"zero":-0,"small":1.10}'
    const created = await service.call('PUT', '/v1/config/global/numbers', {
      token: token(),
      body: `{"value":${value}}`,
    })
    expect(created.status).toBe(201)
    expect((await get('/v1/config/global/numbers')).text).toContain(`"value":${value}`)
  })

  it('of the consumer: 102 settings come back equal, secrets masked, and survive being written back', async () => {
    const settings = settingsDocument()
    const path = '/v1/config/user/me/settings'
    await put(path, { value: settings })
    const masked = (await get(path)).body.value
    expect(Object.keys(masked)).toHaveLength(102)
    const roundTrip = await put(path, { value: masked }, { 'if-match': '"1"' })
    expect(roundTrip.status).toBe(200)
    const revealed = await get(`${path}?reveal=true`)
    expect(revealed.body.value).toEqual(settings)
    expect(revealed.headers.get('cache-control')).toBe('no-store')
    const { body } = await get('/v1/audit/events?action=config.reveal')
    expect(body.items).toHaveLength(1)
  })

  it('stores no secret in the clear, in the current row, in revisions or in the trail', async () => {
    await put('/v1/config/global/canary', {
      value: { password: 'canary-4711', nested: { api_keys: { x: 'canary-4712' } } },
    })
    await patch('/v1/config/global/canary', { nested: { note: 'n' } })
    const everything = [
      await get('/v1/config/global/canary'),
      await get('/v1/config/global/canary/revisions?values=true'),
      await get('/v1/audit/events?limit=1000'),
    ]
    for (const { text } of everything) expect(text).not.toContain('canary-47')
    const rows = await service.database.read(
      'select value from config_revisions union all select value from config_entries',
    )
    expect(JSON.stringify(rows)).toContain('$sealed')
    expect(JSON.stringify(rows)).not.toContain('canary-47')
    expect(service.logged()).not.toContain('canary-47')
  })

  it('refuses a placeholder where nothing is stored, and a secret path that stops being one without a fresh value', async () => {
    expect((await put('/v1/config/global/blank', { value: { token: '****PSWD****' } })).status).toBe(422)
    await put('/v1/config/global/paths', { value: { pin: '1234' }, secret_paths: ['/pin'] })
    const kept = await put('/v1/config/global/paths', { value: { pin: '****PSWD****' } }, { 'if-match': '*' })
    expect(kept.status).toBe(422)
    expect(kept.body.errors[0].path).toBe('/pin')
    expect((await get('/v1/config/global/paths')).body.value).toEqual({ pin: '****PSWD****' })
  })

  it('merges a patch by RFC 7396 and keeps secrets that the patch does not name', async () => {
    const path = '/v1/config/global/merge'
    await put(path, { value: { a: 1, b: { c: 2, token: 's' }, list: [1, 2] } })
    const { body } = await patch(path, { a: null, b: { c: 3 }, list: [9] })
    expect(body.value).toEqual({ b: { c: 3, token: '****PSWD****' }, list: [9] })
    expect((await get(`${path}?reveal=true`)).body.value.b.token).toBe('s')
    expect((await patch(path, {}, { 'if-match': '"1"' })).status).toBe(412)
  })

  it('sealed as a whole takes no patch below itself, which would lose the rest', async () => {
    const path = '/v1/config/global/whole'
    await put(path, { value: { o: { p: 'g', q: [1, 2] } }, secret_paths: ['/o'] })
    const refused = await patch(path, { o: { q: 5 } })
    expect([refused.status, refused.body.errors[0].path]).toEqual([422, '/o'])
    expect((await get(`${path}?reveal=true`)).body.value).toEqual({ o: { p: 'g', q: [1, 2] } })
  })

  it('of more than 20 000 parts is refused', async () => {
    expect(
      (await put('/v1/config/global/parts', { value: Array.from({ length: 20_001 }, () => 0) })).status,
    ).toBe(413)
  })

  it('takes 50 patches at once', async () => {
    await put('/v1/config/global/crowd', { value: {} })
    const answers = await Promise.all(
      Array.from({ length: 50 }, (_, n) => patch('/v1/config/global/crowd', { [`n${n}`]: n })),
    )
    expect(new Set(answers.map(({ status }) => status))).toEqual(new Set([200]))
    expect(Object.keys((await get('/v1/config/global/crowd')).body.value)).toHaveLength(50)
  })

  it('loses no update among four writers at once', async () => {
    await put('/v1/config/global/counter', { value: {} })
    const results = await Promise.all(
      Array.from({ length: 4 }, async (_, writer) => {
        for (let n = 0; n < 5; n += 1) {
          const { status } = await patch('/v1/config/global/counter', { [`w${writer}_${n}`]: n })
          if (status !== 200) return status
        }
        return 200
      }),
    )
    expect(results).toEqual([200, 200, 200, 200])
    const { body } = await get('/v1/config/global/counter')
    expect(Object.keys(body.value)).toHaveLength(20)
    expect(body.version).toBe(21)
  })

  it('created by many at once is created by one', async () => {
    const answers = await Promise.all(
      Array.from({ length: 8 }, () => put('/v1/config/global/race', { value: 1 })),
    )
    expect(answers.map(({ status }) => status).sort()).toEqual([201, 428, 428, 428, 428, 428, 428, 428])
  })

  it('of another user does not exist for anybody', async () => {
    for (const method of ['GET', 'PUT', 'PATCH', 'DELETE']) {
      const body = method === 'PUT' ? { value: 1 } : method === 'PATCH' ? {} : undefined
      const answer = await service.call(method, '/v1/config/user/99/x', {
        token: token(),
        body,
        headers: { 'if-match': '*' },
      })
      expect([method, answer.status]).toEqual([method, 404])
    }
  })
})

describe('bad input', () => {
  const path = '/v1/config/global/bad'
  it.each([
    ['no JSON', '{"value":', 400],
    ['an empty body', '', 400],
    ['a byte order mark and nothing else', '\ufeff', 400],
    ['NUL in a string', '{"value":"a\\u0000"}', 422],
    ['NUL in a key', '{"value":{"a\\u0000":1}}', 422],
    ['a lone surrogate', '{"value":"\\ud800"}', 422],
    ['depth 65', `{"value":${'['.repeat(64)}${']'.repeat(64)}}`, 422],
    ['__proto__', '{"value":{"__proto__":{"a":1}}}', 422],
    ['constructor', '{"value":{"constructor":1}}', 422],
    ['a number beyond PostgreSQL', '{"value":1e400000}', 422],
    ['an unknown field', '{"value":1,"version":7}', 422],
    ['a missing value', '{"tags":[]}', 422],
    ['a $sealed member', '{"value":{"$sealed":{}}}', 422],
    ['a bad pointer', '{"value":1,"secret_paths":["a"]}', 422],
    ['a value over 256 KB', JSON.stringify({ value: 'x'.repeat(257 * 1024) }), 413],
    ['a body over 1 MiB', JSON.stringify({ value: 'x'.repeat(1024 * 1024) }), 413],
  ])('%s is refused and stores nothing', async (_, body, status) => {
    const answer = await service.call('PUT', path, { token: token(), body })
    expect(answer.status).toBe(status)
    expect(answer.headers.get('content-type')).toBe('application/problem+json')
    expect((await get(path)).status).toBe(404)
  })

  it('in form: wrong content type 415, bad UTF-8 400, unknown and doubled query keys 400, bad key 400, bad If-Match 400', async () => {
    const call = (target: string, headers: Record<string, string>, body?: string) =>
      service.call(body === undefined ? 'GET' : 'PUT', target, {
        token: token(),
        headers,
        ...(body === undefined ? {} : { body }),
      })
    expect((await call(path, { 'content-type': 'text/plain' }, '{}')).status).toBe(415)
    expect(
      (
        await service.call('PATCH', path, {
          token: token(),
          body: '{}',
          headers: { 'content-type': 'application/json' },
        })
      ).status,
    ).toBe(415)
    expect((await call(`${path}?x=1`, {})).status).toBe(400)
    expect((await call('/v1/config/service/a/b?environment=x&environment=y', {})).status).toBe(400)
    expect((await call('/v1/config/global/b%20d', {})).status).toBe(400)
    expect((await call('/v1/config/global/%ff', {})).status).toBe(400)
    expect((await call(path, { 'if-match': 'seven' }, '{"value":1}')).status).toBe(400)
    expect((await call(`${path}/revisions?limit=0`, {})).status).toBe(400)
    expect((await call(`${path}/revisions?cursor=zzz`, {})).status).toBe(400)
  })
})
