import { randomUUID } from 'node:crypto'
import { type Compilable, CompiledQuery } from 'kysely'
import pg from 'pg'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { createKey } from '../../src/db/api-keys.js'
import { type Caller, JOBS, SYSTEM, asApp, asCaller } from '../../src/db/as-caller.js'
import { appendEvents } from '../../src/db/audit-events.js'
import type { Correlation, ServiceEvent } from '../../src/db/audit.js'
import { writeEntry } from '../../src/db/config.js'
import { type Db, createDatabase } from '../../src/db/database.js'
import { sqlState } from '../../src/db/pg-errors.js'
import { createSession } from '../../src/db/sessions.js'
import { inTransaction } from '../../src/db/transaction.js'
import { NO_PASSWORD, createUser } from '../../src/db/users.js'
import { type TestDatabase, createTestDatabase } from '../engine.js'

const DENIED = '42501'
const SERVICE_ROLES = ['gary_app', 'gary_caller', 'gary_jobs', 'gary_analyst', 'gary_reporting']
/** What gary_caller may read in no column: counters and secrets of gary_app and of the service. */
const NOT_FOR_CALLERS = new Set(['auth_throttle', 'auth_adoption'])
/** What only the service itself reads. */
const OF_THE_SYSTEM = new Set(['auth_setup_tokens'])

let database: TestDatabase
let db: Db
let superuser: pg.Client
let alice: Caller
let bob: Caller
let tables: string[]
let partitions: string[]

beforeAll(async () => {
  // A pool of one: whatever one statement leaves behind, the next one meets.
  database = await createTestDatabase({ lanes: 0, size: 1 })
  db = createDatabase(database.source)
  superuser = new pg.Client({ connectionString: database.url ?? '' })
  await superuser.connect()
  alice = await makeUser('alice')
  bob = await makeUser('bob')
  await fillTables(alice)
  const { rows } = await superuser.query<{ name: string; partition: boolean }>(
    `select c.relname as name, c.relispartition as partition from pg_class c
      where relnamespace = 'public'::regnamespace and relkind in ('r', 'p')
        and pg_get_userbyid(relowner) = 'gary_owner' order by 1`,
  )
  tables = rows.filter(({ partition }) => !partition).map(({ name }) => name)
  partitions = rows.filter(({ partition }) => partition).map(({ name }) => name)
})
afterAll(async () => {
  await superuser.end()
  await database.drop()
})

function caller(id: number, role = 'user', scopes: Caller['scopes'] = '*'): Caller {
  const actor = { type: 'user', id, name: `user ${id}` } as const
  return { ...SYSTEM, userId: id, role, scopes, actor }
}

async function makeUser(username: string, role: 'user' | 'owner' = 'user'): Promise<Caller> {
  const user = { username, passwordHash: NO_PASSWORD, role, mustChangePassword: false }
  const [row] = await asCaller(db, SYSTEM, createUser(db, user, event(SYSTEM, 'users.create')))
  return caller(row?.id ?? 0, role)
}

function event(who: Caller, action: string): ServiceEvent {
  const correlation = Object.fromEntries(
    ['requestId', 'traceId', 'spanId', 'sessionId', 'ipAddress', 'userAgent', 'endpoint'].map((name) => [
      name,
      null,
    ]),
  ) as unknown as Correlation
  const eventType = action === 'auth.login' ? 'authentication' : 'user_action'
  return { caller: who, correlation, eventType, level: 'info', action, target: null, message: action }
}

/** A row of this user's in every table, by the service's own queries where there are any. */
async function fillTables(who: Caller): Promise<void> {
  const userId = who.userId ?? 0
  const session = {
    userId,
    userVersion: 1,
    tokenHash: randomUUID(),
    ttlSeconds: 60,
    ipAddress: null,
    userAgent: null,
  }
  await asCaller(db, who, createSession(db, session, event(who, 'auth.login')))
  const key = {
    userId,
    name: 'mine',
    prefix: 'gzk_',
    keyHash: randomUUID(),
    scopes: ['config:read'] as const,
  }
  await asCaller(db, who, createKey(db, key, event(who, 'api_keys.create')))
  const address = { scope: 'user', owner: String(userId), environment: '', key: 'settings' } as const
  const write = { operation: 'put', value: '{}', secretPaths: [], tags: [], description: null } as const
  await asCaller(
    db,
    who,
    writeEntry(
      db,
      address,
      { ...write, secretPaths: [], tags: [] },
      { is: 'absent' },
      event(who, 'config.put'),
    ),
  )
  const columns = {
    eventId: randomUUID(),
    bodyHash: 'hash',
    occurredAt: new Date().toISOString(),
    eventType: 'tool',
    level: 'info',
    userId: null,
    agentId: null,
    sessionId: null,
    requestId: null,
    traceId: null,
  }
  await asCaller(db, who, appendEvents(who, [{ columns, text: '{}' }]))
  await superuser.query(
    `insert into auth_oauth_tokens (user_id, provider, access_token) values ($1, 'github', 'secret')`,
    [userId],
  )
  await superuser.query(
    `insert into idempotency_keys (caller, route, key, request_hash, status, response)
     values ($1, 'POST /', 'k', 'h', 200, '{}')`,
    [`user:${userId}`],
  )
  await superuser.query("insert into auth_throttle (bucket) values ('account:alice')")
  await superuser.query("insert into auth_setup_tokens (token_hash, expires_at) values ('hash', now())")
  await superuser.query('insert into auth_adoption default values')
}

function raw<R = Record<string, unknown>>(text: string, parameters: unknown[] = []): Compilable<R> {
  return { compile: () => CompiledQuery.raw(text, parameters) as CompiledQuery<R> }
}

/** The SQLSTATE that a statement fails with; 'none' when it succeeds. */
async function stateOf(work: Promise<unknown>): Promise<string> {
  return await work.then(
    () => 'none',
    (error: unknown) => sqlState(error) ?? String(error),
  )
}

/** The same for a role without any identity; nothing stays. */
async function stateAs(role: string, text: string): Promise<string> {
  await superuser.query(`begin; set local role ${role}`)
  try {
    return await stateOf(superuser.query(text))
  } finally {
    await superuser.query('rollback')
  }
}

/** Everything of a table that a role may name, without any WHERE. */
async function selectAll(role: string, table: string): Promise<string | undefined> {
  const { rows } = await superuser.query<{ columns: string | null }>(
    `select string_agg(quote_ident(attname), ', ') as columns from pg_attribute
      where attrelid = $2::regclass and attnum > 0 and not attisdropped
        and has_column_privilege($1::name, attrelid, attnum, 'SELECT')`,
    [role, `public.${table}`],
  )
  const columns = rows[0]?.columns ?? null
  return columns === null ? undefined : `select ${columns} from public.${table}`
}

async function visible(who: Caller, table: string): Promise<Record<string, unknown>[]> {
  const query = await selectAll(who.databaseRole, table)
  return query === undefined ? [] : await asCaller(db, who, raw(query))
}

describe('a statement without any WHERE', () => {
  it('is tried on every table, and each has rows to find', async () => {
    expect(tables.length).toBeGreaterThanOrEqual(11)
    for (const table of tables) {
      const { rows } = await superuser.query<{ n: number }>(`select count(*)::int as n from public.${table}`)
      expect.soft(rows[0]?.n, table).toBeGreaterThan(0)
    }
  })

  it("shows a user none of another's rows, in any table", async () => {
    for (const table of tables) {
      const expected = table === 'auth_users' ? [bob.userId] : []
      const rows = await visible(bob, table)
      expect
        .soft(
          rows.map(({ id }) => id),
          table,
        )
        .toEqual(expected)
    }
  })

  it('shows a user the own rows, in every table that callers read', async () => {
    for (const table of tables) {
      const rows = await visible(alice, table)
      const hidden = NOT_FOR_CALLERS.has(table) || OF_THE_SYSTEM.has(table)
      expect.soft(rows.length > 0, table).toBe(!hidden)
    }
    expect(await visible(SYSTEM, 'auth_setup_tokens')).toHaveLength(1)
  })

  it.each(['settings never set', 'settings left empty by an earlier transaction'])(
    'shows nothing without an identity: %s',
    async (state) => {
      const fresh = new pg.Client({ connectionString: database.url ?? '' })
      await fresh.connect()
      try {
        if (state.includes('empty')) {
          for (const name of ['user_id', 'role', 'scopes', 'session_id', 'key_id', 'actor', 'on_behalf_of']) {
            await fresh.query(`begin; set local app.${name} = '1'; commit`)
            const { rows } = await fresh.query(`select current_setting('app.${name}', true) as value`)
            expect(rows).toEqual([{ value: '' }])
          }
        }
        await fresh.query('set role gary_caller')
        for (const table of tables) {
          const query = await selectAll('gary_caller', table)
          if (query !== undefined) expect.soft((await fresh.query(query)).rows, table).toEqual([])
        }
      } finally {
        await fresh.end()
      }
    },
  )

  it('reads no partition beside its parent, whoever asks', async () => {
    expect(partitions.length).toBeGreaterThanOrEqual(5)
    for (const partition of partitions) {
      expect
        .soft(await stateOf(asCaller(db, bob, raw(`select id from ${partition}`))), partition)
        .toBe(DENIED)
      for (const role of SERVICE_ROLES) {
        expect.soft(await stateAs(role, `select id from ${partition}`), `${role} ${partition}`).toBe(DENIED)
      }
    }
  })

  it('shows an auditor every event and no configuration of a user', async () => {
    const auditor = caller(bob.userId ?? 0, 'auditor')
    const actors = (await visible(auditor, 'audit_events')).map(({ actor_id }) => actor_id)
    expect(actors).toContain(alice.userId)
    expect(await visible(auditor, 'config_entries')).toEqual([])
  })

  it('shows a key without a scope nothing that needs it', async () => {
    const keyless = { ...alice, scopes: ['reports:read'] as const }
    for (const table of ['config_entries', 'config_revisions', 'audit_events']) {
      expect.soft(await visible(keyless, table), table).toEqual([])
    }
  })
})

describe('before it is known who asks', () => {
  it.each([
    'config_entries',
    'config_revisions',
    'audit_events',
    'audit_event_ids',
    'auth_oauth_tokens',
    'idempotency_keys',
  ])('nobody reads %s', async (table) => {
    expect(await stateOf(asApp(db, raw(`select count(*) from ${table}`)))).toBe(DENIED)
  })

  it('whether older tables were taken over is known, to gary_app and nobody else, and nobody changes it', async () => {
    expect(await asApp(db, raw('select id, oauth_tokens, finished_at from auth_adoption'))).toHaveLength(1)
    for (const role of SERVICE_ROLES) {
      const state = await stateAs(role, 'select id from auth_adoption')
      expect.soft(state, role).toBe(role === 'gary_app' ? 'none' : DENIED)
      for (const text of [
        'update auth_adoption set finished_at = now()',
        'delete from auth_adoption',
        'insert into auth_adoption (id) values (1)',
      ])
        expect.soft(await stateAs(role, text), `${role}: ${text}`).toBe(DENIED)
    }
  })

  it('nobody changes a password, a role or a session owner, or makes a user', async () => {
    for (const text of [
      "update auth_users set password_hash = 'x'",
      "update auth_users set role = 'owner'",
      'update auth_sessions set user_id = 1',
      "insert into auth_users (username, password_hash) values ('x', 'x')",
      "insert into auth_sessions (session_token, user_id, expires_at) values ('x', 1, now())",
      'delete from auth_sessions',
    ]) {
      expect.soft(await stateOf(asApp(db, raw(text))), text).toBe(DENIED)
    }
  })
})

describe('the audit trail', () => {
  const CHANGES = [
    "update T set event = '{}'",
    'update T set received_at = now()',
    'delete from T',
    'truncate T',
  ]

  it.each(SERVICE_ROLES)('is neither updated, deleted nor truncated by %s', async (role) => {
    for (const table of ['audit_events', ...partitions]) {
      for (const change of CHANGES) {
        const text = change.replace('T', table)
        expect.soft(await stateAs(role, text), text).toBe(DENIED)
      }
    }
  })

  it('is not changed by an owner of the service, nor by the service itself', async () => {
    const owner = caller(bob.userId ?? 0, 'owner')
    for (const who of [owner, SYSTEM, JOBS]) {
      for (const change of CHANGES) {
        const text = change.replace('T', 'audit_events')
        expect.soft(await stateOf(asCaller(db, who, raw(text))), text).toBe(DENIED)
      }
    }
  })

  it('gives its partitions to gary_jobs alone', async () => {
    const call = 'select gary.keep_audit_partitions(3)'
    for (const role of SERVICE_ROLES) {
      expect.soft(await stateAs(role, call), role).toBe(role === 'gary_jobs' ? 'none' : DENIED)
    }
    expect(await asCaller(db, JOBS, raw(call))).toEqual([{ keep_audit_partitions: 0 }])
    expect(await stateOf(asCaller(db, caller(bob.userId ?? 0, 'owner'), raw(call)))).toBe(DENIED)
  })
})

describe('a caller cannot forge', () => {
  const EVENT = 'event_id, occurred_at, event_type, level, source, event, actor_type, actor_id'
  const REVISION =
    'scope, key, environment, version, operation, value, actor_name, owner, actor_type, actor_id'
  const event = (columns: string, values: string) =>
    `insert into audit_events (${EVENT}${columns}) values (gen_random_uuid(), now(), 'x', 'info', 'client', '{}', ${values})`
  const revision = (columns: string, values: string) =>
    `insert into config_revisions (${REVISION}${columns}) values ('user', 'k', '', 99, 'put', '{}', 'x', ${values})`

  it('what it can do honestly, so that the refusals below say something', async () => {
    for (const text of [
      event('', "'user', $me"),
      revision('', "'$me', 'user', $me"),
      "insert into audit_event_ids (event_id, actor, body_hash) values (gen_random_uuid(), 'user:$me', 'h')",
      'insert into auth_sessions (session_token, user_id, expires_at) values (gen_random_uuid(), $me, now())',
      "insert into auth_api_keys (user_id, name, prefix, key_hash, scopes) values ($me, 'n', 'p', gen_random_uuid(), '{}')",
      "insert into idempotency_keys (caller, route, key, request_hash, status, response) values ('user:$me', 'r', gen_random_uuid(), 'h', 200, '')",
      'update auth_users set version = version + 1 where id = $me',
    ]) {
      expect.soft(await stateOf(asCaller(db, alice, raw(named(text)))), text).toBe('none')
    }
  })

  it('a session or another key by a key, whatever its scopes', async () => {
    const byKey = { ...alice, scopes: ['users:read', 'users:write', 'config:write'] as const }
    for (const text of [
      'insert into auth_sessions (session_token, user_id, expires_at) values (gen_random_uuid(), $me, now())',
      "insert into auth_api_keys (user_id, name, prefix, key_hash, scopes) values ($me, 'n', 'p', gen_random_uuid(), '{}')",
    ]) {
      expect.soft(await stateOf(asCaller(db, byKey, raw(named(text)))), text).toBe(DENIED)
    }
  })

  it.each([
    ['the actor of an event', event('', "'user', $other")],
    ['an event of the service', event('', "'system', null")],
    ['an event of a key with the same number', event('', "'api_key', $me")],
    ['for whom an event was', event(', on_behalf_of', "'user', $me, $other")],
    ['the id of an event', event(', id', "'user', $me, 1")],
    ['when an event arrived', event(', received_at', "'user', $me, '2020-01-01'")],
    ["an event's transaction", event(', tx', "'user', $me, '1'")],
    [
      "another's id of an event",
      "insert into audit_event_ids (event_id, actor, body_hash) values (gen_random_uuid(), 'user:$other', 'h')",
    ],
    [
      'the arrival of an id of an event',
      "insert into audit_event_ids (event_id, actor, body_hash, received_at) values (gen_random_uuid(), 'user:$me', 'h', now())",
    ],
    ['the actor of a revision', revision('', "'$me', 'user', $other")],
    ["a revision of another's configuration", revision('', "'$other', 'user', $me")],
    ['the number of a revision', revision(', revision', "'$me', 'user', $me, 1")],
    ['the time of a revision', revision(', created_at', "'$me', 'user', $me, now()")],
    ["a revision's transaction", revision(', tx', "'$me', 'user', $me, '1'")],
    [
      "an entry of another's",
      "insert into config_entries (scope, owner, environment, key, value, version, updated_by) values ('user', '$other', '', 'k', '1', 1, 'x')",
    ],
    [
      'a shared entry',
      "insert into config_entries (scope, owner, environment, key, value, version, updated_by) values ('global', '', '', 'k', '1', 1, 'x')",
    ],
    ["an entry's owner", "update config_entries set owner = '$other'"],
    [
      "an entry's time of creation",
      "insert into config_entries (scope, owner, environment, key, value, version, updated_by, created_at) values ('user', '$me', '', 'k', '1', 1, 'x', now())",
    ],
    [
      'a session of another',
      "insert into auth_sessions (session_token, user_id, expires_at) values ('forged', $other, now() + interval '1 day')",
    ],
    ["a session's owner", 'update auth_sessions set user_id = $other'],
    ["a session's token", "update auth_sessions set session_token = 'known'"],
    [
      'the id of a session',
      "insert into auth_sessions (id, session_token, user_id, expires_at) overriding system value values (7, 'x', $me, now())",
    ],
    [
      'the age of a session',
      "insert into auth_sessions (session_token, user_id, expires_at, created_at) values ('x', $me, now(), now())",
    ],
    [
      'a key of another',
      "insert into auth_api_keys (user_id, name, prefix, key_hash, scopes) values ($other, 'n', 'p', 'h', '{}')",
    ],
    [
      'the stored answer of another',
      "insert into idempotency_keys (caller, route, key, request_hash, status, response) values ('user:$other', 'r', 'k', 'h', 200, '')",
    ],
    ['its own role', "update auth_users set role = 'owner' where id = $me"],
    ['its own id', 'update auth_users set id = 1 where id = $me'],
    ['its own age', 'update auth_users set created_at = now() where id = $me'],
    [
      'a user',
      "insert into auth_users (username, username_key, password_hash, role) values ('x', 'x', 'x', 'user')",
    ],
    ['a set-up token', "insert into auth_setup_tokens (id, token_hash, expires_at) values (1, 'x', now())"],
    [
      'a token of a provider',
      "insert into auth_oauth_tokens (user_id, provider, access_token) values ($me, 'x', 'x')",
    ],
    ['the counters of the throttle', 'delete from auth_throttle'],
  ])('%s', async (_, text) => {
    // 428C9: an identity column that is GENERATED ALWAYS.
    expect([DENIED, '428C9']).toContain(await stateOf(asCaller(db, alice, raw(named(text)))))
  })

  it("changes or deletes none of another's rows", async () => {
    for (const text of [
      "update auth_users set password_hash = 'x' where id <> $me returning id",
      'delete from auth_sessions where user_id <> $me returning id',
      'delete from auth_api_keys where user_id <> $me returning id',
      'delete from auth_oauth_tokens where user_id <> $me returning id',
      "update config_entries set value = '2' where owner <> '$me' returning key",
    ]) {
      const mine = text.replaceAll('$me', String(bob.userId))
      expect.soft(await asCaller(db, bob, raw(mine)), text).toEqual([])
    }
  })

  it("changes or deletes none of another's rows by a statement that reads nothing", async () => {
    // Without WHERE and RETURNING the policies for reading are not asked.
    const tables = ['auth_users', 'auth_sessions', 'auth_api_keys', 'auth_oauth_tokens', 'config_entries']
    const shared = `insert into config_entries (scope, owner, environment, key, value, version, updated_by)
      values ('global', '', '', 'shared', '1', 1, 'x')`
    await superuser.query(shared)
    const stored = async () => {
      const rows: object[] = []
      for (const table of tables) {
        const text = `select t::text as row from ${table} t where t::text not like '%bob%' order by 1`
        rows.push((await superuser.query<object>(text)).rows)
      }
      return rows
    }
    const before = await stored()
    const readOnlyAlice = { ...alice, scopes: ['config:read'] as const }
    for (const [who, text] of [
      [bob, "update auth_users set password_hash = 'x'"],
      [bob, 'delete from auth_sessions'],
      [bob, 'delete from auth_api_keys'],
      [bob, 'delete from auth_oauth_tokens'],
      [bob, "update config_entries set value = '2'"],
      [readOnlyAlice, "update config_entries set value = '2'"],
    ] as const) {
      expect.soft(await stateOf(asCaller(db, who, raw(text))), text).toBe('none')
    }
    expect(await stored()).toEqual(before)
    await superuser.query("delete from config_entries where key = 'shared'")
  })

  it('makes an admin no owner, and lets an admin touch no owner', async () => {
    const owner = await makeUser('owner', 'owner')
    const admin = caller(bob.userId ?? 0, 'admin')
    const promotion = raw("update auth_users set role = 'owner' where id = $1", [alice.userId])
    expect(await stateOf(asCaller(db, admin, promotion))).toBe(DENIED)
    const takeover = raw("update auth_users set password_hash = 'x' where id = $1 returning id", [
      owner.userId,
    ])
    expect(await asCaller(db, admin, takeover)).toEqual([])
  })

  function named(text: string): string {
    return text.replaceAll('$me', String(alice.userId)).replaceAll('$other', String(bob.userId))
  }
})

describe('what is hashed or secret', () => {
  it.each([
    ['auth_users', 'password_hash'],
    ['auth_sessions', 'session_token'],
    ['auth_api_keys', 'key_hash'],
    ['auth_oauth_tokens', 'access_token'],
    ['auth_oauth_tokens', 'refresh_token'],
  ])('%s.%s is read by no caller, whatever the role, nor returned by a change', async (table, column) => {
    for (const who of [alice, caller(alice.userId ?? 0, 'owner'), SYSTEM]) {
      expect.soft(await stateOf(asCaller(db, who, raw(`select ${column} from ${table}`)))).toBe(DENIED)
    }
    const returning = raw(`delete from ${table} returning ${column}`)
    expect(await stateOf(asCaller(db, alice, returning))).toBe(DENIED)
    expect(await stateOf(asCaller(db, JOBS, raw(`select ${column} from ${table}`)))).toBe(DENIED)
  })
})

describe('an identity', () => {
  const WHO = `select current_user::text as name, coalesce(current_setting('app.user_id', true), '')
    || coalesce(current_setting('app.role', true), '') || coalesce(current_setting('app.actor', true), '')
    || coalesce(current_setting('app.scopes', true), '') as identity, pg_backend_pid() as pid`
  type Who = { name: string; identity: string; pid: number }

  it('is there for its statement and gone with it, on the same connection', async () => {
    const [mine] = await asCaller(db, alice, raw<Who>(WHO))
    expect(mine).toMatchObject({ name: 'gary_caller', identity: `${alice.userId}useruser:${alice.userId}*` })
    expect(await asApp(db, raw(WHO))).toEqual([{ name: 'gary_app', identity: '', pid: mine?.pid }])
  })

  it('is gone after a statement that failed', async () => {
    const [mine] = await asCaller(db, alice, raw<Who>(WHO))
    expect(await stateOf(asCaller(db, alice, raw('select 1/0')))).toBe('22012')
    expect(await asApp(db, raw(WHO))).toEqual([{ name: 'gary_app', identity: '', pid: mine?.pid }])
  })

  it.each(['committed', 'rolled back'])(
    'lasts for its transaction and is gone when it was %s',
    async (end) => {
      let pid = 0
      const work = inTransaction(db, alice, async (tx) => {
        for (let statement = 0; statement < 3; statement += 1) {
          const { rows } = await tx.executeQuery<Who>(CompiledQuery.raw(WHO))
          expect(rows[0]).toMatchObject({
            name: 'gary_caller',
            identity: `${alice.userId}useruser:${alice.userId}*`,
          })
          pid = rows[0]?.pid ?? 0
        }
        if (end === 'rolled back') throw new Error('changed our mind')
      })
      await (end === 'committed' ? work : expect(work).rejects.toThrow('changed our mind'))
      expect(await asApp(db, raw(WHO))).toEqual([{ name: 'gary_app', identity: '', pid }])
    },
  )

  it('that fails keeps its statement from running, alone and in a transaction', async () => {
    const nobody = { ...alice, databaseRole: 'gary_nobody' as 'gary_caller' }
    // gary_app could insert it: were the identity merely skipped, the row would be there.
    const insert = raw("insert into auth_throttle (bucket) values ('forged')")
    expect(await stateOf(asCaller(db, nobody, insert))).toBe('22023')
    const transaction = inTransaction(db, nobody, (tx) => tx.executeQuery(insert.compile()))
    expect(await stateOf(transaction)).toBe('22023')
    expect(await database.read("select from auth_throttle where bucket = 'forged'")).toEqual([])
    expect(await stateOf(asApp(db, insert))).toBe('none')
  })
})

describe('an analyst', () => {
  const analyst = (): Caller => ({ ...bob, role: 'analyst', databaseRole: 'gary_analyst' })

  it('reads reports.logins', async () => {
    const rows = await asCaller(db, analyst(), raw('select outcome, user_id from reports.logins'))
    expect(rows).toEqual([{ outcome: 'succeeded', user_id: alice.userId }])
  })

  it('reads no table, and nothing else in schema reports but views', async () => {
    for (const table of [...tables, ...partitions, '_prisma_migrations']) {
      expect
        .soft(await stateOf(asCaller(db, analyst(), raw(`select 1 from public.${table}`))), table)
        .toBe(DENIED)
    }
    const { rows } = await superuser.query<{ name: string }>(
      `select c.oid::regclass::text as name from pg_class c join pg_namespace n on n.oid = c.relnamespace
        where c.relkind in ('r', 'p', 'v', 'm', 'f') and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
          and has_any_column_privilege('gary_analyst', c.oid, 'SELECT, INSERT, UPDATE')`,
    )
    expect(rows.map(({ name }) => name)).toEqual(['reports.logins'])
  })

  it('learns nothing through an identity: the functions of schema gary are not for analysts', async () => {
    expect(await stateOf(asCaller(db, analyst(), raw('select gary.user_id()')))).toBe(DENIED)
  })
})

describe('every object', () => {
  it('that is a table has row-level security, FORCE and, unless a partition, a policy', async () => {
    const { rows } = await superuser.query(
      `select relname from pg_class c
        where relnamespace = 'public'::regnamespace and relkind in ('r', 'p') and relname <> '_prisma_migrations'
          and not (relrowsecurity and relforcerowsecurity and pg_get_userbyid(relowner) = 'gary_owner'
            and (relispartition or exists (select from pg_policies p where p.schemaname = 'public' and p.tablename = relname)))`,
    )
    expect(rows).toEqual([])
  })

  it('that is a view in reports is owned by gary_reporting, and is a security barrier', async () => {
    const { rows } = await superuser.query(
      `select relname from pg_class c where relnamespace = 'reports'::regnamespace
        and (pg_get_userbyid(relowner) <> 'gary_reporting' or relkind <> 'v'
          or not coalesce(reloptions @> array['security_barrier=true'] or reloptions @> array['security_barrier'], false))`,
    )
    expect(rows).toEqual([])
  })

  it('is granted to nobody but our roles, and no function of ours to PUBLIC', async () => {
    const { rows } = await superuser.query(
      `select c.relname as name from pg_class c, aclexplode(c.relacl) a
        where c.relnamespace in ('public'::regnamespace, 'reports'::regnamespace) and a.grantee <> c.relowner
          and (a.grantee = 0 or pg_get_userbyid(a.grantee) <> all ($1) or a.is_grantable)
       union all
       select p.proname from pg_proc p left join lateral aclexplode(p.proacl) a on true
        where p.pronamespace = 'gary'::regnamespace and (p.proacl is null or a.grantee = 0)`,
      [SERVICE_ROLES],
    )
    expect(rows).toEqual([])
  })

  it("that is a function with its owner's rights has a fixed search_path", async () => {
    const { rows } = await superuser.query(
      `select proname, proconfig from pg_proc where pronamespace = 'gary'::regnamespace and prosecdef`,
    )
    expect(rows).toEqual([
      { proname: 'keep_audit_partitions', proconfig: ['search_path=pg_catalog, pg_temp'] },
    ])
  })

  it('stays as it is: no service role creates or alters anything', async () => {
    for (const role of SERVICE_ROLES) {
      expect.soft(await stateAs(role, 'create table public.mine (a int)'), role).toBe(DENIED)
      expect.soft(await stateAs(role, 'create table gary.mine (a int)'), role).toBe(DENIED)
      expect
        .soft(await stateAs(role, 'alter table audit_events disable row level security'), role)
        .toBe(DENIED)
    }
  })
})
