import { afterAll, beforeAll, expect, it } from 'vitest'
import { JOBS, asCaller } from '../../src/db/as-caller.js'
import { createDatabase } from '../../src/db/database.js'
import { pruneAnswers } from '../../src/db/idempotency.js'
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
