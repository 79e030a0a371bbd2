import { expect, it } from 'vitest'
import { useService } from '../harness.js'

const service = useService({
  AUTH_LOGIN: '',
  AUTH_PASSWORD: '',
  TRUST_PROXY: 'x-real-ip',
  ENCRYPTION_KEY: '',
})
const setup = (setup_token: string, from: string) =>
  service.call('POST', '/v1/setup', {
    body: { setup_token, username: 'root', password: 'a long password' },
    headers: { 'x-real-ip': from },
  })

it('set-up is throttled by address, and nobody can lock it for others, by its name or by wrong tokens', async () => {
  const wrong = `gzi_${'x'.repeat(43)}`
  const statuses = []
  for (let index = 0; index < 6; index += 1) statuses.push((await setup(wrong, '192.0.2.1')).status)
  expect(statuses).toEqual([401, 401, 401, 401, 401, 429])
  for (let index = 0; index < 110; index += 1) {
    const from = { 'x-real-ip': `198.51.100.${index}` }
    await setup(wrong, `203.0.113.${index}`)
    await service.call('POST', '/v1/auth/login', {
      body: { username: ':setup', password: 'x' },
      headers: from,
    })
  }
  expect((await setup(service.setupToken, '192.0.2.2')).status).toBe(201)
})

it('without ENCRYPTION_KEY a request is compared without its passwords: no hash of one is stored', async () => {
  const login = await service.call('POST', '/v1/auth/login', {
    body: { username: 'root', password: 'a long password' },
    headers: { 'x-real-ip': '192.0.2.3' },
  })
  const create = (password: string, username = 'made') =>
    service.call('POST', '/v1/users', {
      token: login.body.token,
      body: { username, password },
      headers: { 'idempotency-key': 'k' },
    })
  const first = await create('correct horse battery')
  const again = await create('another horse battery')
  expect([first.status, again.status, again.headers.get('idempotent-replayed')]).toEqual([201, 201, 'true'])
  expect((await create('correct horse battery', 'other')).status).toBe(422)
})
