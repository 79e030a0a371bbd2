import { once } from 'node:events'
import { connect } from 'node:net'
import { expect, it } from 'vitest'
import { PASSWORD, useService } from '../harness.js'

// Room for three: one is hashed, for about a second, and two wait.
const ROOM = 3
const service = useService({ BCRYPT_COST: '14', HASHING_THREADS: '1' })

it('a flood of sign-ins is refused before bodies are read and callers are looked for', async () => {
  const login = async (body: unknown) => await service.call('POST', '/v1/auth/login', { body })
  const verify = async () => await service.call('POST', '/v1/auth/verify', { body: '{' })
  const attempts = Array.from({ length: 4 * ROOM }, () => login({ username: 'owner', password: PASSWORD }))
  for (const answer of [await Promise.race(attempts), await login('{'), await verify()]) {
    const { status, body, headers } = answer
    expect([status, body.code, headers.get('retry-after')]).toEqual([429, 'too_many_requests', '1'])
  }
  expect((await Promise.all(attempts)).filter(({ status }) => status === 200)).toHaveLength(ROOM)
  expect([(await login('{')).status, (await verify()).status]).toEqual([400, 401])
})

it('what is refused ahead of the app is answered and logged as the app does it', async () => {
  const ids = { 'x-request-id': 'mine', 'x-trace-id': 'trace', 'x-span-id': 'not one!', 'x-session-id': 's' }
  const send = async (path: string, body = '{') =>
    await service.call('POST', path, { body, headers: { ...ids, origin: 'http://elsewhere' } })
  const attempts = Array.from({ length: ROOM }, () =>
    service.call('POST', '/v1/auth/login', { body: { username: 'owner', password: PASSWORD } }),
  )
  await expect.poll(async () => (await send('/v1/auth/verify')).status).toBe(429)
  // The app has these two: another spelling, and more body than is dropped unread.
  const [early, spelt, large] = await Promise.all([
    send('/v1/auth/login'),
    send('/v1/auth/login?'),
    send('/v1/auth/login', `{"username":"${'x'.repeat(17_000)}"`),
  ])
  await Promise.all(attempts)
  const told = ({ status, headers, body, text }: typeof early) => {
    const { timestamp, ...problem } = body
    const isWhole = headers.get('content-length') === String(Buffer.byteLength(text))
    const same = { ...Object.fromEntries(headers), date: '', 'content-length': isWhole }
    return { status, headers: same, problem, timestamp: Math.sign(timestamp) }
  }
  expect(told(early)).toEqual(told(spelt))
  expect(told(early)).toEqual(told(large))
  expect(early.headers.get('x-span-id')).toBeNull()
  expect([early.headers.get('x-session-id'), early.body.request_id]).toEqual(['s', 'mine'])
  const lines = service
    .logged()
    .split('\n')
    .map(
      (line) => JSON.parse(line) as { request_id?: string; path?: string; status?: number; message: string },
    )
    .filter(({ request_id, path }) => request_id === 'mine' && path === '/v1/auth/login')
  expect(lines).toHaveLength(3)
  for (const line of lines) expect(line).toMatchObject({ status: 429, message: 'request', method: 'POST' })
})

it('what is refused ahead of the app keeps its connection, but for one whose body does not come', async () => {
  const attempts = Array.from({ length: ROOM }, () =>
    service.call('POST', '/v1/auth/login', { body: { username: 'owner', password: PASSWORD } }),
  )
  await expect
    .poll(async () => (await service.call('POST', '/v1/auth/login', { body: '{' })).status)
    .toBe(429)
  const socket = connect(service.port, '127.0.0.1')
  let answers = ''
  socket.on('data', (data) => (answers += data.toString()))
  const head =
    'POST /v1/auth/login HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 8\r\n\r\n'
  const count = () => answers.split('HTTP/1.1 429').length - 1
  socket.write(`${head}{}`)
  await expect.poll(count).toBe(1)
  socket.write(`{"a":1${head}{"a":12}`)
  await expect.poll(count).toBe(2)
  socket.write(`${head}{"`)
  await expect.poll(count).toBe(3)
  const waited = performance.now()
  await once(socket, 'close')
  expect(performance.now() - waited).toBeLessThan(5000)
  await Promise.all(attempts)
})
