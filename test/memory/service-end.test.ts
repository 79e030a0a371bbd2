import { expect, it } from 'vitest'
import { MemorySource } from '../../src/db/memory.js'
import { readEnv } from '../../src/env.js'
import type { Log } from '../../src/routes/context.js'
import { createService } from '../../src/service.js'

const log: Log = { info: () => {}, warn: () => {}, error: () => {}, child: () => log }

it('the hashing threads end with the service, and whoever still wants a hash is told so', async () => {
  const source = new MemorySource()
  const service = createService({
    env: readEnv({ BCRYPT_COST: '4', AUTH_LOGIN: 'owner', AUTH_PASSWORD: 'a long password' }),
    source,
    streamSource: source,
    requestMs: 15_000,
    log,
    checkRoles: false,
    onSetupToken: () => {},
  })
  await service.becomeReady(new AbortController().signal)
  const login = async () =>
    await service.app.request('/v1/auth/login', {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ username: 'owner', password: 'a long password' }),
    })
  expect((await login()).status).toBe(200)
  await service.end(1000)
  const refused = await login()
  expect([refused.status, await refused.json()]).toEqual([
    503,
    expect.objectContaining({ code: 'unavailable' }),
  ])
})
