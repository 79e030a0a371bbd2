import { randomBytes } from 'node:crypto'
import pg, { type ClientConfig } from 'pg'
import { AppError } from '../errors.js'
import { BASE_ROLE, budgetsFor } from './pool.js'

/** What the service's statements become; the login may SET them and inherits none. */
const ROLES = [BASE_ROLE, 'gary_caller', 'gary_jobs', 'gary_analyst']

/** An administrator's login, or one with other roles, is not to be turned into the service's. */
const FOUND = `
select current_setting('server_version_num')::int as version,
       exists (select from pg_roles where rolname = $1) as known,
       exists (select from pg_roles
                where rolname = $1 and (rolsuper or rolbypassrls or rolcreaterole or rolcreatedb or rolreplication))
         or exists (select from pg_auth_members m
                     where m.member = (select oid from pg_roles where rolname = $1)
                       and pg_get_userbyid(m.roleid) <> all ($2)) as more`

/**
 * Makes (or renews) a login that can become the service's roles and nothing else; role and limits are its
 * own settings, so that it works behind a pooler that takes no startup parameters. Answers with a fresh
 * password. Needs a login that may create roles. `timeoutMs` as DATABASE_TIMEOUT.
 */
export async function createLogin(
  connection: ClientConfig,
  name: string,
  timeoutMs: number,
): Promise<{ password: string }> {
  if (!/^[a-z_][a-z0-9_]{0,62}$/.test(name) || name.startsWith('gary_') || name.startsWith('pg_')) {
    throw new AppError(
      'invalid_request',
      'a login is a-z, 0-9 and _, at most 63, and begins neither with gary_ nor with pg_',
    )
  }
  const password = randomBytes(24).toString('base64url')
  const budgets = budgetsFor(timeoutMs)
  const settings: Record<string, string | number> = {
    role: BASE_ROLE,
    statement_timeout: budgets.statementMs,
    lock_timeout: budgets.lockMs,
    idle_in_transaction_session_timeout: budgets.idleInTransactionMs,
    TimeZone: 'UTC',
  }
  const client = new pg.Client({ ...connection, connectionTimeoutMillis: budgets.acquireMs })
  client.on('error', () => {})
  await client.connect()
  try {
    const login = client.escapeIdentifier(name)
    const { rows } = await client.query<{ version: number; known: boolean; more: boolean }>(FOUND, [
      name,
      ROLES,
    ])
    const { version, known, more } = rows[0] ?? { version: 0, known: false, more: false }
    if (more) {
      throw new AppError(
        'conflict',
        `the login ${name} exists and may more than the service: choose another name`,
      )
    }
    const grant = version >= 160_000 ? ' with inherit false, set true' : ''
    const statements = [
      'begin',
      // A new role may nothing more by default, and only a superuser may ALTER what superusers are.
      `${known ? 'alter' : 'create'} role ${login} login noinherit password ${client.escapeLiteral(password)}`,
      ...ROLES.map((role) => `grant ${role} to ${login}${grant}`),
      ...Object.entries(settings).map(
        ([setting, value]) => `alter role ${login} set ${setting} = ${client.escapeLiteral(String(value))}`,
      ),
      'commit',
    ]
    await client.query(statements.join(';\n'))
    return { password }
  } finally {
    await client.end()
  }
}
