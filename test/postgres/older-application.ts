import pg from 'pg'
import { OLDER_START_UP } from './older-database.js'

// The older application as the database sees it: its statements, with UTC times that do not say so.

const MAX_FAILURES = 5
const LOCK_MS = 15 * 60_000

export type SignIn = 'signed in' | 'wrong password' | 'locked' | 'inactive' | 'unknown'

/** A connection as it has them: a timestamp without a zone stays text, to be compared as such. */
export async function connectOlder(url: string): Promise<pg.Client> {
  const types: pg.CustomTypesConfig = {
    getTypeParser: (oid, format) =>
      oid === pg.types.builtins.TIMESTAMP
        ? (value: string) => value
        : pg.types.getTypeParser(oid, format as 'text'),
  }
  const client = new pg.Client({ connectionString: url, types })
  await client.connect()
  return client
}

/** The wall clock in UTC, without a zone: what `datetime.utcnow()` gives. */
export function naive(date: Date): string {
  return date.toISOString().replace('T', ' ').replace('Z', '')
}

export async function startUp(client: pg.Client): Promise<void> {
  for (const statement of OLDER_START_UP) await client.query(statement)
}

export async function addUser(client: pg.Client, username: string, hash: string, now: Date): Promise<void> {
  await client.query(
    'INSERT INTO auth_users (username, password_hash, must_change_password, password_changed_at) VALUES ($1, $2, $3, $4)',
    [username, hash, false, naive(now)],
  )
}

/** With its lock after five failures; `hash` is what a right password would have. */
export async function signIn(client: pg.Client, username: string, hash: string, now: Date): Promise<SignIn> {
  const { rows } = await client.query<{
    id: number
    password_hash: string
    is_active: boolean
    failed_login_attempts: number
    locked_until: string | null
  }>(
    `SELECT id, username, password_hash, is_active, failed_login_attempts, locked_until, must_change_password,
       password_changed_at FROM auth_users WHERE username = $1`,
    [username],
  )
  const [user] = rows
  if (user === undefined) return 'unknown'
  if (!user.is_active) return 'inactive'
  if (user.locked_until !== null && user.locked_until > naive(now)) return 'locked'
  if (user.password_hash !== hash) {
    const failures = user.failed_login_attempts + 1
    const until = failures >= MAX_FAILURES ? naive(new Date(now.getTime() + LOCK_MS)) : null
    await client.query(
      'UPDATE auth_users SET failed_login_attempts = $1, locked_until = $2, updated_at = $3 WHERE id = $4',
      [failures, until, naive(now), user.id],
    )
    return 'wrong password'
  }
  await client.query(
    `UPDATE auth_users SET failed_login_attempts = 0, locked_until = NULL, last_login = $1, updated_at = $1
      WHERE id = $2`,
    [naive(now), user.id],
  )
  return 'signed in'
}

export async function changePassword(
  client: pg.Client,
  username: string,
  hash: string,
  now: Date,
): Promise<number> {
  const { rowCount } = await client.query(
    `UPDATE auth_users SET password_hash = $1, password_changed_at = $2, must_change_password = FALSE, updated_at = $2
      WHERE username = $3`,
    [hash, naive(now), username],
  )
  return rowCount ?? 0
}

export async function openSession(
  client: pg.Client,
  userId: number,
  token: string,
  expires: Date,
): Promise<void> {
  await client.query(
    `INSERT INTO auth_sessions (session_token, user_id, expires_at, ip_address, user_agent)
     VALUES ($1, $2, $3, $4, $5)`,
    [token, userId, naive(expires), '192.0.2.7', 'Firefox'],
  )
}

/** The user's name behind a session that has not expired; it counts as activity. */
export async function validateSession(client: pg.Client, token: string, now: Date): Promise<string | null> {
  const { rows } = await client.query<{ id: number; username: string; is_active: boolean }>(
    `SELECT s.*, u.username, u.is_active FROM auth_sessions s JOIN auth_users u ON s.user_id = u.id
      WHERE s.session_token = $1 AND s.expires_at > $2`,
    [token, naive(now)],
  )
  const [session] = rows
  if (session === undefined || !session.is_active) return null
  await client.query('UPDATE auth_sessions SET last_activity = $1 WHERE id = $2', [naive(now), session.id])
  return session.username
}

export async function cleanUpSessions(client: pg.Client, now: Date): Promise<number> {
  return (await client.query('DELETE FROM auth_sessions WHERE expires_at < $1', [naive(now)])).rowCount ?? 0
}

export async function storeToken(
  client: pg.Client,
  userId: number,
  provider: string,
  access: string,
  refresh: string | null,
): Promise<void> {
  await client.query(
    `INSERT INTO auth_oauth_tokens (user_id, provider, access_token, refresh_token, expires_at)
     VALUES ($1, $2, $3, $4, $5)
     ON CONFLICT (user_id, provider) DO UPDATE SET access_token = EXCLUDED.access_token,
       refresh_token = EXCLUDED.refresh_token, expires_at = EXCLUDED.expires_at`,
    [userId, provider, access, refresh, '2100-01-01 00:00:00'],
  )
}
