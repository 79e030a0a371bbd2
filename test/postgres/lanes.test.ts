import { type Compilable, CompiledQuery, SelectQueryNode } from 'kysely'
import pg from 'pg'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import { asApp } from '../../src/db/as-caller.js'
import { type Db, createDatabase } from '../../src/db/database.js'
import { Deadline } from '../../src/db/deadline.js'
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

beforeAll(async () => {
  ;({ url, drop } = await createPostgresDatabase())
  superuser = new pg.Client({ connectionString: url })
  await superuser.connect()
  await superuser.query('create table things (id int primary key, note text)')
  await superuser.query('grant select, insert, update on things to gary_app')
})
afterAll(async () => {
  await superuser.end()
  await drop()
})
beforeEach(async () => {
  await superuser.query("truncate things; insert into things values (1, 'one')")
  proxy = new Proxy(url)
  await proxy.open()
})
afterEach(async () => {
  await pool.end(100)
  proxy.close()
  await superuser.query(
    "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'gary-test'",
  )
})

function reading<R>(text: string, parameters: unknown[] = []): Compilable<R> {
  const query = { ...CompiledQuery.raw(text, parameters), query: SelectQueryNode.createFrom([]) }
  return { compile: () => query as CompiledQuery<R> }
}

function writing(text: string): Compilable<unknown> {
  return { compile: () => CompiledQuery.raw(text) }
}

/** With one lane, which stops a statement after a second; its backend, once it is there. */
async function open(settings: Partial<PostgresSettings> = {}): Promise<number> {
  const budgets = { ...budgetsFor(10_000), statementMs: 2000 }
  pool = guardedPool(proxy.through(url), { lanes: 1, size: 2, budgets, ...settings })
  db = createDatabase(pool)
  await backend()
  await expect.poll(() => pool.health().lanes?.ready).toBe(1)
  return await backend()
}

/** Which backend answers, after `seconds`. */
async function backend(seconds = 0, deadline?: Deadline): Promise<number> {
  const query = reading<{ pid: number }>('select pg_backend_pid() as pid from pg_sleep($1)', [seconds])
  const [row] = await asApp(db, query, deadline)
  return row?.pid ?? 0
}

function later(ms: number): Deadline {
  const deadline = new Deadline()
  setTimeout(() => deadline.end('expired'), ms)
  return deadline
}

describe('a lane', () => {
  it('answers many at once, in the order of asking, and who finds it full is answered by the pool', async () => {
    const lane = await open()
    const order: number[] = []
    const asked = Array.from({ length: 80 }, async (_, index) => {
      const pid = await backend(index === 0 ? 0.3 : 0)
      if (pid === lane) order.push(index)
      return pid
    })
    await expect.poll(() => pool.health().lanes).toEqual({ ready: 1, inFlight: 64, limit: 1 })
    const pids = await Promise.all(asked)
    expect(order).toEqual(Array.from({ length: 64 }, (_, index) => index))
    expect(pids.slice(64)).not.toContain(lane)
    expect(pool.health().lanes?.inFlight).toBe(0)
  })

  it('carries nothing large', async () => {
    const lane = await open()
    const of = async (text: string) =>
      (await asApp(db, reading<{ pid: number }>('select pg_backend_pid() as pid, $1::text', [text])))[0]?.pid
    expect(await of('x'.repeat(1000))).toBe(lane)
    expect(await of('x'.repeat(100_000))).not.toBe(lane)
  })

  it('is sent no request to cancel: a read is let go at the end of its deadline, and its neighbours are answered', async () => {
    const lane = await open()
    const slow = backend(0.5, later(50))
    const neighbour = backend()
    await expect(slow).rejects.toMatchObject({ code: 'deadline_exceeded' })
    expect(await neighbour).toBe(lane)
    expect(await backend()).toBe(lane)
    expect(proxy.cancels).toBe(0)
  })

  it('keeps a write whose deadline ended: it is told as unknown, and is there', async () => {
    await open()
    const write = asApp(db, writing("insert into things select 2, 'two' from pg_sleep(0.4)"), later(50))
    await expect(write).rejects.toMatchObject({ code: 'outcome_unknown' })
    await backend()
    expect((await superuser.query('select from things where id = 2')).rowCount).toBe(1)
    expect(proxy.cancels).toBe(0)
  })

  it('waits 150 ms for a row: the pool waits longer, and the lane serves meanwhile', async () => {
    const lane = await open({ budgets: budgetsFor(60_000) })
    await superuser.query('begin; update things set note = note')
    const held = asApp(db, writing("update things set note = 'changed' where id = 1"))
    await expect.poll(() => pool.health().pool.idle).toBe(0)
    expect(await backend()).toBe(lane)
    await superuser.query('commit')
    await held
    expect((await superuser.query('select note from things')).rows).toEqual([{ note: 'changed' }])
  })

  it('is replaced when it has lived long enough, and what is under way on it lands', async () => {
    const lane = await open({ lifetimeMs: 800, budgets: budgetsFor(12_000) })
    const slow = backend(1.5)
    await expect.poll(() => backend(), { timeout: 5000 }).not.toBe(lane)
    expect(await slow).toBe(lane)
    await expect
      .poll(
        async () => (await superuser.query('select from pg_stat_activity where pid = $1', [lane])).rowCount,
      )
      .toBe(0)
  })

  it('that dies is replaced: its reads are answered elsewhere, its writes are unknown', async () => {
    const lane = await open()
    const reads = [backend(0.9), backend(), backend()]
    const write = asApp(db, writing('update things set note = note'))
    const told = write.then(
      () => 'done',
      (error: { code: string }) => error.code,
    )
    await expect
      .poll(
        async () =>
          (
            await superuser.query("select from pg_stat_activity where pid = $1 and wait_event = 'PgSleep'", [
              lane,
            ])
          ).rowCount,
      )
      .toBe(1)
    await superuser.query('select pg_terminate_backend($1)', [lane])
    expect(await Promise.all(reads)).not.toContain(lane)
    expect(await told).toBe('outcome_unknown')
    await expect.poll(() => pool.health().lanes?.ready).toBe(1)
  })

  it('that answers nothing more is cut, and another takes its place once there is a way', async () => {
    const lane = await open()
    await proxy.become('black_hole')
    const write = asApp(db, writing('update things set note = note'))
    const startedAtMs = performance.now()
    await expect(write).rejects.toMatchObject({ code: 'outcome_unknown' })
    const elapsedMs = performance.now() - startedAtMs
    expect(elapsedMs).toBeGreaterThan(1900)
    expect(elapsedMs).toBeLessThan(4000)
    await proxy.become('pass')
    await expect.poll(() => backend().catch(() => lane), { timeout: 10_000 }).not.toBe(lane)
    await expect
      .poll(
        async () => {
          await backend().catch(() => undefined)
          return pool.health().lanes?.ready
        },
        { timeout: 10_000 },
      )
      .toBe(1)
  })

  it('lands what is under way when the pool ends, and takes nothing more', async () => {
    const lane = await open()
    const slow = backend(0.5)
    await expect.poll(() => pool.health().lanes?.inFlight).toBe(1)
    const ended = pool.end(2000)
    await expect(backend()).rejects.toMatchObject({ code: 'unavailable' })
    expect(await slow).toBe(lane)
    await ended
    expect(pool.health().lanes?.ready).toBe(0)
  })
})
