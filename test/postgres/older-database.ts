import { pbkdf2Sync, scryptSync } from 'node:crypto'
import * as bcrypt from '@node-rs/bcrypt'
import type pg from 'pg'

/** What the older application runs at every start. */
export const OLDER_START_UP: readonly string[] = [
  `CREATE TABLE IF NOT EXISTS auth_users (
    id SERIAL PRIMARY KEY,
    username VARCHAR(255) UNIQUE NOT NULL,
    password_hash VARCHAR(512) NOT NULL,
    is_active BOOLEAN DEFAULT TRUE,
    last_login TIMESTAMP NULL,
    created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP,
    updated_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP,
    failed_login_attempts INTEGER DEFAULT 0,
    locked_until TIMESTAMP NULL,
    password_changed_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP,
    must_change_password BOOLEAN DEFAULT FALSE)`,
  `CREATE TABLE IF NOT EXISTS auth_sessions (
    id SERIAL PRIMARY KEY,
    session_token VARCHAR(512) UNIQUE NOT NULL,
    user_id INTEGER REFERENCES auth_users(id) ON DELETE CASCADE,
    created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP,
    expires_at TIMESTAMP NOT NULL,
    last_activity TIMESTAMP DEFAULT CURRENT_TIMESTAMP,
    ip_address INET,
    user_agent TEXT)`,
  `CREATE TABLE IF NOT EXISTS auth_oauth_tokens (
    id SERIAL PRIMARY KEY,
    user_id INTEGER REFERENCES auth_users(id) ON DELETE CASCADE,
    provider VARCHAR(50) NOT NULL,
    access_token TEXT NOT NULL,
    refresh_token TEXT,
    expires_at TIMESTAMP,
    created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP,
    UNIQUE(user_id, provider))`,
  'CREATE INDEX IF NOT EXISTS idx_auth_users_username ON auth_users(username)',
  'CREATE INDEX IF NOT EXISTS idx_auth_sessions_token ON auth_sessions(session_token)',
  'CREATE INDEX IF NOT EXISTS idx_auth_sessions_user ON auth_sessions(user_id)',
  'CREATE INDEX IF NOT EXISTS idx_auth_sessions_expires ON auth_sessions(expires_at)',
]

/** Its users with their passwords: one of each hash format, names that clash, and values that are NULL. */
export const OLDER_USERS = [
  { id: 1, username: 'alice', password: 'alice: correct horse', hash: scrypt('alice: correct horse') },
  { id: 2, username: 'Bob', password: 'Bob: battery staple', hash: pbkdf2('Bob: battery staple') },
  // The same as the last one without case.
  {
    id: 3,
    username: 'bob',
    password: 'bob: another one',
    hash: bcrypt.hashSync('bob: another one', { cost: 12 }),
  },
  { id: 4, username: 'carol', password: 'carol has left', hash: scrypt('carol has left') },
  { id: 5, username: 'dave', password: 'dave ist müde', hash: pbkdf2('dave ist müde') },
  // Fullwidth letters and a space, which NFKC and trimming make "eve".
  { id: 6, username: 'ＥＶＥ ', password: 'eve, written oddly', hash: scrypt('eve, written oddly') },
  // One name in two spellings of Unicode.
  { id: 8, username: 'Zo\u00eb', password: 'composed password', hash: scrypt('composed password') },
  { id: 9, username: 'Zoe\u0308', password: 'decomposed password', hash: scrypt('decomposed password') },
] as const

/** Its sessions in the clear, by what is special about them. */
export const OLDER_SESSIONS = {
  live: 'live-token-of-alice',
  withNulls: 'token-without-times-of-dave',
  ended: 'ended-token-of-bob',
  ofNobody: 'token-of-nobody',
} as const

export const OLDER_TOKENS = {
  github: { access: 'gho_access_of_alice', refresh: 'ghr_refresh_of_alice' },
  google: { access: 'ya29.access_of_bob' },
  ofNobody: { access: 'access_of_nobody' },
} as const

/** As Werkzeug writes it: the salt is used as text. */
function scrypt(password: string): string {
  const salt = 'SaltOfSixteenOk1'
  const key = scryptSync(password, salt, 64, { N: 32768, r: 8, p: 1, maxmem: 80 * 1024 * 1024 })
  return `scrypt:32768:8:1$${salt}$${key.toString('hex')}`
}

function pbkdf2(password: string): string {
  const salt = 'AnotherSaltHere2'
  const iterations = 20_000
  const key = pbkdf2Sync(password, salt, iterations, 32, 'sha256')
  return `pbkdf2:sha256:${iterations}$${salt}$${key.toString('hex')}`
}

/** The tables of the older application with their rows, made by the login of `client`, who then owns them. */
export async function makeOlderDatabase(client: pg.ClientBase): Promise<void> {
  for (const statement of OLDER_START_UP) await client.query(statement)
  for (const { id, username, hash } of OLDER_USERS) {
    await client.query('INSERT INTO auth_users (id, username, password_hash) VALUES ($1, $2, $3)', [
      id,
      username,
      hash,
    ])
  }
  await client.query(`
    UPDATE auth_users SET created_at = '2024-03-31 02:30:00.123456', updated_at = '2025-01-01 00:00:00',
           password_changed_at = '2024-07-01 12:00:00', last_login = '2025-06-30 23:59:59.999999',
           must_change_password = true WHERE id = 1;
    UPDATE auth_users SET failed_login_attempts = 5, locked_until = '2025-10-26 02:30:00.5' WHERE id = 2;
    UPDATE auth_users SET is_active = false WHERE id = 4;
    UPDATE auth_users SET created_at = NULL, updated_at = NULL, failed_login_attempts = NULL,
           password_changed_at = NULL, must_change_password = NULL WHERE id = 5;
    SELECT setval('auth_users_id_seq', 9);
    INSERT INTO auth_users (username, password_hash) VALUES ('deleted', 'x');
    DELETE FROM auth_users WHERE username = 'deleted'`)
  const sessions = `INSERT INTO auth_sessions (session_token, user_id, created_at, expires_at, last_activity, ip_address, user_agent)
    VALUES ($1, $2, $3, $4, $3, $5, 'Firefox')`
  const { live, withNulls, ended, ofNobody } = OLDER_SESSIONS
  await client.query(sessions, [live, 1, '2025-06-30 23:00:00', '2100-01-01 00:00:00', '2001:db8::7'])
  await client.query(sessions, [ended, 2, '2025-06-30 23:00:00', '2025-07-01 00:00:00', null])
  await client.query(sessions, [withNulls, 5, null, '2100-07-01 00:00:00', null])
  await client.query(sessions, [ofNobody, null, null, '2100-01-01 00:00:00', null])
  const tokens = `INSERT INTO auth_oauth_tokens (user_id, provider, access_token, refresh_token, expires_at, created_at)
    VALUES ($1, $2, $3, $4, '2025-07-01 00:00:00', $5)`
  const { github, google } = OLDER_TOKENS
  await client.query(tokens, [1, 'github', github.access, github.refresh, '2025-06-01 00:00:00'])
  await client.query(tokens, [2, 'google', google.access, null, null])
  await client.query(tokens, [null, 'nobody', OLDER_TOKENS.ofNobody.access, null, null])
}
