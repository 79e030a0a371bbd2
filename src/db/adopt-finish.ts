import type pg from 'pg'
import { isSealedOAuthToken, sealOAuthToken } from '../security/oauth-secrets.js'
import type { KeyRing } from '../security/secret-box.js'
import { SIDE_BY_SIDE_POLICY } from './adopt.js'
import { type NamedUser, describeClashes, foldNames, quoted } from './adopted-names.js'
import { asApp, inTransaction, pastPolicies, readAdoption, recordStep } from './adopted-tables.js'
import { MigrationError } from './migration-error.js'
import { OLDER_NAMES } from './older-tables.js'

const NOTHING = 'nothing was taken over in this database: there is nothing to finish'
const TOKENS_LEFT = 'OAuth tokens are in the schema legacy only: set ENCRYPTION_KEY and run migrate'
/** Without CASCADE: what else may be in that schema is not ours. */
const DROP_LEGACY =
  'DROP TABLE legacy.auth_oauth_tokens, legacy.auth_sessions, legacy.auth_users; DROP SCHEMA legacy'

/** Made by every start of the older application; the migrations have indexes of their own for the same. */
const OLDER_INDEXES = [
  'idx_auth_users_username',
  'idx_auth_sessions_token',
  'idx_auth_sessions_user',
  'idx_auth_sessions_expires',
]

/** The state of the adoption for the operator, a sentence each. */
export async function describeAdoption(client: pg.ClientBase): Promise<string[]> {
  const adoption = await readAdoption(client)
  if (adoption === null) return ['nothing was taken over in this database']
  const { users, formats } = await asApp(client, async () => ({
    users: await allNames(client),
    formats: await client.query<{ format: string; n: number }>(FORMATS),
  }))
  const { keys, clashes } = foldNames(users)
  const fresh = users.filter(({ id }) => keys.has(id)).map(({ username }) => quoted(username))
  const lines = [
    `taken over at ${adoption.adoptedAt}`,
    adoption.finishedAt === null
      ? 'both applications run side by side: `node dist/main.js adopt --finish` ends that'
      : `finished at ${adoption.finishedAt}: the older application must not be started again`,
    `password hashes: ${formats.rows.map(({ format, n }) => `${n} ${format}`).join(', ') || 'none'}`,
  ]
  if (fresh.length > 0)
    lines.push(`without a key until it is finished, made by the older application: ${fresh.join(', ')}`)
  if (clashes.length > 0) lines.push(describeClashes(clashes))
  if (adoption.tokensLeft > 0) lines.push(`${adoption.tokensLeft} ${TOKENS_LEFT}`)
  return lines
}

/**
 * Ends the time side by side, in one transaction: what the older application wrote meanwhile becomes as if this
 * service had (names are found without case, session tokens hashed, OAuth tokens sealed), and its login has no
 * access any more. Says what it did, a sentence each; the same when it is finished already or there is nothing
 * to finish. Rejects with a MigrationError `refused` when tokens are there to be sealed and `ring` is null.
 */
export async function finishAdoption(client: pg.ClientBase, ring: KeyRing | null): Promise<string[]> {
  const found = await readAdoption(client)
  if (found === null) return [NOTHING]
  if (found.finishedAt !== null) return [`finished already, at ${found.finishedAt}`]
  const { clashes, counts } = await inTransaction(client, async () => {
    const done = await pastPolicies(client, async () => {
      const { keys, clashes } = foldNames(await allNames(client))
      await client.query(SET_KEYS, [[...keys.keys()], [...keys.values()]])
      const sessions = await client.query(HASH_TOKENS)
      const tokens = await sealClearTokens(client, ring)
      await client.query('UPDATE public.auth_adoption SET finished_at = now()')
      return { clashes, counts: { users: keys.size, sessions: sessions.rowCount ?? 0, tokens } }
    })
    await shutOlderApplicationOut(client)
    await recordStep(client, 'adoption.finish', 'Adoption finished', done.counts)
    return done
  })
  return [
    `finished: ${counts.users} users, ${counts.sessions} sessions and ${counts.tokens} OAuth tokens that the older ` +
      'application wrote meanwhile are now as this service writes them',
    ...(clashes.length === 0 ? [] : [describeClashes(clashes)]),
    'from now on a password is stored as bcrypt at the next sign-in, which the older application cannot read: it must ' +
      'not be started again',
    ...(found.tokensLeft === 0
      ? []
      : [`${found.tokensLeft} ${TOKENS_LEFT}, and only then drop the older tables`]),
    `when the older tables are no longer needed: ${DROP_LEGACY}`,
  ]
}

async function allNames(client: pg.ClientBase): Promise<NamedUser[]> {
  return (
    await client.query<NamedUser>('SELECT id, username, username_key FROM public.auth_users ORDER BY id')
  ).rows
}

interface StoredToken {
  id: number
  user_id: number
  provider: string
  access_token: string
  refresh_token: string | null
}

async function sealClearTokens(client: pg.ClientBase, ring: KeyRing | null): Promise<number> {
  const { rows } = await client.query<StoredToken>(
    'SELECT id, user_id, provider, access_token, refresh_token FROM public.auth_oauth_tokens',
  )
  const clear = rows.filter((row) => isClear(row.access_token) || isClear(row.refresh_token))
  if (clear.length === 0) return 0
  if (ring === null) {
    throw new MigrationError(
      'refused',
      `Not finished: the older application stored ${clear.length} OAuth tokens in the clear. Set ENCRYPTION_KEY, which seals them.`,
    )
  }
  for (const row of clear) {
    const sealed = (column: 'access_token' | 'refresh_token') =>
      isClear(row[column])
        ? sealOAuthToken(ring, { userId: row.user_id, provider: row.provider, column }, row[column])
        : row[column]
    await client.query(
      'UPDATE public.auth_oauth_tokens SET access_token = $2, refresh_token = $3 WHERE id = $1',
      [row.id, sealed('access_token'), sealed('refresh_token')],
    )
  }
  return clear.length
}

function isClear(stored: string | null): stored is string {
  return stored !== null && !isSealedOAuthToken(stored)
}

async function shutOlderApplicationOut(client: pg.ClientBase): Promise<void> {
  for (const name of OLDER_NAMES) {
    await client.query(`DROP POLICY IF EXISTS ${SIDE_BY_SIDE_POLICY} ON public.${name}`)
    await client.query(`ALTER TABLE public.${name} OWNER TO gary_owner`)
  }
  const { rows } = await client.query<{ index: string }>(
    `SELECT indexrelid::regclass AS index FROM pg_index
      WHERE indrelid IN ('public.auth_users'::regclass, 'public.auth_sessions'::regclass)
        AND indexrelid IN (SELECT oid FROM pg_class WHERE relname = ANY ($1))`,
    [OLDER_INDEXES],
  )
  for (const { index } of rows) await client.query(`DROP INDEX ${index}`)
}

const SET_KEYS = `
UPDATE public.auth_users u SET username_key = k.username_key
  FROM unnest($1::integer[], $2::text[]) AS k (id, username_key) WHERE k.id = u.id`

/** As hashToken does. What has the form of a hash already is one, or opens nothing. */
const HASH_TOKENS = `
UPDATE public.auth_sessions SET session_token = encode(sha256(convert_to(session_token, 'UTF8')), 'hex')
 WHERE session_token !~ '^[0-9a-f]{64}$'`

/** Never a part of a hash whose format is unknown: it may be a password. */
const FORMATS = `
SELECT CASE WHEN password_hash ~ '^\\$2[aby]\\$' THEN 'bcrypt' WHEN password_hash LIKE 'scrypt:%' THEN 'scrypt'
            WHEN password_hash LIKE 'pbkdf2:%' THEN 'pbkdf2' WHEN password_hash = '!' THEN 'without a password'
            ELSE 'of an unknown format' END AS format, count(*)::int AS n
  FROM public.auth_users GROUP BY 1 ORDER BY 1`
