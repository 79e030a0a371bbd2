import { type Compilable, CompiledQuery } from 'kysely'
import { AppError } from '../errors.js'
import { asApp } from './as-caller.js'
import type { Db } from './database.js'

/** Throws `unavailable` for a database that is not migrated, `invalid_request` with what makes it unsafe to work on. */
export async function assertSafe(db: Db): Promise<void> {
  const faults = (await asApp(db, safetyFaults())).map(({ fault }) => fault)
  const missing = faults.filter((fault) => fault.endsWith('run the migrations'))
  if (missing.length > 0) {
    throw new AppError('unavailable', 'The database is not migrated: run the command migrate.', {
      cause: new Error(missing.join('; ')),
    })
  }
  if (faults.length > 0) {
    throw new AppError(
      'invalid_request',
      `This database is not safe to serve from:\n  ${faults.join('\n  ')}`,
    )
  }
}

/**
 * What makes this connection or database unsafe to serve from, a sentence a row; no row means safe.
 * Superusers, BYPASSRLS roles and owners are not bound by policies (PostgreSQL manual, 5.9), and a view
 * reads with its owner's rights. For asApp.
 */
export function safetyFaults(): Compilable<{ fault: string }> {
  return { compile: () => CompiledQuery.raw(SAFETY) as CompiledQuery<{ fault: string }> }
}

const SAFETY = `
select format('the role %s is a superuser or bypasses row-level security', rolname) as fault
  from pg_roles
 where (rolname = current_user or rolname like 'gary\\_%') and not rolcanlogin and (rolsuper or rolbypassrls)
    or rolname = current_user and (rolsuper or rolbypassrls)
union all
select format('the role %s is a member of %s', member.rolname, granted.rolname)
  from pg_auth_members m
  join pg_roles member on member.oid = m.member
  join pg_roles granted on granted.oid = m.roleid
 where member.rolname in ('gary_app', 'gary_caller', 'gary_jobs', 'gary_analyst', 'gary_reporting')
union all
select format('the role %s owns the table %s', current_user, c.relname)
  from pg_class c
 where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p')
   and c.relowner = (select oid from pg_roles where rolname = current_user)
union all
select format('the table %s lacks row-level security, FORCE or a policy', c.relname)
  from pg_class c join pg_roles o on o.oid = c.relowner
 where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p')
   -- While the older application runs beside this one, its login may own the three tables that were its own.
   and (o.rolname = 'gary_owner' or c.relname in ('auth_users', 'auth_sessions', 'auth_oauth_tokens'))
   and not (c.relrowsecurity and c.relforcerowsecurity
            and (c.relispartition or exists (select from pg_policy p where p.polrelid = c.oid)))
union all
select format('a service role may use the partition %s beside its parent', c.relname)
  from pg_class c join pg_roles o on o.oid = c.relowner
  join pg_roles r on r.rolname in ('gary_app', 'gary_caller', 'gary_jobs', 'gary_analyst', 'gary_reporting')
 where c.relispartition and c.relkind in ('r', 'p') and o.rolname = 'gary_owner' and not r.rolsuper
   and (has_table_privilege(r.oid, c.oid, 'DELETE, TRUNCATE')
        or has_any_column_privilege(r.oid, c.oid, 'SELECT, INSERT, UPDATE'))
union all
select format('the view reports.%s is not owned by gary_reporting', c.relname)
  from pg_class c join pg_roles o on o.oid = c.relowner
 where c.relnamespace = (select oid from pg_namespace where nspname = 'reports') and c.relkind in ('v', 'm')
   and o.rolname <> 'gary_reporting'
union all
select format('the table %s is missing: run the migrations', name)
  from unnest(array['auth_users', 'auth_sessions', 'config_entries', 'audit_events']) as name
 where to_regclass('public.' || name) is null`
