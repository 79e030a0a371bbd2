import { CompiledQuery } from 'kysely'
import pg from 'pg'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { asApp } from '../../src/db/as-caller.js'
import { createDatabase } from '../../src/db/database.js'
import { Deadline } from '../../src/db/deadline.js'
import { budgetsFor } from '../../src/db/pool.js'
import type { Result, SourceConnection } from '../../src/db/source.js'
import { type TestDatabase, createTestDatabase } from '../engine.js'
import { eventually } from '../faults/eventually.js'

let database: TestDatabase
let superuser: pg.Client

beforeAll(async () => {
  database = await createTestDatabase({ lanes: 0, size: 1, budgets: { ...budgetsFor(10_000), lockMs: 3000 } })
  superuser = new pg.Client({ connectionString: database.url ?? '' })
  await superuser.connect()
  await superuser.query("insert into auth_users (username, password_hash) values ('a', '!'), ('b', '!')")
})
afterAll(async () => {
  await superuser.end()
  await database.drop()
})

const raw = (text: string) => ({ compile: () => CompiledQuery.raw(text) as CompiledQuery<{ id: number }> })

it('a single statement that a deadlock undid is tried again, and made once', async () => {
  const db = createDatabase(database.source)
  await superuser.query(
    "set deadlock_timeout = '10s'; begin; update auth_users set version = 1 where username = 'b'",
  )
  const statement = asApp(
    db,
    raw('update auth_users set failed_login_attempts = failed_login_attempts + 1 returning id'),
  )
  await eventually('it waits for the second row', async () => {
    const rows = await database.read(
      "select 1 from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()",
    )
    return rows.length > 0 ? true : undefined
  })
  await superuser.query("update auth_users set version = 1 where username = 'a'")
  await superuser.query('commit')
  expect(await statement).toHaveLength(2)
  const { rows } = await superuser.query('select distinct failed_login_attempts as times from auth_users')
  expect(rows).toEqual([{ times: 1 }])
})

it('whoever waits for a connection waits no longer than the request may take, and leaves the pool as it was', async () => {
  const db = createDatabase(database.source)
  const holder = await database.source.connect()
  const deadline = new Deadline()
  const waiting = asApp(db, raw('select 1 as id'), deadline)
  const refused = expect(waiting).rejects.toMatchObject({ code: 'deadline_exceeded' })
  await eventually('it waits', () => (database.source.health().pool.waiting === 1 ? true : undefined))
  deadline.end('client_gone')
  await refused
  holder.release()
  expect(await asApp(db, raw('select 1 as id'))).toEqual([{ id: 1 }])
  expect(database.source.health().pool).toMatchObject({ total: 1, waiting: 0 })
})

it('a connection that answers no more is asked for no ROLLBACK: it would only be waited for once more', async () => {
  const sent: string[][] = []
  const connection: SourceConnection = {
    execute(statements): Promise<Result> {
      sent.push(statements.map(({ text }) => text))
      return Promise.reject(new Error('Query read timeout'))
    },
    stream: () => {
      throw new Error('not here')
    },
    release: () => {},
  }
  const db = createDatabase({ connect: async () => await Promise.resolve(connection) })
  await expect(
    db.transaction().execute(async (tx) => await tx.executeQuery(raw('select 1 as id').compile())),
  ).rejects.toMatchObject({ code: 'deadline_exceeded' })
  expect(sent).toEqual([['begin', 'select 1 as id']])
})
