import { randomUUID } from 'node:crypto'
import { setImmediate } from 'node:timers/promises'
import pg, { DatabaseError } from 'pg'
import { afterAll, afterEach, beforeAll, beforeEach, expect, it } from 'vitest'
import { MAX_TOGETHER, appendTogether } from '../../src/db/append-together.js'
import { type Caller, SYSTEM } from '../../src/db/as-caller.js'
import type { NewEvent } from '../../src/db/audit-events.js'
import { keyClaim } from '../../src/db/claims.js'
import { type Db, createDatabase } from '../../src/db/database.js'
import { Deadline } from '../../src/db/deadline.js'
import type { Statement } from '../../src/db/flight.js'
import type { GuardedPool } from '../../src/db/guarded-pool.js'
import { budgetsFor } from '../../src/db/pool.js'
import type { PostgresSettings } from '../../src/db/postgres-source.js'
import { createPostgresDatabase, guardedPool } from '../engine.js'
import { Proxy } from '../proxy.js'

let url: string
let drop: () => Promise<void>
let superuser: pg.Client
let proxy: Proxy
let pool: GuardedPool
let db: Db
let alice: Caller
let bob: Caller
/** Alice by a key that is good, as a look a moment ago found it; and by one that is gone. */
let claimed: () => Caller
let refuted: () => Caller

beforeAll(async () => {
  ;({ url, drop } = await createPostgresDatabase())
  superuser = new pg.Client({ connectionString: url })
  await superuser.connect()
  const { rows } = await superuser.query<{ id: number }>(
    "insert into auth_users (username, username_key, password_hash) values ('alice', 'alice', ''), ('bob', 'bob', '') returning id",
  )
  const [a, b] = rows.map(({ id }) => userCaller(id))
  alice = a as Caller
  bob = b as Caller
  const { rows: keys } = await superuser.query<{ id: number }>(
    "insert into auth_api_keys (user_id, name, prefix, key_hash, scopes) values ($1, 'k', 'gzk_', 'good', '{audit:write}') returning id",
    [alice.userId],
  )
  const user_id = alice.userId ?? 0
  const key = { key_id: keys[0]?.id ?? 0, key_name: 'k', scopes: ['audit:write'], user_id, role: 'user' }
  claimed = () => ({ ...alice, claim: keyClaim('good', key, null) })
  refuted = () => ({ ...alice, claim: keyClaim('gone', key, null) })
})
afterAll(async () => {
  await superuser.end()
  await drop()
})
beforeEach(async () => {
  proxy = new Proxy(url)
  await proxy.open()
  open({ lanes: 2 })
  await expect.poll(async () => (await one(alice), pool.health().lanes?.ready)).toBe(2)
  await superuser.query('delete from audit_events')
  await superuser.query('delete from audit_event_ids')
})
afterEach(async () => {
  await pool.end(500)
  proxy.close()
})

function open(settings: Partial<PostgresSettings>): void {
  pool = guardedPool(proxy.through(url), settings)
  db = createDatabase(pool)
}

function userCaller(id: number): Caller {
  return { ...SYSTEM, userId: id, role: 'user', actor: { type: 'user', id, name: `user ${id}` } }
}

function event(columns: Partial<NewEvent['columns']> = {}, text = '{}'): NewEvent {
  const none = { userId: null, agentId: null, sessionId: null, requestId: null, traceId: null }
  const kind = { bodyHash: 'hash', eventType: 'tool', level: 'info', occurredAt: new Date().toISOString() }
  return { columns: { eventId: randomUUID(), ...kind, ...none, ...columns }, text }
}

const times = <T>(count: number, make: (n: number) => T): T[] =>
  Array.from({ length: count }, (_, n) => make(n))
const idsOf = (events: readonly NewEvent[]) => events.map(({ columns }) => columns.eventId)
const one = (caller: Caller, columns: Partial<NewEvent['columns']> = {}) =>
  codeOf(appendTogether(db, caller, [event(columns)]))
const codeOf = async (work: Promise<unknown>): Promise<string> =>
  await work.then(
    () => 'done',
    (error: { code?: string }) => String(error.code),
  )
const rows = async (): Promise<{ event_id: string; actor_id: number; tx: string }[]> =>
  (await superuser.query('select event_id, actor_id, tx::text from audit_events')).rows
/** The transactions that the rows were made in. */
const transactions = async () => new Set((await rows()).map(({ tx }) => tx)).size

it('what one identity appends in one turn shares a statement, but for the first; each is told of its own', async () => {
  const batches = times(20, () => [event(), event()])
  const fresh = await Promise.all(batches.map((events) => appendTogether(db, alice, events)))
  expect(fresh.map((ids) => [...ids].toSorted())).toEqual(batches.map((events) => idsOf(events).toSorted()))
  expect((await rows()).map(({ event_id }) => event_id).toSorted()).toEqual(batches.flatMap(idsOf).toSorted())
  expect(await transactions()).toBe(2)
})

it('so many events and characters share one, and no more; what is larger goes alone', async () => {
  await Promise.all(times(1 + 2 * MAX_TOGETHER + 1, () => one(alice)))
  expect(await transactions()).toBe(1 + 3)
  await superuser.query('delete from audit_events')
  const long = event({}, `"${'x'.repeat(40_000)}"`)
  await Promise.all(times(3, () => appendTogether(db, alice, [{ ...long, columns: event().columns }])))
  expect(await transactions()).toBe(3)
  await superuser.query('delete from audit_events')
  // Longer in their columns than in their texts, and still taken by the lanes: four statements, of 50, and none by the pool.
  const userId = 'u'.repeat(256)
  const wide = { userId, agentId: userId, sessionId: userId, requestId: userId, traceId: userId }
  await Promise.all(times(1 + MAX_TOGETHER, () => one(alice, wide)))
  expect(await transactions()).toBe(1 + 2)
  await superuser.query('delete from audit_events')
  await Promise.all(
    times(3, () =>
      appendTogether(
        db,
        alice,
        times(MAX_TOGETHER + 1, () => event()),
      ),
    ),
  )
  expect(await transactions()).toBe(3)
})

it('without lanes nothing is shared', async () => {
  await pool.end(500)
  open({ lanes: 0 })
  await Promise.all(times(6, () => one(alice)))
  expect(await transactions()).toBe(6)
})

it('of two identities nothing shares a statement, and each row is of who sent it', async () => {
  const sent = times(18, (n) => [n % 2 === 0 ? alice : bob, event()] as const)
  await Promise.all(sent.map(([caller, its]) => appendTogether(db, caller, [its])))
  const stored = await rows()
  for (const [caller, { columns }] of sent)
    expect(stored.find(({ event_id }) => event_id === columns.eventId)?.actor_id).toBe(caller.userId)
  expect(await transactions()).toBe(4)
})

it('a claim that is refuted stores nothing and holds up nobody; one that holds is confirmed for all who made it', async () => {
  const good = times(6, claimed)
  const bad = times(6, refuted)
  const codes = await Promise.all([...good, ...bad].map((caller) => one(caller)))
  expect(codes).toEqual([...times(6, () => 'done'), ...times(6, () => 'unauthenticated')])
  expect(good.map(({ claim }) => claim?.isConfirmed)).toEqual(times(6, () => true))
  expect(bad.map(({ claim }) => claim?.isConfirmed)).toEqual(times(6, () => false))
  expect(await rows()).toHaveLength(6)
})

it('the same id many times in one turn is stored once, and new to one', async () => {
  const eventId = randomUUID()
  const [, ...fresh] = await Promise.all([
    appendTogether(db, alice, [event()]),
    ...times(10, () => appendTogether(db, alice, [event({ eventId }), event()])),
  ])
  expect(fresh.filter((ids) => ids.has(eventId))).toHaveLength(1)
  expect(fresh.map(({ size }) => size).toSorted()).toEqual([...times(9, () => 1), 2])
  expect(await rows()).toHaveLength(12)
})

it('an event that PostgreSQL does not take is refused alone', async () => {
  const codes = await Promise.all(times(12, (n) => one(alice, n === 5 ? { occurredAt: 'never' } : {})))
  expect(codes).toEqual(times(12, (n) => (n === 5 ? 'validation_failed' : 'done')))
  expect(await rows()).toHaveLength(11)
})

/** An id that somebody else is about to store. */
async function lockedId(): Promise<{ eventId: string; letGo: () => Promise<void> }> {
  const eventId = randomUUID()
  const holder = new pg.Client({ connectionString: url })
  await holder.connect()
  await holder.query('begin')
  await holder.query("insert into audit_event_ids (event_id, actor, body_hash) values ($1, 'x', 'x')", [
    eventId,
  ])
  return { eventId, letGo: () => holder.end() }
}

it('an event that waits for a lock holds up its neighbours for no longer than a lane waits', async () => {
  await pool.end(500)
  const budgets = budgetsFor(60_000)
  open({ lanes: 2, size: 5, budgets })
  await expect.poll(async () => (await one(alice), pool.health().lanes?.ready)).toBe(2)
  const { eventId, letGo } = await lockedId()
  const started = performance.now()
  try {
    const codes = times(6, (n) => one(alice, n === 3 ? { eventId } : {}))
    const others = codes.filter((_, n) => n !== 3)
    expect(await Promise.all(others)).toEqual(times(5, () => 'done'))
    // While the lanes leave these statements to the pool they are not shared: nobody waits at all.
    expect(await Promise.all(times(4, () => one(alice)))).toEqual(times(4, () => 'done'))
    expect(performance.now() - started).toBeLessThan(budgets.lockMs / 2)
    await letGo()
    expect(await codes[3]).toBe('done')
  } finally {
    await letGo()
  }
})

it('each is waited for as long as its own deadline says: whose time is up hears so, the others of the answer', async () => {
  proxy.latencyMs = 200
  const deadlines = times(4, () => new Deadline())
  const codes = deadlines.map((deadline) => one({ ...alice, deadline }))
  await setImmediate()
  deadlines[1]?.end('expired')
  expect(await codes[1]).toBe('outcome_unknown')
  deadlines[2]?.end('client_gone')
  expect(await Promise.all(codes)).toEqual(['done', 'outcome_unknown', 'done', 'done'])
  expect(await rows()).toHaveLength(4)
  const late = new Deadline()
  late.end('expired')
  expect(await Promise.all([one(alice), one({ ...alice, deadline: late })])).toEqual([
    'done',
    'deadline_exceeded',
  ])
})

it('a shared statement whose outcome is unknown is not sent again, whatever its error says', async () => {
  const sent: number[] = []
  const panic = Object.assign(new DatabaseError('could not write to the log', 1, 'error'), {
    code: '58030',
    severity: 'PANIC',
  })
  const source = {
    run: async (statements: readonly Statement[]) => {
      const events = JSON.parse(String(statements.at(-1)?.values[0])) as unknown[]
      sent.push(events.length)
      if (events.length > 1) throw panic
      return { command: 'SELECT', rowCount: 0, rows: [] }
    },
    connect: () => Promise.reject(new Error('no connection is asked for')),
  }
  db = createDatabase(source)
  expect(await Promise.all(times(4, () => one(alice)))).toEqual([
    'done',
    ...times(3, () => 'outcome_unknown'),
  ])
  expect(sent).toEqual([1, 3])
})

it('a connection that is lost under a shared statement leaves the outcome of each unknown, and nothing is sent again', async () => {
  const { eventId, letGo } = await lockedId()
  const first = one(alice)
  const codes = times(5, (n) => one(alice, n === 3 ? { eventId } : {}))
  expect(await first).toBe('done')
  const waiting =
    "select from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
  await expect.poll(async () => (await superuser.query(waiting)).rowCount).toBe(1)
  await proxy.become('reset')
  expect(await Promise.all(codes)).toEqual(times(5, () => 'outcome_unknown'))
  await letGo()
})
