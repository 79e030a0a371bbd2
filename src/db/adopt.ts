import type pg from 'pg'
import { sealOAuthToken } from '../security/oauth-secrets.js'
import type { KeyRing } from '../security/secret-box.js'
import { type NamedUser, chooseOwner, describeClashes, foldNames, quoted } from './adopted-names.js'
import { countOlderTokens, inTransaction, pastPolicies, readAdoption, recordStep } from './adopted-tables.js'
import { OLDER_NAMES, type OlderTables } from './older-tables.js'
import { usernameKey } from './users.js'

export interface AdoptionSettings {
  /** AUTH_LOGIN: who of the adopted users becomes the owner. */
  ownerName: string | undefined
  /** ENCRYPTION_KEY: seals OAuth tokens; null leaves them where they are. */
  ring: KeyRing | null
}

/** What the operator is to hear, once it is committed. */
export interface Telling {
  said: string[]
  warned: string[]
}

/** Lets the older application's login past row-level security, as long as both applications run. */
export const SIDE_BY_SIDE_POLICY = 'older_application'

const SIDE_BY_SIDE =
  'both applications run side by side until `node dist/main.js adopt --finish`; to go back, start the older one again'
const TOKENS_AT_A_TIME = 1000

/**
 * Copies the rows of the schema `legacy` into the new, empty tables, names the owner, lets the older application
 * go on and writes the audit event: the end of the transaction that moveOlderTables began and that the migrations
 * are part of. Does not commit.
 */
export async function copyOlderTables(
  client: pg.ClientBase,
  { owner: login, granted }: OlderTables,
  { ownerName, ring }: AdoptionSettings,
): Promise<Telling> {
  const { owner, clashes, keptOut, counts } = await pastPolicies(client, async () => {
    const { users, ...copied } = await copyUsers(client, ownerName)
    const sessions = await copySessions(client)
    const found = await countOlderTokens(client)
    const tokens = ring === null ? 0 : await copyTokens(client, ring)
    for (const name of OLDER_NAMES) await moveIdentityOn(client, name)
    const complete = ring !== null || found === 0
    await client.query('INSERT INTO public.auth_adoption (oauth_tokens) VALUES ($1)', [complete])
    return { ...copied, counts: { users, ...sessions, tokens, tokens_left: complete ? 0 : found } }
  })
  await letOlderApplicationIn(client, login)
  await recordStep(client, 'adoption.complete', 'Tables of the older application taken over', {
    ...counts,
    name_clashes: clashes.flat().length,
    owner_id: owner?.id ?? null,
  })

  const warned = await timeZoneWarnings(client, login)
  if (owner === null && counts.users > 0) {
    warned.push(
      "no user is active, so nobody became the owner: UPDATE auth_users SET is_active = true, role = 'owner' WHERE id = …",
    )
  }
  if (keptOut.length > 0)
    warned.push(
      `is_active was NULL, which the older application takes for inactive, and is now false for ${keptOut.join(', ')}`,
    )
  if (clashes.length > 0) warned.push(describeClashes(clashes))
  if (counts.tokens_left > 0) warned.push(tokensLeftOut(counts.tokens_left))
  if (granted.length > 0)
    warned.push(`these had rights on the older tables, which do not come along: ${granted.join(', ')}`)
  const said = [
    `took over ${counts.users} users, ${counts.sessions} sessions (${counts.sessions_left} that had ended stay ` +
      `behind) and ${counts.tokens} OAuth tokens; the older tables are kept as they were in the schema legacy`,
    ...(owner === null ? [] : [ownerLine(owner.username, ownerName)]),
    SIDE_BY_SIDE,
  ]
  return { said, warned }
}

/**
 * What a later `migrate` does for an adoption: OAuth tokens that were left out come along as soon as there is a key
 * for them, and the operator is reminded while both applications run. Nothing where nothing was taken over.
 */
export async function continueAdoption(client: pg.ClientBase, ring: KeyRing | null): Promise<Telling> {
  const telling: Telling = { said: [], warned: [] }
  const adoption = await readAdoption(client)
  if (adoption === null) return telling
  if (adoption.tokensLeft > 0 && ring !== null) {
    const tokens = await inTransaction(client, async () => {
      const tokens = await pastPolicies(client, async () => {
        await client.query('UPDATE public.auth_adoption SET oauth_tokens = true')
        return await copyTokens(client, ring)
      })
      await recordStep(client, 'adoption.tokens', 'OAuth tokens of the older application taken over', {
        tokens,
      })
      return tokens
    })
    telling.said.push(`took over ${tokens} OAuth tokens that had been left out`)
  } else if (adoption.tokensLeft > 0) telling.warned.push(tokensLeftOut(adoption.tokensLeft))
  if (adoption.finishedAt === null) telling.said.push(SIDE_BY_SIDE)
  return telling
}

interface CopiedUsers {
  users: number
  owner: { id: number; username: string } | null
  clashes: NamedUser[][]
  /** Names of those whose is_active was NULL. */
  keptOut: string[]
}

async function copyUsers(client: pg.ClientBase, ownerName: string | undefined): Promise<CopiedUsers> {
  const { rows } = await client.query<{ id: number; username: string; active: boolean; unsaid: boolean }>(
    `SELECT id, username, coalesce(is_active, false) AS active, is_active IS NULL AS unsaid
       FROM legacy.auth_users ORDER BY id`,
  )
  const { keys, clashes } = foldNames(rows.map(({ id, username }) => ({ id, username, username_key: null })))
  const owner = chooseOwner(rows, ownerName)
  await client.query(COPY_USERS, [[...keys.keys()], [...keys.values()], owner?.id ?? null])
  const keptOut = rows.filter(({ unsaid }) => unsaid).map(({ username }) => quoted(username))
  return { users: rows.length, owner, clashes, keptOut }
}

async function copySessions(client: pg.ClientBase): Promise<{ sessions: number; sessions_left: number }> {
  const { rowCount } = await client.query(COPY_SESSIONS)
  const { rows } = await client.query<{ n: number }>('SELECT count(*)::int AS n FROM legacy.auth_sessions')
  const sessions = rowCount ?? 0
  return { sessions, sessions_left: (rows[0]?.n ?? 0) - sessions }
}

interface OlderToken {
  id: number
  user_id: number
  provider: string
  access_token: string
  refresh_token: string | null
}

/** One that the older application has stored again meanwhile is newer and stays; so does the absence of a deleted user. */
async function copyTokens(client: pg.ClientBase, ring: KeyRing): Promise<number> {
  let copied = 0
  for (let after: number | undefined = -1; after !== undefined;) {
    const { rows }: pg.QueryResult<OlderToken> = await client.query<OlderToken>(
      `SELECT o.id, o.user_id, o.provider, o.access_token, o.refresh_token
         FROM legacy.auth_oauth_tokens o JOIN public.auth_users u ON u.id = o.user_id
        WHERE o.id > $1 ORDER BY o.id LIMIT ${TOKENS_AT_A_TIME}`,
      [after],
    )
    const sealed = (column: 'access_token' | 'refresh_token') =>
      rows.map(({ user_id: userId, provider, [column]: token }) =>
        token === null ? null : sealOAuthToken(ring, { userId, provider, column }, token),
      )
    const { rowCount } = await client.query(COPY_TOKENS, [
      rows.map(({ id }) => id),
      sealed('access_token'),
      sealed('refresh_token'),
    ])
    copied += rowCount ?? 0
    after = rows.at(-1)?.id
  }
  return copied
}

/** Also past the ids of rows deleted long ago: the audit trail and other programs may know them. */
async function moveIdentityOn(client: pg.ClientBase, name: string): Promise<void> {
  await client.query(
    `SELECT setval(pg_get_serial_sequence('public.${name}', 'id'), greatest((SELECT max(id) FROM legacy.${name}),
       pg_sequence_last_value(pg_get_serial_sequence('legacy.${name}', 'id')::regclass)))`,
  )
}

/**
 * A superuser needs nothing. Any other login needs the policies, and ownership for CREATE INDEX IF NOT EXISTS, which
 * asks for it even where the index is there. Owning these three tables is no more than it had; as a member of
 * gary_owner it would own the audit trail and the configuration too. The login that migrates is one already.
 */
async function letOlderApplicationIn(client: pg.ClientBase, login: string): Promise<void> {
  const { rows } = await client.query<{ superuser: boolean; owns: boolean }>(
    "SELECT rolsuper AS superuser, pg_has_role(oid, 'gary_owner', 'USAGE') AS owns FROM pg_roles WHERE rolname = $1",
    [login],
  )
  const [{ superuser, owns } = { superuser: false, owns: false }] = rows
  if (superuser) return
  const role = client.escapeIdentifier(login)
  for (const name of OLDER_NAMES) {
    await client.query(
      `CREATE POLICY ${SIDE_BY_SIDE_POLICY} ON public.${name} TO ${role} USING (true) WITH CHECK (true)`,
    )
    if (!owns) await client.query(`ALTER TABLE public.${name} OWNER TO ${role}`)
  }
}

async function timeZoneWarnings(client: pg.ClientBase, login: string): Promise<string[]> {
  const { rows } = await client.query<{ zone: string; remedy: string }>(FOREIGN_TIME_ZONE, [login])
  return rows.map(
    ({ zone, remedy }) =>
      `the default TimeZone of this database is ${zone}, not UTC: the older application writes UTC without saying ` +
      `so, and it would be read as ${zone}. Before it goes on: ${remedy}; and start it again`,
  )
}

function ownerLine(owner: string, name: string | undefined): string {
  const isNamed = name !== undefined && usernameKey(owner) === usernameKey(name)
  return `the owner is ${quoted(owner)}, ${isNamed ? 'named by AUTH_LOGIN' : 'the first active user'}`
}

function tokensLeftOut(count: number): string {
  return (
    `${count} OAuth tokens are left out, because nothing seals them: set ENCRYPTION_KEY and run migrate again, ` +
    'before the schema legacy is dropped'
  )
}

/** What was NULL gets the new column's default; the older application's times are UTC without a zone. */
const COPY_USERS = `
INSERT INTO public.auth_users (id, username, password_hash, is_active, last_login, created_at, updated_at,
  failed_login_attempts, locked_until, password_changed_at, must_change_password, username_key, role)
OVERRIDING SYSTEM VALUE
SELECT o.id, o.username, o.password_hash, coalesce(o.is_active, false), o.last_login AT TIME ZONE 'UTC',
       coalesce(o.created_at AT TIME ZONE 'UTC', now()), coalesce(o.updated_at AT TIME ZONE 'UTC', now()),
       coalesce(o.failed_login_attempts, 0), o.locked_until, coalesce(o.password_changed_at AT TIME ZONE 'UTC', now()),
       coalesce(o.must_change_password, false), k.username_key, CASE o.id WHEN $3 THEN 'owner' ELSE 'user' END
  FROM legacy.auth_users o
  LEFT JOIN unnest($1::integer[], $2::text[]) AS k (id, username_key) ON k.id = o.id`

/** Tokens as hashToken makes them. When the password was given is when the session began. */
const COPY_SESSIONS = `
INSERT INTO public.auth_sessions (id, session_token, user_id, created_at, expires_at, last_activity, ip_address,
  user_agent, authenticated_at)
OVERRIDING SYSTEM VALUE
SELECT o.id, encode(sha256(convert_to(o.session_token, 'UTF8')), 'hex'), o.user_id,
       coalesce(o.created_at AT TIME ZONE 'UTC', now()), o.expires_at AT TIME ZONE 'UTC',
       coalesce(o.last_activity AT TIME ZONE 'UTC', now()), o.ip_address, o.user_agent,
       coalesce(o.created_at, 'epoch') AT TIME ZONE 'UTC'
  FROM legacy.auth_sessions o
 WHERE o.user_id IS NOT NULL AND o.expires_at > now() AT TIME ZONE 'UTC'`

const COPY_TOKENS = `
INSERT INTO public.auth_oauth_tokens (id, user_id, provider, access_token, refresh_token, expires_at, created_at)
OVERRIDING SYSTEM VALUE
SELECT o.id, o.user_id, o.provider, s.access_token, s.refresh_token, o.expires_at AT TIME ZONE 'UTC',
       coalesce(o.created_at AT TIME ZONE 'UTC', now())
  FROM legacy.auth_oauth_tokens o
  JOIN unnest($1::integer[], $2::text[], $3::text[]) AS s (id, access_token, refresh_token) ON s.id = o.id
ON CONFLICT (user_id, provider) DO NOTHING`

/** What a connection of the login gets when it says nothing itself, where that is not UTC all year round. */
const FOREIGN_TIME_ZONE = `
WITH found AS (
  SELECT coalesce(
    (SELECT substr(setting, strpos(setting, '=') + 1)
       FROM pg_db_role_setting s, unnest(s.setconfig) AS setting
      WHERE lower(setting) LIKE 'timezone=%'
        AND s.setrole IN (0, (SELECT oid FROM pg_roles WHERE rolname = $1))
        AND s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
      ORDER BY s.setrole = 0, s.setdatabase = 0 LIMIT 1),
    (SELECT reset_val FROM pg_settings WHERE name = 'TimeZone')) AS zone
)
SELECT zone, format('ALTER ROLE %I IN DATABASE %I SET timezone TO ''UTC''', $1::text, current_database()) AS remedy
  FROM found
 WHERE timestamp '2026-01-01' AT TIME ZONE zone <> timestamptz '2026-01-01 00:00Z'
    OR timestamp '2026-07-01' AT TIME ZONE zone <> timestamptz '2026-07-01 00:00Z'`
