import { setTimeout as sleep } from 'node:timers/promises'
import { CompiledQuery } from 'kysely'
import pg from 'pg'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { type Caller, SYSTEM } from '../../src/db/as-caller.js'
import { type Db, createDatabase } from '../../src/db/database.js'
import { Deadline } from '../../src/db/deadline.js'
import type { GuardedPool } from '../../src/db/guarded-pool.js'
import { streamAsCaller } from '../../src/db/transaction.js'
import { createPostgresDatabase, guardedPools } from '../engine.js'

let drop: () => Promise<void>
let superuser: pg.Client
let pools: { requests: GuardedPool; streams: GuardedPool }
let db: Db

beforeAll(async () => {
  const database = await createPostgresDatabase()
  drop = database.drop
  superuser = new pg.Client({ connectionString: database.url })
  await superuser.connect()
  pools = guardedPools(database.url, { applicationName: 'copying' })
  db = createDatabase(pools.streams)
})
afterAll(async () => {
  await Promise.all([pools.requests.end(100), pools.streams.end(100)])
  await superuser.end()
  await drop()
})

const user = (id: number): Caller => ({
  ...SYSTEM,
  userId: id,
  role: 'user',
  scopes: ['audit:read'],
  actor: { type: 'user', id, name: `user${id}` },
})
const copy = (query: string, caller: Caller = SYSTEM) =>
  streamAsCaller(
    db,
    caller,
    CompiledQuery.raw(`copy (${query}) to stdout with (format csv, header)`) as CompiledQuery<Uint8Array>,
  )
async function read(pieces: AsyncGenerator<Uint8Array[]>): Promise<string> {
  const all: Uint8Array[] = []
  for await (const batch of pieces) all.push(...batch)
  return Buffer.concat(all).toString()
}
/** What the breaker counted, and whether every connection came back or is gone. */
async function settled(): Promise<unknown> {
  for (let tries = 0; tries < 100; tries += 1) {
    const { pool } = pools.streams.health()
    if (pool.total === pool.idle && pool.waiting === 0) break
    await sleep(20)
  }
  const { pool, breaker } = pools.streams.health()
  return { held: pool.total - pool.idle, failures: breaker?.failures, state: breaker?.state }
}
const CLEAN = { held: 0, failures: 0, state: 'closed' }
const ENDLESS = "select generate_series(1, 100000000) as i, repeat('x', 100) as text"

describe('COPY to a reader', () => {
  it('has every row, in order, and its connection is used again', async () => {
    for (let round = 0; round < 2; round += 1) {
      const lines = (await read(copy('select i, i * 2 as twice from generate_series(1, 200000) as i'))).split(
        '\r\n',
      )
      expect([lines.length, lines[0], lines[1], lines.at(-2), lines.at(-1)]).toEqual([
        200_002,
        'i,twice',
        '1,2',
        '200000,400000',
        '',
      ])
      expect(
        lines.findIndex((line, index) => index > 0 && line !== '' && line !== `${index},${index * 2}`),
      ).toBe(-1)
    }
    expect(pools.streams.health().pool.total).toBe(1)
    // One row more than a piece, and than many of them.
    expect(await read(copy("select repeat('é', 300000) as text"))).toBe(`text\r\n${'é'.repeat(300_000)}\r\n`)
    expect(await read(copy('select 1 as one where false'))).toBe('one\r\n')
    expect(await settled()).toEqual(CLEAN)
  })

  it('runs as its caller: the rows of others are not among them, and tables of others are refused', async () => {
    await superuser.query(
      `insert into audit_events (event_id, occurred_at, event_type, level, source, actor_type, actor_id, actor_name, event)
       select gen_random_uuid(), now(), 't', 'info', 'client', 'user', i % 2 + 1, 'u', '{}' from generate_series(1, 1000) i`,
    )
    for (const id of [1, 2]) {
      const lines = (await read(copy('select actor_id from audit_events', user(id)))).split('\r\n')
      expect([lines.length, new Set(lines.slice(1, -1))]).toEqual([502, new Set([String(id)])])
    }
    expect(await read(copy('select actor_id from audit_events', user(3)))).toBe('actor_id\r\n')
    await expect(
      read(copy('select actor_id from audit_events', { ...user(1), databaseRole: 'gary_analyst' })),
    ).rejects.toMatchObject({ cause: { code: '42501' } })
    await expect(read(copy('delete from audit_events returning id', user(1)))).rejects.toMatchObject({
      cause: { code: expect.stringMatching(/25006|42501/) },
    })
    expect(await settled()).toEqual(CLEAN)
  })

  it('fails half-way as any stream does: with the error, and the connection is used again', async () => {
    const pieces = copy('select 1 / (150000 - i) as x from generate_series(1, 200000) as i')
    expect((await pieces.next()).done).toBe(false)
    await expect(read(pieces)).rejects.toMatchObject({ cause: { code: '22012' } })
    expect(await settled()).toEqual(CLEAN)
    expect(await read(copy('select 1 as one'))).toBe('one\r\n1\r\n')
    expect(pools.streams.health().pool.total).toBe(1)
  })

  it('waits for a slow one on the server, not in memory; who leaves holds nothing', async () => {
    const pieces = copy(ENDLESS)
    await pieces.next()
    const before = process.memoryUsage().arrayBuffers
    await sleep(500)
    const { rows } = await superuser.query(
      "select wait_event from pg_stat_activity where application_name = 'copying' and state = 'active'",
    )
    expect(rows).toEqual([{ wait_event: 'ClientWrite' }])
    expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(2_000_000)
    const startedAt = performance.now()
    await pieces.return(undefined)
    expect(performance.now() - startedAt).toBeLessThan(500)
    expect(await settled()).toEqual(CLEAN)
    expect(await read(copy('select 1 as one'))).toBe('one\r\n1\r\n')
  })

  it('is stopped on the server when its reader leaves while it waits for the first row', async () => {
    const deadline = new Deadline()
    const pieces = copy('select pg_sleep(60)', { ...SYSTEM, deadline })
    setTimeout(() => deadline.end('client_gone'), 200)
    const startedAt = performance.now()
    await expect(pieces.next()).rejects.toThrow()
    expect(performance.now() - startedAt).toBeLessThan(2000)
    expect(await settled()).toEqual(CLEAN)
    const { rows } = await superuser.query(
      "select count(*)::int as n from pg_stat_activity where application_name = 'copying' and state = 'active'",
    )
    expect(rows).toEqual([{ n: 0 }])
  })

  it('whose backend is killed is told so', async () => {
    const pieces = copy(ENDLESS)
    await pieces.next()
    await superuser.query(
      "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'copying' and state = 'active'",
    )
    await expect(read(pieces)).rejects.toThrow()
    await settled()
    expect(await read(copy('select 1 as one'))).toBe('one\r\n1\r\n')
  })
})
