import type pg from 'pg'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import { describeAdoption, finishAdoption } from '../../src/db/adopt-finish.js'
import { chooseOwner, foldNames } from '../../src/db/adopted-names.js'
import { asApp } from '../../src/db/as-caller.js'
import { createDatabase } from '../../src/db/database.js'
import { safetyFaults } from '../../src/db/safety.js'
import { credentialsByUsername } from '../../src/db/users.js'
import { readEnv } from '../../src/env.js'
import { unsealOAuthToken } from '../../src/security/oauth-secrets.js'
import { hashToken } from '../../src/security/tokens.js'
import { createService } from '../../src/service.js'
import { guardedPool } from '../engine.js'
import {
  KEYS,
  type OlderDatabase,
  olderDatabases,
  queryAt,
  stateOf,
  takeOver,
  withClient,
} from './adopting.js'
import { OLDER_SESSIONS, OLDER_TOKENS, OLDER_USERS } from './older-database.js'

let databases: Awaited<ReturnType<typeof olderDatabases>>
let older: OlderDatabase

beforeAll(async () => {
  databases = await olderDatabases()
})
afterAll(() => databases?.drop())
beforeEach(async () => {
  older = await databases.make()
})
afterEach(() => older.drop())

/** Everything there is in the catalogue and in the older tables: what "nothing was changed" means. */
async function everything(): Promise<unknown> {
  return await older.query(`
    select n.nspname, c.relname, c.relkind, c.relacl::text, pg_get_userbyid(c.relowner) as owner
      from pg_class c join pg_namespace n on n.oid = c.relnamespace
     where n.nspname not like 'pg\\_%' and n.nspname <> 'information_schema' order by 1, 2`)
}

const refusal = async (): Promise<string> =>
  await takeOver(older.url).then(
    () => 'taken over',
    (error: unknown) => (error instanceof Error ? error.message : String(error)),
  )

const finish = (ring: typeof KEYS | null = KEYS): Promise<string[]> =>
  withClient(older.url, (client) => finishAdoption(client, ring))

const describeIt = (): Promise<string[]> => withClient(older.url, describeAdoption)

describe('the rows', () => {
  it('come along with their ids and hashes, each time as the UTC that it was, also where UTC is not the default', async () => {
    const [{ name } = { name: '' }] = await older.query<{ name: string }>('select current_database() as name')
    await older.query(`alter database ${name} set timezone to 'America/New_York'`)
    await takeOver(older.url)
    const users = await older.query('select id, username, password_hash from auth_users order by id')
    expect(users).toEqual(
      OLDER_USERS.map(({ id, username, hash }) => ({ id, username, password_hash: hash })),
    )
    expect(
      await older.query(`set timezone to 'UTC';
        select created_at::text, updated_at::text, password_changed_at::text, last_login::text, must_change_password,
               is_active, failed_login_attempts, locked_until::text, version from auth_users where id in (1, 2, 4) order by id`),
    ).toMatchObject([
      {
        created_at: '2024-03-31 02:30:00.123456+00',
        updated_at: '2025-01-01 00:00:00+00',
        password_changed_at: '2024-07-01 12:00:00+00',
        last_login: '2025-06-30 23:59:59.999999+00',
        must_change_password: true,
        is_active: true,
        failed_login_attempts: 0,
        locked_until: null,
        version: 1,
      },
      // The one time that stays without a zone: an hour that New York's clocks pass twice.
      { failed_login_attempts: 5, locked_until: '2025-10-26 02:30:00.5', is_active: true },
      { is_active: false },
    ])
  })

  it('get the default where the older tables allowed none, but stay out where no is_active kept them out', async () => {
    await older.query('update auth_users set is_active = null where id = 5')
    const { warned } = await takeOver(older.url)
    expect(warned).toContain(
      'is_active was NULL, which the older application takes for inactive, and is now false for "dave"',
    )
    expect(
      await older.query(
        `select is_active, failed_login_attempts, must_change_password, locked_until, last_login,
                created_at = adopted_at and updated_at = adopted_at and password_changed_at = adopted_at as now
           from auth_users, auth_adoption where auth_users.id = 5`,
      ),
    ).toEqual([
      {
        is_active: false,
        failed_login_attempts: 0,
        must_change_password: false,
        locked_until: null,
        last_login: null,
        now: true,
      },
    ])
  })

  it('of sessions come along while they last, with the hash of their token, and never the token', async () => {
    const { said } = await takeOver(older.url)
    expect(
      await older.query(`set timezone to 'UTC';
        select s.id, session_token, user_id, expires_at::text, created_at = adopted_at as new, last_activity::text,
               host(ip_address) as ip, user_agent, authenticated_at::text from auth_sessions s, auth_adoption order by s.id`),
    ).toMatchObject([
      {
        id: 1,
        session_token: hashToken(OLDER_SESSIONS.live),
        user_id: 1,
        expires_at: '2100-01-01 00:00:00+00',
        last_activity: '2025-06-30 23:00:00+00',
        ip: '2001:db8::7',
        user_agent: 'Firefox',
        authenticated_at: '2025-06-30 23:00:00+00',
      },
      // Without a time the password counts as given long ago, not just now.
      {
        id: 3,
        session_token: hashToken(OLDER_SESSIONS.withNulls),
        new: true,
        authenticated_at: '1970-01-01 00:00:00+00',
      },
    ])
    expect(said.join()).toContain('8 users, 2 sessions (2 that had ended stay behind) and 2 OAuth tokens')
  })

  it('of OAuth tokens come along sealed, and each opens only where it is', async () => {
    await takeOver(older.url)
    const rows = await older.query<{ access_token: string; refresh_token: string | null }>(
      'select access_token, refresh_token from auth_oauth_tokens order by id',
    )
    expect(rows).toHaveLength(2)
    const [github, google] = rows
    const at = { userId: 1, provider: 'github', column: 'access_token' } as const
    expect(unsealOAuthToken(KEYS, at, github?.access_token ?? '')).toBe(OLDER_TOKENS.github.access)
    expect(unsealOAuthToken(KEYS, { ...at, column: 'refresh_token' }, github?.refresh_token ?? '')).toBe(
      OLDER_TOKENS.github.refresh,
    )
    expect(google?.refresh_token).toBeNull()
    for (const other of [{ userId: 2 }, { provider: 'gitlab' }, { column: 'refresh_token' }] as const)
      expect(() => unsealOAuthToken(KEYS, { ...at, ...other }, github?.access_token ?? '')).toThrow(
        'could not be read',
      )
    const stored = JSON.stringify(rows)
    for (const { access } of Object.values(OLDER_TOKENS)) expect(stored).not.toContain(access)
  })

  it('stay as they were in the schema legacy, and new ids go on after all that were ever given', async () => {
    const before = await older.query('select u.*::text as row from auth_users u order by id')
    await takeOver(older.url)
    expect(await older.query('select u.*::text as row from legacy.auth_users u order by id')).toEqual(before)
    // 9 is the highest there, 10 was deleted.
    expect(
      await older.query("insert into auth_users (username, password_hash) values ('x', 'x') returning id"),
    ).toEqual([{ id: 11 }])
    expect(
      await older.query(
        "insert into auth_sessions (session_token, user_id, expires_at) values ('x', 1, now()) returning id",
      ),
    ).toEqual([{ id: 5 }])
    expect(
      await older.query(
        "insert into auth_oauth_tokens (user_id, provider, access_token) values (1, 'x', 'x') returning id",
      ),
    ).toEqual([{ id: 4 }])
  })

  it('of an older application that nobody has used yet: the first id is still the first', async () => {
    await older.query('truncate auth_users restart identity cascade')
    const { said, warned } = await takeOver(older.url)
    expect(said.join()).toContain('0 users')
    expect(warned).toEqual([])
    expect(
      await older.query("insert into auth_users (username, password_hash) values ('x', 'x') returning id"),
    ).toEqual([{ id: 1 }])
  })
})

describe('names', () => {
  it('are found without case, unless two are one without it: those stay apart, and are told', async () => {
    const { warned } = await takeOver(older.url)
    expect(await older.query('select username, username_key from auth_users order by id')).toEqual([
      { username: 'alice', username_key: 'alice' },
      { username: 'Bob', username_key: null },
      { username: 'bob', username_key: null },
      { username: 'carol', username_key: 'carol' },
      { username: 'dave', username_key: 'dave' },
      { username: 'ＥＶＥ ', username_key: 'eve' },
      { username: 'Zo\u00eb', username_key: null },
      { username: 'Zoe\u0308', username_key: null },
    ])
    expect(warned.filter((line) => line.includes('"Bob"'))).toEqual([
      'these names are the same without case, so each signs in exactly as written: "Bob" (2) and "bob" (3), ' +
        '"Zo\u00eb" (8) and "Zoe\u0308" (9)',
    ])
  })

  it.each([
    ['alice', 1],
    ['ALICE', 1],
    ['Bob', 2],
    ['bob', 3],
    ['BOB', undefined],
    ['eve', 6],
    ['ＥＶＥ ', 6],
    ['Zo\u00eb', 8],
    ['Zoe\u0308', 9],
  ])('%j finds the user %s', async (name, id) => {
    await takeOver(older.url)
    const pool = guardedPool(older.url)
    try {
      const [found] = await asApp(createDatabase(pool), credentialsByUsername(createDatabase(pool), name))
      expect(found?.id).toBe(id)
    } finally {
      await pool.end(1000)
    }
  })

  it('fold with those that have a key already: these keep it', () => {
    const users = [
      { id: 1, username: 'Ann', username_key: 'ann' },
      { id: 2, username: 'ANN', username_key: null },
      { id: 3, username: 'Cid', username_key: null },
    ]
    expect(foldNames(users)).toEqual({ keys: new Map([[3, 'cid']]), clashes: [users.slice(0, 2)] })
  })

  it('that would be too long when folded get no key and come along all the same', async () => {
    // One character that NFKC makes eighteen.
    await older.query("update auth_users set username = repeat(U&'\\FDFA', 200) where id = 1")
    await takeOver(older.url)
    expect(await older.query('select username_key from auth_users where id = 1')).toEqual([
      { username_key: null },
    ])
  })
})

describe('the owner', () => {
  const users = [
    { id: 1, username: 'gone', active: false },
    { id: 2, username: 'Ada', active: true },
    { id: 3, username: 'Eve', active: false },
    { id: 4, username: 'eve', active: true },
    { id: 5, username: 'EVE', active: true },
  ]
  it.each([
    ['the one named so', 'eve', 4],
    ['exactly so, though another one comes first', 'EVE', 5],
    ['or else without case', 'aDA', 2],
    ['of several, one who is active', 'eVE', 4],
    ['the first active one, when the named one is not active', 'Eve', 2],
    ['the first active one, when nobody is named so', 'nobody', 2],
    ['the first active one, when no name is given', undefined, 2],
  ])('is %s', (_, name, id) => {
    expect(chooseOwner(users, name)?.id).toBe(id)
  })

  it('is one, and the others are users', async () => {
    const { said } = await takeOver(older.url, { ownerName: 'CAROL' })
    expect(await older.query("select id from auth_users where role = 'owner'")).toEqual([{ id: 1 }])
    expect(await older.query("select count(*)::int as n from auth_users where role = 'user'")).toEqual([
      { n: 7 },
    ])
    expect(said).toContain('the owner is "alice", the first active user')
  })

  it('is told by the name that chose it', async () => {
    const { said } = await takeOver(older.url, { ownerName: 'Dave' })
    expect(await older.query("select id from auth_users where role = 'owner'")).toEqual([{ id: 5 }])
    expect(said).toContain('the owner is "dave", named by AUTH_LOGIN')
  })

  it('is nobody when nobody is active, and that is told', async () => {
    await older.query('update auth_users set is_active = false')
    const { warned } = await takeOver(older.url)
    expect(warned).toContainEqual(expect.stringContaining('no user is active, so nobody became the owner'))
    expect(await older.query("select id from auth_users where role = 'owner'")).toEqual([])
  })
})

describe('taking over', () => {
  it('happens once, whoever starts at the same moment and however often, and is one audit event', async () => {
    const runs = await Promise.all([1, 2, 3].map(() => takeOver(older.url)))
    expect(runs.filter(({ applied }) => applied.length > 0)).toHaveLength(1)
    const after = await stateOf(older.url)
    const again = await takeOver(older.url)
    expect([again.applied, again.unknown, again.warned]).toEqual([[], [], []])
    expect(again.said).toEqual([
      expect.stringContaining('side by side until `node dist/main.js adopt --finish`'),
    ])
    expect(await stateOf(older.url)).toEqual(after)
    expect(
      await older.query(
        'select actor_type, actor_name, source, event_type, action, target, event::json as event from audit_events',
      ),
    ).toMatchObject([
      {
        actor_type: 'system',
        actor_name: 'system',
        source: 'service',
        event_type: 'system_event',
        action: 'adoption.complete',
        target: 'adoption',
        event: {
          metadata: {
            users: 8,
            sessions: 2,
            sessions_left: 2,
            tokens: 2,
            tokens_left: 0,
            name_clashes: 4,
            owner_id: 1,
          },
        },
      },
    ])
    expect(await older.query('select count(*)::int as n from audit_event_ids')).toEqual([{ n: 1 }])
  })

  it('tells no secret, in no line and no event', async () => {
    const { said, warned } = await takeOver(older.url, { ring: null })
    const events = await older.query('select event from audit_events')
    const told = JSON.stringify([said, warned, events])
    const { github, google } = OLDER_TOKENS
    for (const secret of [github.access, github.refresh, google.access, ...Object.values(OLDER_SESSIONS)])
      expect(told).not.toContain(secret)
    for (const { hash } of OLDER_USERS) expect(told).not.toContain(hash)
  })

  it('does nothing of it when the audit event cannot be written', async () => {
    const before = await everything()
    // The migrations make the table; an event trigger is the only way to be there before the event.
    await older.query(`create function refuse_events() returns trigger language plpgsql as $$ begin raise 'no events'; end $$;
      create function spoil() returns event_trigger language plpgsql as $$ begin
        if to_regclass('public.audit_event_ids') is not null and not exists (select from pg_trigger where tgname = 'spoil') then
          create trigger spoil before insert on public.audit_event_ids for each row execute function refuse_events(); end if; end $$;
      create event trigger spoil on ddl_command_end when tag in ('ALTER TABLE') execute function spoil()`)
    expect(await refusal()).toBe('Taking over the older tables failed: no events; nothing was changed')
    expect(await everything()).toEqual(before)
  })

  it('leaves a service that starts as after any migration: safe, and without a set-up token', async () => {
    await takeOver(older.url)
    const pool = guardedPool(older.url)
    const tokens: string[] = []
    const log = { info() {}, warn() {}, error() {}, child: () => log }
    try {
      expect(await asApp(createDatabase(pool), safetyFaults())).toEqual([])
      const service = createService({
        env: readEnv({ BCRYPT_COST: '4' }),
        source: pool,
        streamSource: pool,
        requestMs: 5000,
        log,
        checkRoles: true,
        onSetupToken: (token) => tokens.push(token),
      })
      await service.becomeReady(new AbortController().signal)
      expect((await service.app.request('/ready')).status).toBe(200)
      expect(tokens).toEqual([])
      await service.end(1000)
    } finally {
      await pool.end(1000)
    }
    expect(await older.query('select count(*)::int as n from auth_users')).toEqual([{ n: 8 }])
  })

  it('leaves the history that Prisma keeps, in the table that Prisma makes', async () => {
    const columns = `select attname, format_type(atttypid, atttypmod) as type, attnotnull, pg_get_expr(adbin, adrelid) as def
      from pg_attribute left join pg_attrdef on adrelid = attrelid and adnum = attnum
     where attrelid = '_prisma_migrations'::regclass and attnum > 0 order by attnum`
    const indexes = "select indexdef from pg_indexes where tablename = '_prisma_migrations'"
    await takeOver(older.url)
    const template = new URL(older.url)
    template.pathname = `/${process.env['TEST_TEMPLATE'] ?? ''}`
    expect(await older.query(columns)).toEqual(await queryAt(template.href, columns))
    expect(await older.query(indexes)).toEqual(await queryAt(template.href, indexes))
    const rows =
      'select migration_name, checksum, applied_steps_count, rolled_back_at, logs from _prisma_migrations order by 1'
    expect(await older.query(rows)).toEqual(await queryAt(template.href, rows))
  })

  it('warns when the default time zone is not UTC, and the statement it names cures that', async () => {
    const [{ name } = { name: '' }] = await older.query<{ name: string }>('select current_database() as name')
    // In winter it is UTC by another name.
    await older.query(`alter database ${name} set timezone to 'Europe/London'`)
    const { warned } = await takeOver(older.url)
    const warning = warned.find((line) => line.includes('TimeZone'))
    expect(warning).toContain('the default TimeZone of this database is Europe/London, not UTC')
    const remedy = /on: (ALTER ROLE .*?);/.exec(warning ?? '')?.[1] ?? ''
    const login = /ALTER ROLE (\S+) IN/.exec(remedy)?.[1] ?? ''
    try {
      await older.query(remedy)
      expect(await older.query('show timezone')).toEqual([{ TimeZone: 'UTC' }])
    } finally {
      await older.query(`alter role ${login} in database ${name} reset timezone`)
    }
  })
})

describe('without a key', () => {
  it('OAuth tokens are left out, with a warning each time, until a migrate with a key brings them', async () => {
    const first = await takeOver(older.url, { ring: null })
    const warning = expect.stringContaining(
      '2 OAuth tokens are left out, because nothing seals them: set ENCRYPTION_KEY',
    )
    expect(first.warned).toContainEqual(warning)
    expect(await older.query('select id from auth_oauth_tokens')).toEqual([])
    expect((await takeOver(older.url, { ring: null })).warned).toEqual([warning])

    const third = await takeOver(older.url)
    expect(third.said).toContain('took over 2 OAuth tokens that had been left out')
    expect(third.warned).toEqual([])
    const other = await databases.make()
    try {
      await takeOver(other.url)
      const [late, atOnce] = [await stateOf(older.url), await stateOf(other.url)]
      expect(late['tokens']).toEqual(
        (atOnce['tokens'] as object[]).map((token) =>
          Object.assign(token, { created_at: expect.any(String) }),
        ),
      )
      expect({ ...late, tokens: [], events: [] }).toEqual({ ...atOnce, tokens: [], events: [] })
    } finally {
      await other.drop()
    }
    expect(
      await older.query("select action, event::json->'metadata' as counts from audit_events order by id"),
    ).toMatchObject([
      { action: 'adoption.complete', counts: { tokens: 0, tokens_left: 2 } },
      { action: 'adoption.tokens', counts: { tokens: 2 } },
    ])
    expect((await takeOver(older.url)).said).toHaveLength(1)
  })

  it('a token that was stored meanwhile stays, and one of a user who was deleted does not come back', async () => {
    await takeOver(older.url, { ring: null })
    await older.query(
      "insert into auth_oauth_tokens (user_id, provider, access_token) values (1, 'github', 'newer')",
    )
    await older.query('delete from auth_users where id = 2')
    await takeOver(older.url)
    expect(await older.query('select user_id, provider, access_token from auth_oauth_tokens')).toEqual([
      { user_id: 1, provider: 'github', access_token: 'newer' },
    ])
  })

  it('is no matter where there are no tokens, or where the schema legacy is gone', async () => {
    const other = await databases.make()
    try {
      await other.query('truncate auth_oauth_tokens')
      expect((await takeOver(other.url, { ring: null })).warned.join()).not.toContain('OAuth')
    } finally {
      await other.drop()
    }
    await takeOver(older.url, { ring: null })
    await older.query(
      'drop table legacy.auth_oauth_tokens, legacy.auth_sessions, legacy.auth_users; drop schema legacy',
    )
    expect((await takeOver(older.url)).warned).toEqual([])
  })
})

describe('what is not the older application’s', () => {
  it('stays as it is: tables, schemas, a table called documents, and what a schema legacy holds', async () => {
    const foreign = `select n.nspname, c.relname, c.relkind, pg_get_userbyid(c.relowner) as owner, c.relacl::text, c.oid::int
      from pg_class c join pg_namespace n on n.oid = c.relnamespace
     where c.relname ~ '^(documents|orders|kept|notes|items|seen)' or n.nspname = 'crm' order by 1, 2`
    await older.query(`
      create table documents (id serial primary key, title text); insert into documents (title) values ('mine');
      create table orders (id int primary key); grant select on orders to public;
      create view seen as select id from orders;
      create schema crm; create table crm.auth_users (id int primary key, name text); insert into crm.auth_users values (1, 'x');
      create schema legacy; create table legacy.notes (note text); insert into legacy.notes values ('kept')`)
    const before = await older.query(foreign)
    await takeOver(older.url)
    expect(await older.query(foreign)).toEqual(before)
    expect(await older.query('select title from documents')).toEqual([{ title: 'mine' }])
    expect(await older.query('select name from crm.auth_users')).toEqual([{ name: 'x' }])
    expect(await older.query('select note from legacy.notes')).toEqual([{ note: 'kept' }])
  })

  it('and depends on the older tables is named, all of it, before anything is changed', async () => {
    await older.query(`
      create schema crm;
      create table crm.orders (id int, user_id int constraint orders_user_fk references auth_users (id));
      create view active_users as select id, username from auth_users where is_active;
      create materialized view session_count as select count(*) from auth_sessions;
      create table people () inherits (auth_users);
      create function name_of(u auth_users) returns text language sql begin atomic select u.username; end;
      create function touch() returns trigger language plpgsql as 'begin return new; end';
      create trigger touch before update on auth_users for each row execute function touch();
      create table notes (author int); alter table notes enable row level security;
      create policy known on notes using (exists (select from auth_users u where u.id = author));
      create publication changes for table auth_oauth_tokens`)
    const before = await everything()
    const message = await refusal()
    expect(message.split('\n  ').sort()).toEqual(
      [
        'The tables of the older application cannot be taken over, and nothing was changed:',
        ...[
          'constraint orders_user_fk on table crm.orders depends on auth_users',
          'rule _RETURN on view active_users depends on auth_users',
          'rule _RETURN on materialized view session_count depends on auth_sessions',
          'table people depends on auth_users',
          'function name_of(auth_users) depends on auth_users',
          'trigger touch on table auth_users depends on auth_users',
          'policy known on table notes depends on auth_users',
          'publication of table auth_oauth_tokens in publication changes depends on auth_oauth_tokens',
        ].map((line) => `${line} and would go with it: drop it, and make it again afterwards`),
      ].sort(),
    )
    expect(await everything()).toEqual(before)
  })

  it('can be made again afterwards: a foreign key and a view on the tables of this service', async () => {
    await older.query(`
      create table orders (id int, user_id int constraint orders_user_fk references auth_users (id));
      insert into orders values (1, 5);
      alter table orders drop constraint orders_user_fk`)
    await takeOver(older.url)
    await older.query(`
      alter table orders add constraint orders_user_fk foreign key (user_id) references auth_users (id);
      create view active_users as select id, username from auth_users where is_active`)
    expect(await older.query('select count(*)::int as n from active_users')).toEqual([{ n: 7 }])
    await expect(older.query('insert into orders values (2, 77)')).rejects.toMatchObject({ code: '23503' })
  })

  it('and has a name that a migration wants is named, and the older tables stay where they are', async () => {
    await older.query('create table config_revisions (mine int)')
    const before = await everything()
    expect(await refusal()).toBe(
      'Migration 20261123090000_tables_initial failed: ERROR: relation "config_revisions" already exists ' +
        '(SQLSTATE 42P07); nothing was changed',
    )
    expect(await everything()).toEqual(before)
    expect(await older.query('select count(*)::int as n from auth_users')).toEqual([{ n: 8 }])
  })

  it('and was granted rights on the tables is named: they do not come along', async () => {
    await older.query('grant select on auth_users to pg_read_all_stats')
    const { warned } = await takeOver(older.url)
    expect(warned).toContain(
      'these had rights on the older tables, which do not come along: pg_read_all_stats',
    )
  })
})

describe('tables of the same names', () => {
  const wrong: [string, string, RegExp][] = [
    [
      'that are another program’s',
      'drop table auth_users cascade; create table auth_users (id uuid primary key, email text)',
      /auth_users\.id is uuid, not integer\n.*auth_users\.username is missing\n.*auth_users\.email is not a column/s,
    ],
    [
      'whose times have a zone',
      'alter table auth_sessions alter expires_at type timestamptz',
      /auth_sessions\.expires_at is timestamp with time zone, not timestamp without time zone/,
    ],
    [
      'with a column more, which would be left behind',
      'alter table auth_users add email text',
      /auth_users\.email is not a column of the older application/,
    ],
    [
      'of which one is missing',
      'drop table auth_oauth_tokens',
      /auth_oauth_tokens is missing: start the older application once/,
    ],
    [
      'of which one is a view',
      'drop table auth_oauth_tokens; create view auth_oauth_tokens as select 1 as id',
      /auth_oauth_tokens is a view/,
    ],
    [
      'that belong to two logins',
      'alter table auth_sessions owner to pg_monitor',
      /the tables have more than one owner: \S+, pg_monitor/,
    ],
    [
      'that are in the schema legacy already',
      'create schema legacy; create table legacy.auth_users (id int)',
      /legacy\.auth_users is there already/,
    ],
  ]
  it.each(wrong)('%s are refused by name, and nothing is changed', async (_, change, message) => {
    await older.query(change)
    const before = await everything()
    const told = await refusal()
    expect(told).toMatch(message)
    expect(told).toContain('nothing was changed')
    expect(await everything()).toEqual(before)
  })

  it('that hold a row which does not fit are left as they are', async () => {
    await older.query('alter table auth_users drop constraint auth_users_username_key')
    await older.query("update auth_users set username = 'alice' where id = 4")
    const before = await everything()
    expect(await refusal()).toMatch(
      /^Taking over the older tables failed: duplicate key value .*; nothing was changed$/,
    )
    expect(await everything()).toEqual(before)
  })
})

describe('finishing', () => {
  const CLEAR = 'a token that the older application stored in the clear'

  /** As the older application leaves its rows: users without a key, tokens in the clear, its own indexes. */
  async function goOn(): Promise<void> {
    await older.query(`
      insert into auth_users (username, password_hash) values ('Newcomer', 'scrypt:1'), ('ALICE', 'scrypt:2');
      insert into auth_sessions (session_token, user_id, expires_at) values ('${CLEAR}', 1, now() + interval '1 day');
      insert into auth_oauth_tokens (user_id, provider, access_token, refresh_token) values (1, 'gitlab', '${CLEAR}', null);
      update auth_oauth_tokens set access_token = '${CLEAR} too' where user_id = 1 and provider = 'github';
      create index if not exists idx_auth_users_username on auth_users (username);
      create index if not exists idx_auth_sessions_token on auth_sessions (session_token);
      create index idx_auth_sessions_user on audit_event_ids (actor)`)
  }

  it('makes what was written meanwhile as this service writes it, and is audited with it', async () => {
    await takeOver(older.url)
    await goOn()
    const said = await finish()
    expect(said[0]).toContain('1 users, 1 sessions and 2 OAuth tokens')
    expect(said).toContainEqual(expect.stringContaining('"alice" (1) and "ALICE" (12)'))
    expect(said).toContainEqual(
      expect.stringContaining(
        'stored as bcrypt at the next sign-in, which the older application cannot read: it must not be started again',
      ),
    )
    expect(said.at(-1)).toContain('DROP SCHEMA legacy')
    expect(
      await older.query('select username, username_key from auth_users where id in (1, 11, 12) order by id'),
    ).toEqual([
      { username: 'alice', username_key: 'alice' },
      { username: 'Newcomer', username_key: 'newcomer' },
      { username: 'ALICE', username_key: null },
    ])
    expect(await older.query('select session_token from auth_sessions where id <> 3 order by id')).toEqual([
      { session_token: hashToken(OLDER_SESSIONS.live) },
      { session_token: hashToken(CLEAR) },
    ])
    const { tokens } = await stateOf(older.url)
    expect(tokens).toMatchObject([
      { provider: 'github', access_token: `${CLEAR} too`, refresh_token: OLDER_TOKENS.github.refresh },
      { provider: 'google', access_token: OLDER_TOKENS.google.access },
      { provider: 'gitlab', access_token: CLEAR, refresh_token: null },
    ])
    expect(
      await older.query(
        "select indexname, tablename from pg_indexes where indexname like 'idx%' and schemaname = 'public'",
      ),
    ).toEqual([{ indexname: 'idx_auth_sessions_user', tablename: 'audit_event_ids' }])
    expect(
      await older.query(
        "select actor_type, event::json->'metadata' as counts from audit_events where action = 'adoption.finish'",
      ),
    ).toEqual([{ actor_type: 'system', counts: { sessions: 1, tokens: 2, users: 1 } }])
    expect(await older.query('select finished_at is not null as finished from auth_adoption')).toEqual([
      { finished: true },
    ])
  })

  it('twice is once', async () => {
    await takeOver(older.url)
    await finish()
    const after = await stateOf(older.url)
    expect(await finish()).toEqual([expect.stringMatching(/^finished already, at \d{4}-.*Z$/)])
    expect(await stateOf(older.url)).toEqual(after)
    const { said } = await takeOver(older.url)
    expect(said).toEqual([])
  })

  it('is refused without a key while tokens are there in the clear, and changes nothing then', async () => {
    await takeOver(older.url)
    await goOn()
    const before = await stateOf(older.url).catch(() =>
      older.query('select * from auth_oauth_tokens order by id'),
    )
    await expect(finish(null)).rejects.toMatchObject({
      code: 'refused',
      message: expect.stringContaining('stored 2 OAuth tokens in the clear. Set ENCRYPTION_KEY'),
    })
    expect(await older.query('select * from auth_oauth_tokens order by id')).toEqual(before)
    expect(await older.query('select finished_at from auth_adoption')).toEqual([{ finished_at: null }])
    expect(
      await older.query("select count(*)::int as n from auth_users where username_key = 'newcomer'"),
    ).toEqual([{ n: 0 }])
  })

  it('needs no key otherwise, and says which tokens are still to come', async () => {
    await takeOver(older.url, { ring: null })
    const said = await finish(null)
    expect(said.join('\n')).toContain(
      '2 OAuth tokens are in the schema legacy only: set ENCRYPTION_KEY and run migrate',
    )
    expect((await takeOver(older.url)).said).toEqual(['took over 2 OAuth tokens that had been left out'])
  })

  it('has nothing to do where nothing was taken over, migrated or not, and says so', async () => {
    const nothing = ['nothing was taken over in this database: there is nothing to finish']
    expect(await finish()).toEqual(nothing)
    await older.query('drop table auth_oauth_tokens, auth_sessions, auth_users')
    await takeOver(older.url)
    expect(await finish()).toEqual(nothing)
    expect(await describeIt()).toEqual(['nothing was taken over in this database'])
  })

  it('leaves rights, owners and policies as in a database that was never another one’s', async () => {
    await takeOver(older.url)
    await finish()
    const template = new URL(older.url)
    template.pathname = `/${process.env['TEST_TEMPLATE'] ?? ''}`
    const rights = `select c.relname, pg_get_userbyid(c.relowner) as owner, c.relacl::text, c.relrowsecurity, c.relforcerowsecurity,
        array(select attname || attacl::text from pg_attribute where attrelid = c.oid and attacl is not null order by 1) as columns,
        array(select polname || polroles::regrole[]::text from pg_policy where polrelid = c.oid order by 1) as policies
      from pg_class c where c.relnamespace = 'public'::regnamespace order by 1`
    expect(await older.query(rights)).toEqual(await queryAt(template.href, rights))
  })
})

describe('the state', () => {
  it('is told before and after the end: hash formats, names without a key, names that clash, tokens', async () => {
    await takeOver(older.url, { ring: null })
    await older.query(
      "insert into auth_users (username, password_hash) values ('Newcomer', 'scrypt:1'), ('plain', 'a password in the clear'), ('key only', '!')",
    )
    expect(await describeIt()).toEqual([
      expect.stringMatching(/^taken over at \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$/),
      'both applications run side by side: `node dist/main.js adopt --finish` ends that',
      'password hashes: 1 bcrypt, 1 of an unknown format, 2 pbkdf2, 6 scrypt, 1 without a password',
      'without a key until it is finished, made by the older application: "Newcomer", "plain", "key only"',
      expect.stringContaining('"Bob" (2) and "bob" (3)'),
      '2 OAuth tokens are in the schema legacy only: set ENCRYPTION_KEY and run migrate',
    ])
    await takeOver(older.url)
    await finish()
    expect(await describeIt()).toEqual([
      expect.stringMatching(/^taken over at /),
      expect.stringMatching(/^finished at .*Z: the older application must not be started again$/),
      expect.stringMatching(/^password hashes: /),
      expect.stringContaining('"Bob" (2) and "bob" (3)'),
    ])
  })
})

it('what is not a superuser sees no more of the older tables than before', async () => {
  await takeOver(older.url)
  await withClient(older.url, async (client: pg.Client) => {
    for (const role of [
      'gary_app',
      'gary_caller',
      'gary_jobs',
      'gary_analyst',
      'gary_reporting',
      'gary_owner',
    ]) {
      await client.query(`set role ${role}`)
      await expect(client.query('select 1 from legacy.auth_users'), role).rejects.toMatchObject({
        code: '42501',
      })
      await client.query('set role none')
    }
  })
})
