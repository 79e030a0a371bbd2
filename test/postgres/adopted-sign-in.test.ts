import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { finishAdoption } from '../../src/db/adopt-finish.js'
import { readEnv } from '../../src/env.js'
import type { Log } from '../../src/routes/context.js'
import { createService } from '../../src/service.js'
import { guardedPool } from '../engine.js'
import { KEYS, KEY_TEXT, type OlderDatabase, olderDatabases, takeOver, withClient } from './adopting.js'
import { OLDER_USERS } from './older-database.js'

const log: Log = { info: () => {}, warn: () => {}, error: () => {}, child: () => log }
const ACTIVE = OLDER_USERS.filter(({ username }) => username !== 'carol')

let databases: Awaited<ReturnType<typeof olderDatabases>>
let older: OlderDatabase
let service: ReturnType<typeof createService>

beforeAll(async () => {
  databases = await olderDatabases()
  older = await databases.make()
  await takeOver(older.url)
  const pool = guardedPool(older.url)
  service = createService({
    env: readEnv({ BCRYPT_COST: '4', ENCRYPTION_KEY: KEY_TEXT }),
    source: pool,
    streamSource: pool,
    requestMs: 15_000,
    log,
    checkRoles: true,
    onSetupToken: () => expect.unreachable('there are users'),
  })
  await service.becomeReady(new AbortController().signal)
})
afterAll(async () => {
  await service.end(1000)
  await older.drop()
  await databases.drop()
})

async function call(method: string, path: string, body?: unknown, token?: string) {
  const response = await service.app.request(path, {
    method,
    headers: {
      'content-type': 'application/json',
      ...(token === undefined ? {} : { authorization: `Bearer ${token}` }),
    },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  })
  const text = await response.text()
  return { status: response.status, body: text === '' ? {} : JSON.parse(text) }
}
const login = (username: string, password: string) => call('POST', '/v1/auth/login', { username, password })
const hashes = () =>
  older.query<{ id: number; password_hash: string }>('select id, password_hash from auth_users order by id')

describe('users of the older application', () => {
  it.each(ACTIVE)('$username signs in with the old password ($hash)', async ({ id, username, password }) => {
    const { status, body } = await login(username, password)
    expect([status, body.user?.id]).toEqual([200, id])
    expect((await login(username, `${password}!`)).status).toBe(401)
  })

  it('who were inactive do not, and names that differ by case sign in exactly', async () => {
    expect((await login('carol', 'carol has left')).status).toBe(401)
    expect((await login('BOB', 'bob: another one')).status).toBe(401)
    expect((await login('Alice', 'alice: correct horse')).status).toBe(200)
  })

  it('keep their hashes side by side, and a password changed here is one that the older application reads', async () => {
    const before = await hashes()
    const alice = await login('alice', 'alice: correct horse')
    expect(await hashes()).toEqual(before)
    const change = { current_password: 'alice: correct horse', new_password: 'a quite new phrase' }
    expect((await call('POST', '/v1/auth/password', change, alice.body.token)).status).toBe(204)
    expect((await hashes())[0]?.password_hash).toMatch(/^scrypt:32768:8:1\$[A-Za-z0-9]{16}\$[0-9a-f]{128}$/)
    expect((await login('alice', 'a quite new phrase')).status).toBe(200)
  })

  it('have them made anew at the first sign-in after the end of side by side, with an audit row, never by a wrong password', async () => {
    await withClient(older.url, async (client) => await finishAdoption(client, KEYS))
    const before = await hashes()
    for (const { username } of ACTIVE) await login(username, 'not the password')
    expect(await hashes()).toEqual(before)
    for (const { username, password } of ACTIVE)
      expect((await login(username, username === 'alice' ? 'a quite new phrase' : password)).status).toBe(200)
    for (const { id, password_hash } of await hashes())
      if (id !== 4) expect(password_hash).toMatch(/^\$2b\$04\$/)
    expect(
      await older.query("select distinct target from audit_events where action = 'user.rehash_password'"),
    ).toHaveLength(ACTIVE.length)
    for (const { username, password } of ACTIVE)
      expect((await login(username, username === 'alice' ? 'a quite new phrase' : password)).status).toBe(200)
  })
})
