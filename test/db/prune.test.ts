import { afterAll, beforeAll, expect, it } from 'vitest'
import { JOBS, asCaller } from '../../src/db/as-caller.js'
import { createDatabase } from '../../src/db/database.js'
import { pruneAnswers } from '../../src/db/idempotency.js'
import { pruneSessions } from '../../src/db/sessions.js'
import { pruneAttempts } from '../../src/db/throttle.js'
import { type TestDatabase, createTestDatabase } from '../engine.js'

let database: TestDatabase

beforeAll(async () => {
  database = await createTestDatabase()
})
afterAll(async () => await database.drop())

it('pruning deletes the answers of all callers that are older than 24 hours, and no other', async () => {
  for (const [key, age] of [
    ['old', '24 hours'],
    ['older', '90 days'],
    ['young', '23 hours'],
  ])
    await database.read(
      `insert into idempotency_keys (caller, route, key, request_hash, status, response, created_at)
       values ('user:${key}', 'PUT /x', '${key}', 'h', 200, '{}', now() - interval '${age}')`,
    )
  const db = createDatabase(database.source)
  await asCaller(db, JOBS, pruneAnswers(db))
  expect(await database.read('select key from idempotency_keys')).toEqual([{ key: 'young' }])
})

it('pruning deletes sessions that are over by either limit, and no other', async () => {
  await database.read("insert into auth_users (username, password_hash) values ('u', '!')")
  for (const [token, expires, active] of [
    ['good', '1 hour', '1 minute'],
    ['expired', '-1 second', '1 minute'],
    ['idle', '1 hour', '3 hours'],
  ])
    await database.read(
      `insert into auth_sessions (session_token, user_id, expires_at, last_activity)
       select '${token}', id, now() + interval '${expires}', now() - interval '${active}' from auth_users`,
    )
  const db = createDatabase(database.source)
  await asCaller(db, JOBS, pruneSessions(db, 7200))
  expect(await database.read('select session_token from auth_sessions')).toEqual([{ session_token: 'good' }])
})

it('pruning forgets attempts after a day, and after 90 where somebody signed in', async () => {
  for (const [bucket, touched, succeeded] of [
    ['young', '23 hours', 'null'],
    ['old', '25 hours', 'null'],
    ['known', '25 hours', "now() - interval '89 days'"],
    ['known once', '25 hours', "now() - interval '91 days'"],
  ])
    await database.read(
      `insert into auth_throttle (bucket, touched_at, succeeded_at)
       values ('${bucket}', now() - interval '${touched}', ${succeeded})`,
    )
  const db = createDatabase(database.source)
  await asCaller(db, JOBS, pruneAttempts(db))
  const rows = (await database.read('select bucket from auth_throttle')) as { bucket: string }[]
  expect(rows.map(({ bucket }) => bucket).sort()).toEqual(['known', 'young'])
})
