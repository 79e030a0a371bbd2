import type pg from 'pg'
import { MigrationError } from './migration-error.js'

/** The tables of the older application, each after those it refers to: the order in which they are locked. */
export const OLDER_NAMES = ['auth_users', 'auth_sessions', 'auth_oauth_tokens'] as const
type OlderName = (typeof OLDER_NAMES)[number]

const NAIVE = 'timestamp without time zone'

/** As the older application's own start-up makes them. */
const SHAPES: Record<OlderName, Record<string, string>> = {
  auth_users: {
    id: 'integer',
    username: 'character varying(255)',
    password_hash: 'character varying(512)',
    is_active: 'boolean',
    last_login: NAIVE,
    created_at: NAIVE,
    updated_at: NAIVE,
    failed_login_attempts: 'integer',
    locked_until: NAIVE,
    password_changed_at: NAIVE,
    must_change_password: 'boolean',
  },
  auth_sessions: {
    id: 'integer',
    session_token: 'character varying(512)',
    user_id: 'integer',
    created_at: NAIVE,
    expires_at: NAIVE,
    last_activity: NAIVE,
    ip_address: 'inet',
    user_agent: 'text',
  },
  auth_oauth_tokens: {
    id: 'integer',
    user_id: 'integer',
    provider: 'character varying(50)',
    access_token: 'text',
    refresh_token: 'text',
    expires_at: NAIVE,
    created_at: NAIVE,
  },
}

/** How long the tables are waited for at a time: whoever asks for them meanwhile waits behind us. */
const LOCK_WAIT = '3s'

export interface OlderTables {
  /** Who owns them: the login of the older application, as far as the database tells. */
  owner: string
  /** Logins that have rights on them without owning them; these rights do not come along. */
  granted: string[]
}

interface FoundTable {
  name: OlderName
  kind: string
  owner: string
  movable: boolean
  columns: Record<string, string>
  granted: string[]
}

/**
 * The older application's tables, when they are there and none of `migrations` was applied yet; null when there
 * is nothing to take over. Rejects with a MigrationError `refused` that names everything that is in the way:
 * another shape, another owner, what depends on the tables and would stay with the moved ones.
 */
export async function findOlderTables(
  client: pg.Client,
  migrations: readonly string[],
): Promise<OlderTables | null> {
  const history = await client.query<{ name: string | null }>(
    "SELECT to_regclass('_prisma_migrations') AS name",
  )
  if (history.rows[0]?.name != null) {
    const applied = await client.query(
      `SELECT FROM _prisma_migrations
        WHERE migration_name = ANY ($1) AND finished_at IS NOT NULL AND rolled_back_at IS NULL LIMIT 1`,
      [migrations],
    )
    if (applied.rowCount !== 0) return null
  }
  const { rows: tables } = await client.query<FoundTable>(FOUND, [OLDER_NAMES])
  const [first] = tables
  if (first === undefined) return null
  const faults = [
    ...OLDER_NAMES.flatMap((name) => shapeFaults(name, tables)),
    ...ownerFaults(tables),
    ...(await dependents(client)),
  ]
  if (faults.length > 0) {
    throw new MigrationError(
      'refused',
      `The tables of the older application cannot be taken over, and nothing was changed:\n  ${faults.join('\n  ')}`,
    )
  }
  return { owner: first.owner, granted: [...new Set(tables.flatMap(({ granted }) => granted))].sort() }
}

/**
 * Begins a transaction and moves the tables to the schema `legacy`, with their rows, indexes and sequences. Rejects
 * with SQLSTATE 55P03 when somebody else holds one of them for longer than three seconds.
 */
export async function moveOlderTables(client: pg.ClientBase): Promise<void> {
  await client.query(`BEGIN; SET LOCAL lock_timeout = '${LOCK_WAIT}'`)
  await client.query(`LOCK TABLE ${OLDER_NAMES.map((name) => `public.${name}`).join(', ')}`)
  await client.query('SET LOCAL lock_timeout = 0; CREATE SCHEMA IF NOT EXISTS legacy')
  for (const name of OLDER_NAMES) await client.query(`ALTER TABLE public.${name} SET SCHEMA legacy`)
  // As Prisma makes it; without it Prisma refuses every database that holds any table (P3005).
  await client.query(`CREATE TABLE IF NOT EXISTS _prisma_migrations (
    id varchar(36) PRIMARY KEY NOT NULL, checksum varchar(64) NOT NULL, finished_at timestamptz,
    migration_name varchar(255) NOT NULL, logs text, rolled_back_at timestamptz,
    started_at timestamptz NOT NULL DEFAULT now(), applied_steps_count integer NOT NULL DEFAULT 0)`)
}

/** Who holds one of the tables, a phrase each, for the operator. */
export async function holdersOfTables(client: pg.Client): Promise<string[]> {
  const { rows } = await client.query<{ holder: string }>(HOLDERS, [OLDER_NAMES])
  return rows.map(({ holder }) => holder)
}

const KINDS: Record<string, string> = {
  v: 'a view',
  m: 'a materialized view',
  p: 'a partitioned table',
  f: 'a foreign table',
}

function shapeFaults(name: OlderName, tables: readonly FoundTable[]): string[] {
  const table = tables.find((found) => found.name === name)
  if (table === undefined) {
    return [`${name} is missing: start the older application once, it makes the tables that it lacks`]
  }
  if (table.kind !== 'r') return [`${name} is ${KINDS[table.kind] ?? 'no table'}`]
  const expected = SHAPES[name]
  const faults = Object.entries(expected)
    .filter(([column, type]) => table.columns[column] !== type)
    .map(([column, type]) => {
      const found = table.columns[column]
      return `${name}.${column} is ${found === undefined ? 'missing' : `${found}, not ${type}`}`
    })
  const more = Object.keys(table.columns).filter((column) => !Object.hasOwn(expected, column))
  return [...faults, ...more.map((column) => `${name}.${column} is not a column of the older application`)]
}

function ownerFaults(tables: readonly FoundTable[]): string[] {
  const owners = [...new Set(tables.map(({ owner }) => owner))]
  if (owners.length > 1) return [`the tables have more than one owner: ${owners.join(', ')}`]
  return tables
    .filter(({ movable }) => !movable)
    .map(({ name, owner }) => `${name} belongs to ${owner}: run this as ${owner} or as a superuser`)
}

async function dependents(client: pg.Client): Promise<string[]> {
  const { rows } = await client.query<{ dependent: string; on: string }>(DEPENDENTS, [OLDER_NAMES])
  const taken = await client.query<{ name: string }>(
    `SELECT relname AS name FROM pg_class WHERE relnamespace = to_regnamespace('legacy') AND relname = ANY ($1)`,
    [OLDER_NAMES],
  )
  return [
    ...rows.map(
      ({ dependent, on }) =>
        `${dependent} depends on ${on} and would go with it: drop it, and make it again afterwards`,
    ),
    ...taken.rows.map(({ name }) => `legacy.${name} is there already: rename or drop it`),
  ]
}

const FOUND = `
SELECT c.relname AS name, c.relkind AS kind, pg_get_userbyid(c.relowner) AS owner,
       pg_has_role(c.relowner, 'USAGE') AS movable,
       (SELECT json_object_agg(attname, format_type(atttypid, atttypmod)) FROM pg_attribute
         WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped) AS columns,
       ARRAY(SELECT DISTINCT CASE grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(grantee) END::text
               FROM aclexplode(c.relacl) WHERE grantee <> c.relowner) AS granted
  FROM pg_class c
 WHERE c.relnamespace = to_regnamespace('public') AND c.relname = ANY ($1)
 ORDER BY array_position($1::text[], c.relname::text)`

/**
 * Whatever refers to a table, or to its row type, and is no part of it: indexes, sequences, defaults and the
 * constraints among the three go with them as they should.
 */
const DEPENDENTS = `
WITH older AS (
  SELECT oid, relname, reltype FROM pg_class WHERE relnamespace = to_regnamespace('public') AND relname = ANY ($1)
)
SELECT DISTINCT pg_describe_object(d.classid, d.objid, d.objsubid) AS dependent, o.relname AS "on"
  FROM older o
  JOIN pg_depend d ON (d.refclassid = 'pg_class'::regclass AND d.refobjid = o.oid)
                   OR (d.refclassid = 'pg_type'::regclass AND d.refobjid = o.reltype)
 WHERE NOT (d.classid = 'pg_class'::regclass AND d.deptype IN ('a', 'i'))
   AND d.classid NOT IN ('pg_type'::regclass, 'pg_attrdef'::regclass, 'pg_statistic_ext'::regclass)
   AND NOT (d.classid = 'pg_constraint'::regclass
            AND d.objid IN (SELECT k.oid FROM pg_constraint k JOIN older t ON t.oid = k.conrelid))
   AND NOT (d.classid = 'pg_trigger'::regclass AND d.objid IN (SELECT t.oid FROM pg_trigger t WHERE t.tgisinternal))
 ORDER BY 1`

const HOLDERS = `
SELECT DISTINCT format('%s (process %s, %s%s)', coalesce(nullif(a.application_name, ''), a.usename), a.pid,
                       coalesce(a.state, 'state unknown'), coalesce(' since ' || a.state_change::timestamp(0), '')) AS holder
  FROM pg_locks l
  JOIN pg_stat_activity a ON a.pid = l.pid
 WHERE l.granted AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
   AND l.relation IN (SELECT oid FROM pg_class WHERE relnamespace = to_regnamespace('public') AND relname = ANY ($1))
 ORDER BY 1`
