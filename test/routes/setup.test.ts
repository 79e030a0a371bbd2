import { expect, it } from 'vitest'
import { ACCOUNT_AT_ADDRESS } from '../../src/db/throttle.js'
import { useService } from '../harness.js'

const service = useService({ AUTH_LOGIN: '', AUTH_PASSWORD: '' })
const setup = (username: string, password = 'a long password', setup_token = service.setupToken) =>
  service.call('POST', '/v1/setup', { body: { setup_token, username, password } })

it('the first owner is made by the one-time token: wrong tokens and bad names fail, of many at once one succeeds', async () => {
  expect(service.setupToken).toMatch(/^gzi_[A-Za-z0-9_-]{43}$/)
  const wrong = await setup('root', 'a long password', `gzi_${'x'.repeat(43)}`)
  expect([wrong.status, wrong.body.code]).toEqual([401, 'invalid_credentials'])
  for (const name of ['', '   ', 'a:b', 'a\tb', 'x'.repeat(256)])
    expect([name, (await setup(name)).status]).toEqual([name, 422])
  expect((await setup('root', 'short')).body.errors).toEqual([
    { path: '/password', message: expect.any(String) },
  ])
  expect((await setup('root', 'ü'.repeat(37))).status).toBe(422)
  expect((await setup('root', 'password1234')).body.errors).toEqual([
    { path: '/password', message: expect.stringContaining('common') },
  ])
  expect((await setup('Grace-Hopper-Murray', 'grace-hopper-murray1')).body.errors).toEqual([
    { path: '/password', message: expect.stringContaining('user name') },
  ])

  // With the wrong token before, as many as may be under way at once.
  const answers = await Promise.all(
    Array.from({ length: ACCOUNT_AT_ADDRESS.failures - 1 }, (_, n) => setup(`  Root${n} `)),
  )
  expect(answers.map(({ status }) => status).sort()).toEqual([201, 404, 404, 404])
  const owner = answers.find(({ status }) => status === 201)?.body.user
  expect(owner).toMatchObject({ role: 'owner', is_active: true, username: expect.stringMatching(/^Root\d$/) })
  expect((await setup('again')).status).toBe(404)

  const login = await service.call('POST', '/v1/auth/login', {
    body: { username: owner.username.toUpperCase(), password: 'a long password' },
  })
  expect(login.status).toBe(200)
  const { body } = await service.call('GET', '/v1/audit/events?action=setup.complete', {
    token: login.body.token,
  })
  expect(body.items).toHaveLength(1)
  expect(await service.database.read('select * from auth_setup_tokens')).toEqual([])
})
