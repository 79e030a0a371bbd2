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
