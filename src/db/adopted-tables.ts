import type pg from 'pg'
import type { JsonObject } from '../security/json-tree.js'
import { NO_REQUEST, recordSystemEvent } from './audit.js'
import { createDatabase } from './database.js'
import { MigrationError } from './migration-error.js'
import { OLDER_NAMES } from './older-tables.js'

const TABLES = [...OLDER_NAMES, 'auth_adoption'].map((name) => `public.${name}`)

/** Only compiles: what it compiles runs on the migrating connection. */
const compiler = createDatabase({ connect: () => Promise.reject(new Error('not connected')) })

export interface Adoption {
  /** RFC 3339, in UTC, as is the next. */
  adoptedAt: string
  finishedAt: string | null
  /** OAuth tokens that are in the schema legacy and not here, as far as this login may see that. */
  tokensLeft: number
}

/** The adoption of this database; null when nothing was taken over here, or nothing is migrated. */
export async function readAdoption(client: pg.ClientBase): Promise<Adoption | null> {
  const there = await client.query<{ adoption: string | null; tokens: string | null }>(
    `SELECT to_regclass('public.auth_adoption') AS adoption,
            (SELECT oid FROM pg_class WHERE relnamespace = to_regnamespace('legacy') AND relname = 'auth_oauth_tokens'
                AND has_schema_privilege(relnamespace, 'USAGE') AND has_table_privilege(oid, 'SELECT')) AS tokens`,
  )
  const [found] = there.rows
  if (found === undefined || found.adoption === null) return null
  const { rows } = await asApp(client, () =>
    client.query<{ adopted: string; finished: string | null; complete: boolean }>(
      `SELECT to_char(adopted_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS adopted,
              to_char(finished_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS finished,
              oauth_tokens AS complete
         FROM public.auth_adoption`,
    ),
  )
  const [row] = rows
  if (row === undefined) return null
  const tokensLeft = row.complete || found.tokens === null ? 0 : await countOlderTokens(client)
  return { adoptedAt: row.adopted, finishedAt: row.finished, tokensLeft }
}

/** The tokens in the schema legacy that belong to somebody. */
export async function countOlderTokens(client: pg.ClientBase): Promise<number> {
  const { rows } = await client.query<{ n: number }>(
    'SELECT count(*)::int AS n FROM legacy.auth_oauth_tokens WHERE user_id IS NOT NULL',
  )
  return rows[0]?.n ?? 0
}

/**
 * Work on all rows of the adopted tables, as their owner: FORCE binds an owner who is no superuser, so it is taken
 * off and put back in the one transaction, and nobody finds it off. A policy that would still hide rows is an error
 * (42501) and not a smaller result. Rejects with a MigrationError `refused` when the tables hold code of another
 * login, which would run with our rights.
 */
export async function pastPolicies<T>(client: pg.ClientBase, work: () => Promise<T>): Promise<T> {
  await client.query(forceOnAll('NO FORCE'))
  await refuseForeignCode(client)
  await client.query('SET LOCAL row_security = off')
  const result = await work()
  await client.query('SET LOCAL row_security = on')
  await client.query(forceOnAll('FORCE'))
  return result
}

/** One transaction, in which a lock is waited for three seconds at most (55P03). */
export async function inTransaction<T>(client: pg.ClientBase, work: () => Promise<T>): Promise<T> {
  await client.query("BEGIN; SET LOCAL lock_timeout = '3s'")
  try {
    const result = await work()
    await client.query('COMMIT')
    return result
  } catch (error) {
    await client.query('ROLLBACK').catch(() => {}) // the first error is the one to tell
    throw error
  }
}

/** The audit event of a step; to be called in the transaction of the step, outside pastPolicies. */
export async function recordStep(
  client: pg.ClientBase,
  action: string,
  message: string,
  metadata: JsonObject,
): Promise<void> {
  const event = {
    correlation: NO_REQUEST,
    eventType: 'system_event',
    level: 'info',
    target: 'adoption',
  } as const
  const { sql, parameters } = recordSystemEvent(compiler, { ...event, action, message, metadata }).compile()
  await asApp(client, () => client.query(sql, [...parameters]))
}

/** As the role that may read users and append to the audit trail; rolled back with its transaction. */
export async function asApp<T>(client: pg.ClientBase, work: () => Promise<T>): Promise<T> {
  await client.query('SET ROLE gary_app')
  try {
    return await work()
  } finally {
    await client.query('SET ROLE NONE').catch(() => {}) // a failed transaction ends with the role it began with
  }
}

/** The older application's login may own the tables; whoever owns a table may have others run a function on it. */
async function refuseForeignCode(client: pg.ClientBase): Promise<void> {
  const { rows } = await client.query<{ found: string }>(FOREIGN_CODE, [TABLES])
  if (rows.length === 0) return
  const found = rows.map((row) => row.found).join(', ')
  throw new MigrationError(
    'refused',
    `Nothing was changed, for this would run with the rights of this login: ${found}`,
  )
}

/** What calls a function of an ordinary login's; policies do not, for whoever is past them. */
const FOREIGN_CODE = `
SELECT DISTINCT format('%s, which calls the function %s of %s', pg_describe_object(uses.classid, uses.objid, uses.objsubid),
                       p.oid::regprocedure, o.rolname) AS found
  FROM pg_depend part
  JOIN pg_depend uses ON uses.classid = part.classid AND uses.objid = part.objid AND uses.refclassid = 'pg_proc'::regclass
  JOIN pg_proc p ON p.oid = uses.refobjid
  JOIN pg_roles o ON o.oid = p.proowner
 WHERE part.classid <> 'pg_policy'::regclass AND part.refclassid = 'pg_class'::regclass AND part.refobjid = ANY ($1::text[]::regclass[])
   AND NOT o.rolsuper AND o.rolname NOT IN (current_user, 'gary_owner')
 ORDER BY 1`

function forceOnAll(force: 'FORCE' | 'NO FORCE'): string {
  return TABLES.map((table) => `ALTER TABLE ${table} ${force} ROW LEVEL SECURITY`).join('; ')
}
