import { randomUUID } from 'node:crypto'
import pg from 'pg'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { finishAdoption } from '../../src/db/adopt-finish.js'
import { createKey } from '../../src/db/api-keys.js'
import { type Caller, SYSTEM, asApp, asCaller } from '../../src/db/as-caller.js'
import { NO_REQUEST, type ServiceEvent } from '../../src/db/audit.js'
import { createDatabase } from '../../src/db/database.js'
import { safetyFaults } from '../../src/db/safety.js'
import { createSession } from '../../src/db/sessions.js'
import { hashToken } from '../../src/security/tokens.js'
import { guardedPool } from '../engine.js'
import { KEYS, queryAt, takeOver, withClient } from './adopting.js'
import * as application from './older-application.js'
import { OLDER_USERS, makeOlderDatabase } from './older-database.js'
import { SERVERS, startServer } from './own-server.js'

const DENIED = '42501'
const MINUTE_MS = 60_000
const [ALICE, , , CAROL, DAVE] = OLDER_USERS

describe.each(SERVERS)('the older application beside this one, on %s', (native) => {
  let server: Awaited<ReturnType<typeof startServer>>

  beforeAll(async () => {
    server = await startServer(native)
    await superuser(`
      create role migrator login createrole;
      create role latecomer login createrole;
      create role older login;
      create role plain login`)
  })
  afterAll(() => server?.stop())

  function urlOf(database: string, login = 'postgres'): string {
    const url = new URL(server.url)
    url.pathname = `/${database}`
    url.username = login
    return url.href
  }

  const superuser = (text: string, database = 'postgres') => queryAt(urlOf(database), text)

  /** A database with the older application's tables, which `login` made and owns. */
  async function makeFor(login: string, database: string): Promise<void> {
    await superuser(`create database ${database} ${login === 'migrator' ? 'owner migrator' : ''}`)
    await superuser(`alter database ${database} set timezone to 'UTC'`)
    await superuser(`grant create on schema public to ${login}`, database)
    await withClient(urlOf(database, login), makeOlderDatabase)
  }

  /** All that the older application does, with what it must find. */
  async function workAs(login: string, database: string): Promise<void> {
    const client = await application.connectOlder(urlOf(database, login))
    const now = new Date('2026-06-15T12:00:00.250Z')
    const later = (minutes: number) => new Date(now.getTime() + minutes * MINUTE_MS)
    try {
      await application.startUp(client)
      await application.startUp(client)

      expect(await application.signIn(client, ALICE.username, ALICE.hash, now)).toBe('signed in')
      expect(await application.signIn(client, CAROL.username, CAROL.hash, now)).toBe('inactive')
      expect(await application.signIn(client, 'nobody', 'x', now)).toBe('unknown')
      for (let failure = 0; failure < 5; failure += 1)
        expect(await application.signIn(client, DAVE.username, 'wrong', now)).toBe('wrong password')
      expect(await application.signIn(client, DAVE.username, DAVE.hash, now)).toBe('locked')
      expect(await application.signIn(client, DAVE.username, DAVE.hash, later(14.9))).toBe('locked')
      expect(await application.signIn(client, DAVE.username, DAVE.hash, later(15.1))).toBe('signed in')

      await application.addUser(client, 'newcomer', 'scrypt:first', now)
      expect(await application.signIn(client, 'newcomer', 'scrypt:first', now)).toBe('signed in')
      expect(await application.changePassword(client, 'newcomer', 'scrypt:second', now)).toBe(1)
      expect(await application.signIn(client, 'newcomer', 'scrypt:second', later(1))).toBe('signed in')

      await application.openSession(client, ALICE.id, 'a token of its own', later(60))
      expect(await application.validateSession(client, 'a token of its own', later(59))).toBe('alice')
      expect(await application.validateSession(client, 'a token of its own', later(61))).toBeNull()
      await application.openSession(client, ALICE.id, 'another token', later(10))
      expect(await application.cleanUpSessions(client, later(30))).toBe(1)

      await application.storeToken(client, CAROL.id, 'github', 'first', 'refresh')
      await application.storeToken(client, CAROL.id, 'github', 'second', null)
      await application.storeToken(client, ALICE.id, 'github', 'over an adopted one', null)
    } finally {
      await client.end()
    }
    expect(
      await superuser(
        `set timezone to 'Asia/Tokyo';
         select last_login = '2026-06-15 12:01:00.25Z' and password_changed_at = '2026-06-15 12:00:00.25Z'
                and updated_at = last_login and created_at > now() - interval '1 hour' as right_times,
                username_key, role, version, must_change_password, is_active from auth_users where username = 'newcomer'`,
        database,
      ),
    ).toEqual([
      {
        right_times: true,
        username_key: null,
        role: 'user',
        version: 1,
        must_change_password: false,
        is_active: true,
      },
    ])
    expect(
      await superuser(
        "select access_token, refresh_token from auth_oauth_tokens where provider = 'github' order by user_id",
        database,
      ),
    ).toEqual([
      { access_token: 'over an adopted one', refresh_token: null },
      { access_token: 'second', refresh_token: null },
    ])
  }

  /** This service on the same tables at the same time: what touches all three, with their foreign keys. */
  async function serve(login: string, database: string): Promise<void> {
    const pool = guardedPool(urlOf(database, login))
    const db = createDatabase(pool)
    try {
      expect(await asApp(db, safetyFaults())).toEqual([])
      const actor = { type: 'user', id: ALICE.id, name: 'alice' } as const
      const alice: Caller = { ...SYSTEM, userId: ALICE.id, role: 'owner', actor }
      const event: ServiceEvent = {
        caller: alice,
        correlation: NO_REQUEST,
        eventType: 'authentication',
        level: 'info',
        action: 'auth.login',
        target: null,
        message: 'x',
      }
      const session = {
        userId: ALICE.id,
        tokenHash: hashToken(randomUUID()),
        userVersion: 1,
        ttlSeconds: 60,
        ipAddress: null,
        userAgent: null,
      }
      expect(await asCaller(db, alice, createSession(db, session, event))).toHaveLength(1)
      const key = {
        userId: ALICE.id,
        name: 'k',
        prefix: 'gzk_',
        keyHash: randomUUID(),
        scopes: ['config:read'] as const,
      }
      await asCaller(db, alice, createKey(db, key, event))
    } finally {
      await pool.end(1000)
    }
  }

  const finishAs = (login: string, database: string) =>
    withClient(urlOf(database, login), (client) => finishAdoption(client, KEYS))

  async function stateOf(work: Promise<unknown>): Promise<string> {
    return await work.then(
      () => 'none',
      (error: unknown) => (error instanceof pg.DatabaseError ? (error.code ?? '') : String(error)),
    )
  }

  const POLICIES =
    "select tablename::text, roles::text from pg_policies where policyname = 'older_application' order by 1"
  const OWNERS = `select relname, pg_get_userbyid(relowner) as owner from pg_class
    where oid in ('auth_users'::regclass, 'auth_sessions'::regclass, 'auth_oauth_tokens'::regclass) order by 1`
  const THREE = ['auth_oauth_tokens', 'auth_sessions', 'auth_users']

  // First, because from PostgreSQL 16 on only who made the service's roles may become a member of them.
  describe('connected as a login that is no superuser, owns the tables and migrates', () => {
    it('takes over every row, whatever FORCE hides from an owner, also tokens that come later', async () => {
      await makeFor('migrator', 'two')
      const { warned } = await takeOver(urlOf('two', 'migrator'), { ring: null })
      expect(warned.join()).toContain('2 OAuth tokens are left out')
      expect((await takeOver(urlOf('two', 'migrator'))).said).toContain(
        'took over 2 OAuth tokens that had been left out',
      )
      for (const [table, n] of Object.entries({
        auth_users: 8,
        auth_sessions: 2,
        auth_oauth_tokens: 2,
        auth_adoption: 1,
        audit_events: 2,
      }))
        expect.soft(await superuser(`select count(*)::int as n from ${table}`, 'two'), table).toEqual([{ n }])
    })

    it('works by its policies, and the tables are gary_owner’s, whose member it is', async () => {
      await workAs('migrator', 'two')
      await serve('migrator', 'two')
      expect(await superuser(POLICIES, 'two')).toEqual(
        THREE.map((tablename) => ({ tablename, roles: '{migrator}' })),
      )
      expect(await superuser(OWNERS, 'two')).toEqual(
        THREE.map((relname) => ({ relname, owner: 'gary_owner' })),
      )
    })

    it('writes no user any more once it has finished', async () => {
      const add = () =>
        stateOf(
          queryAt(
            urlOf('two', 'migrator'),
            "begin; insert into auth_users (username, password_hash) values ('x', 'x'); rollback",
          ),
        )
      expect(await add()).toBe('none')
      expect((await finishAs('migrator', 'two'))[0]).toContain('1 users, 1 sessions and 2 OAuth tokens')
      expect(await add()).toBe(DENIED)
      expect(await superuser(POLICIES, 'two')).toEqual([])
      expect(await finishAs('migrator', 'two')).toEqual([expect.stringContaining('finished already')])
    })

    it('is refused when a policy of its own hides rows from it, rather than leaving them behind', async () => {
      await makeFor('migrator', 'hidden')
      await superuser(
        'alter table auth_sessions enable row level security, force row level security',
        'hidden',
      )
      await expect(takeOver(urlOf('hidden', 'migrator'))).rejects.toMatchObject({
        message:
          'Taking over the older tables failed: query would be affected by row-level security policy for table ' +
          '"auth_sessions"; nothing was changed',
      })
      expect(await superuser("select to_regclass('legacy.auth_users') as moved", 'hidden')).toEqual([
        { moved: null },
      ])
    })
  })

  describe('connected as the superuser', () => {
    it('works on the adopted tables with no policy of its own, before and after the end', async () => {
      await makeFor('postgres', 'one')
      await takeOver(urlOf('one'))
      await workAs('postgres', 'one')
      await serve('postgres', 'one')
      expect(await superuser(POLICIES, 'one')).toEqual([])
      expect((await finishAs('postgres', 'one'))[0]).toContain('1 users, 1 sessions and 2 OAuth tokens')
    })
  })

  describe('connected as a login that owns the tables, while a superuser migrates', () => {
    it('works: it owns these three tables, as it did, and no member of gary_owner', async () => {
      await makeFor('older', 'three')
      await takeOver(urlOf('three'))
      await workAs('older', 'three')
      await serve('postgres', 'three')
      expect(await superuser(OWNERS, 'three')).toEqual(THREE.map((relname) => ({ relname, owner: 'older' })))
      expect(
        await superuser("select pg_has_role('older', 'gary_owner', 'MEMBER') as member", 'three'),
      ).toEqual([{ member: false }])
    })

    it('reaches nothing else of this service', async () => {
      const tables = await superuser(
        `select relname as name from pg_class where relnamespace = 'public'::regnamespace and relkind in ('r', 'p')
            and pg_get_userbyid(relowner) <> 'older'`,
        'three',
      )
      expect(tables.length).toBeGreaterThan(10)
      for (const { name } of tables)
        expect
          .soft(await stateOf(queryAt(urlOf('three', 'older'), `select 1 from ${name}`)), String(name))
          .toBe(DENIED)
      for (const text of [
        'set role gary_app',
        'set role gary_owner',
        'select gary.user_id()',
        'select 1 from reports.logins',
      ])
        expect.soft(await stateOf(queryAt(urlOf('three', 'older'), text)), text).toBe(DENIED)
    })

    it('has nobody else run its code: while there is any on the tables, nothing is done to them', async () => {
      const asOlder = (text: string) => queryAt(urlOf('three', 'older'), text)
      await asOlder(`
        create function seize() returns trigger language plpgsql as $$
          begin execute 'alter role older superuser'; return new; end $$;
        create trigger innocent before update on auth_users for each row execute function seize()`)
      await expect(finishAs('postgres', 'three')).rejects.toMatchObject({
        code: 'refused',
        message:
          'Nothing was changed, for this would run with the rights of this login: trigger innocent on table auth_users, ' +
          'which calls the function seize() of older',
      })
      expect(await superuser("select rolsuper from pg_roles where rolname = 'older'")).toEqual([
        { rolsuper: false },
      ])
      expect(await superuser('select finished_at from auth_adoption', 'three')).toEqual([
        { finished_at: null },
      ])
      await asOlder('drop trigger innocent on auth_users; drop function seize')
    })

    it('later migrations and the end are the superuser’s, and then it has no right to the tables', async () => {
      expect((await takeOver(urlOf('three'))).applied).toEqual([])
      expect((await finishAs('postgres', 'three'))[0]).toContain('1 users, 1 sessions and 2 OAuth tokens')
      expect(await superuser(POLICIES, 'three')).toEqual([])
      expect(await superuser(OWNERS, 'three')).toEqual(
        THREE.map((relname) => ({ relname, owner: 'gary_owner' })),
      )
      for (const table of THREE)
        expect
          .soft(await stateOf(queryAt(urlOf('three', 'older'), `select 1 from ${table}`)), table)
          .toBe(DENIED)
      await serve('postgres', 'three')
    })
  })

  describe('and a login that may not take them over', () => {
    it('is refused by name when it does not own the tables', async () => {
      await makeFor('older', 'four')
      await superuser('alter database four owner to migrator')
      await expect(takeOver(urlOf('four', 'migrator'))).rejects.toMatchObject({
        code: 'refused',
        message: expect.stringContaining('auth_users belongs to older: run this as older or as a superuser'),
      })
      expect(await superuser("select to_regnamespace('legacy') as legacy", 'four')).toEqual([
        { legacy: null },
      ])
    })

    it('is refused from PostgreSQL 16 on when the service’s roles are another login’s, and nothing was changed', async () => {
      await makeFor('latecomer', 'six')
      await superuser('alter database six owner to latecomer')
      const [{ old } = { old: false }] = await queryAt<{ old: boolean }>(
        server.url,
        "select current_setting('server_version_num')::int < 160000 as old",
      )
      const told = await takeOver(urlOf('six', 'latecomer')).then(
        () => 'taken over',
        (error: unknown) => (error instanceof Error ? error.message : ''),
      )
      expect(told).toBe(
        old
          ? 'taken over'
          : 'Migration 20261123090100_server_access failed: ERROR: permission denied to grant role "gary_owner" ' +
              '(SQLSTATE 42501); nothing was changed',
      )
      if (!old)
        expect(await queryAt(urlOf('six', 'latecomer'), 'select count(*)::int as n from auth_users')).toEqual(
          [{ n: 8 }],
        )
    })

    it('is refused with the server’s words when it may not make roles, and nothing was changed', async () => {
      await makeFor('plain', 'five')
      await superuser('alter database five owner to plain')
      await expect(takeOver(urlOf('five', 'plain'))).rejects.toMatchObject({
        code: 'failed',
        message: expect.stringMatching(
          /^Migration \d+_server_access failed: .*permission denied.*(42501|create role).*; nothing was changed$/s,
        ),
      })
      expect(await superuser("select to_regnamespace('legacy') as legacy", 'five')).toEqual([
        { legacy: null },
      ])
      expect(await queryAt(urlOf('five', 'plain'), 'select count(*)::int as n from auth_users')).toEqual([
        { n: 8 },
      ])
    })
  })
})
