import pg from 'pg'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { asApp } from '../../src/db/as-caller.js'
import { createDatabase } from '../../src/db/database.js'
import { safetyFaults } from '../../src/db/safety.js'
import { type TestDatabase, createTestDatabase, onServer } from '../engine.js'

let database: TestDatabase
let superuser: pg.Client

beforeAll(async () => {
  database = await createTestDatabase()
  superuser = new pg.Client({ connectionString: database.url ?? '' })
  await superuser.connect()
})
afterAll(async () => {
  await superuser.end()
  await database.drop()
})

async function faultsOn(client: pg.Client): Promise<string[]> {
  const { rows } = await client.query<{ fault: string }>(safetyFaults().compile().sql)
  return rows.map(({ fault }) => fault).sort()
}

/** The faults, as `role` sees them, once `change` was made; roles belong to the cluster, so nothing is committed. */
async function faultsAfter(change: string, role: string | null = 'gary_app'): Promise<string[]> {
  await superuser.query('begin')
  try {
    await superuser.query(change)
    if (role !== null) await superuser.query(`set local role ${role}`)
    return await faultsOn(superuser)
  } finally {
    await superuser.query('rollback')
  }
}

const TABLE = 'create table things (id int); alter table things owner to gary_owner;'
const SECURED = `${TABLE} alter table things enable row level security; alter table things force row level security;`
const LACKS = 'the table things lacks row-level security, FORCE or a policy'

describe('a database', () => {
  it('that is migrated has no fault, through the pool of the service', async () => {
    expect(await asApp(createDatabase(database.source), safetyFaults())).toEqual([])
  })

  it('that is not migrated lacks its tables, and says what to do', async () => {
    const name = `gary_empty_${process.pid}`
    await onServer(`create database ${name}`)
    try {
      const url = new URL(database.url ?? '')
      url.pathname = `/${name}`
      const client = new pg.Client({ connectionString: url.href })
      await client.connect()
      await client.query('set role gary_app')
      expect(await faultsOn(client)).toEqual(
        ['audit_events', 'auth_sessions', 'auth_users', 'config_entries'].map(
          (table) => `the table ${table} is missing: run the migrations`,
        ),
      )
      await client.end()
    } finally {
      await onServer(`drop database ${name} with (force)`)
    }
  })
})

describe('a table of gary_owner', () => {
  it.each([
    ['has no row-level security', TABLE],
    [
      'has it without FORCE',
      `${TABLE} alter table things enable row level security; create policy p on things using (true)`,
    ],
    ['has no policy', SECURED],
    [
      'has FORCE and a policy, but not switched on',
      `${TABLE} alter table things force row level security; create policy p on things using (true)`,
    ],
  ])('is named when it %s', async (_, change) => {
    expect(await faultsAfter(change)).toEqual([LACKS])
  })

  it('is none when it has all three', async () => {
    expect(await faultsAfter(`${SECURED} create policy p on things using (true)`)).toEqual([])
  })

  it('is named when a table of ours loses one of them', async () => {
    expect(await faultsAfter('alter table audit_events no force row level security')).toEqual([
      'the table audit_events lacks row-level security, FORCE or a policy',
    ])
    expect(await faultsAfter('alter table audit_events_default disable row level security')).toEqual([
      'the table audit_events_default lacks row-level security, FORCE or a policy',
    ])
  })

  it('is named also where the older application owns it, as it may beside this one', async () => {
    const owned = 'create role adopt_older_owner; alter table auth_users owner to adopt_older_owner;'
    expect(await faultsAfter(owned)).toEqual([])
    expect(await faultsAfter(`${owned} alter table auth_users no force row level security`)).toEqual([
      'the table auth_users lacks row-level security, FORCE or a policy',
    ])
  })

  it('is named when it is a partition that a role of the service may use by itself', async () => {
    for (const privilege of ['select', 'select (id)', 'delete']) {
      expect(await faultsAfter(`grant ${privilege} on audit_events_default to gary_caller`)).toEqual([
        'a service role may use the partition audit_events_default beside its parent',
      ])
    }
  })
})

describe('a view in reports', () => {
  it('is named when another owns it', async () => {
    expect(await faultsAfter('create view reports.everything as select * from public.audit_events')).toEqual([
      'the view reports.everything is not owned by gary_reporting',
    ])
    expect(await faultsAfter('create materialized view reports.once as select 1')).toEqual([
      'the view reports.once is not owned by gary_reporting',
    ])
  })
})

describe('a role', () => {
  it.each(['gary_app', 'gary_caller', 'gary_jobs', 'gary_analyst', 'gary_reporting'])(
    'is named when it is a member of another: %s',
    async (member) => {
      expect(await faultsAfter(`grant gary_owner to ${member}`)).toEqual([
        `the role ${member} is a member of gary_owner`,
      ])
    },
  )

  it('is named when it bypasses row-level security or is a superuser', async () => {
    expect(await faultsAfter('alter role gary_caller bypassrls')).toEqual([
      'the role gary_caller is a superuser or bypasses row-level security',
    ])
    expect(await faultsAfter('alter role gary_jobs superuser')).toEqual([
      'the role gary_jobs is a superuser or bypasses row-level security',
    ])
  })

  it('is named when the connection kept that of a superuser', async () => {
    const { rows } = await superuser.query<{ name: string }>('select current_user as name')
    expect(await faultsAfter('select 1', null)).toContain(
      `the role ${rows[0]?.name} is a superuser or bypasses row-level security`,
    )
  })

  it('is named, with each table, when the connection is that of the owner', async () => {
    const faults = await faultsAfter('select 1', 'gary_owner')
    expect(faults).toContain('the role gary_owner owns the table auth_users')
    expect(faults.every((fault) => fault.startsWith('the role gary_owner owns the table '))).toBe(true)
  })
})
