import { expect, it } from 'vitest'
import { asApp } from '../../src/db/as-caller.js'
import { SYSTEM } from '../../src/db/as-caller.js'
import { createDatabase } from '../../src/db/database.js'
import { MemorySource } from '../../src/db/memory.js'
import { inTransaction } from '../../src/db/transaction.js'
import { anyUser, createUser } from '../../src/db/users.js'
import { createMemoryApp } from '../../src/memory-app.js'

it('gives the tests of others a whole service, each its own', async () => {
  const owner = { username: 'tester', password: 'a password for tests' }
  const [one, other] = await Promise.all([createMemoryApp({ owner }), createMemoryApp()])
  const login = (app: typeof one) =>
    app.fetch(
      new Request('http://memory/v1/auth/login', {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify(owner),
      }),
    )
  expect((await login(one)).status).toBe(200)
  expect((await login(other)).status).toBe(401)
  expect(one.setupToken).toBeNull()
  expect(other.setupToken).toMatch(/^gzi_/)
})

it('undoes a transaction that fails, as a server does', async () => {
  const db = createDatabase(new MemorySource())
  const user = { username: 'gone', passwordHash: '!', role: 'user', mustChangePassword: false } as const
  const correlation = {
    requestId: null,
    traceId: null,
    spanId: null,
    sessionId: null,
    ipAddress: null,
    userAgent: null,
    endpoint: null,
  }
  const event = {
    caller: SYSTEM,
    correlation,
    eventType: 'user_action',
    level: 'info',
    action: 'x',
    target: null,
    message: 'x',
  } as const
  const failing = inTransaction(db, SYSTEM, async (tx) => {
    await tx.executeQuery(createUser(tx, user, event))
    expect((await tx.executeQuery(anyUser(tx))).rows).toHaveLength(1)
    throw new Error('changed my mind')
  })
  await expect(failing).rejects.toThrow('changed my mind')
  expect(await asApp(db, anyUser(db))).toEqual([])
  expect(await asApp(db, db.selectFrom('audit_events').select('id'))).toEqual([])
})
