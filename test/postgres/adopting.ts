import { randomBytes } from 'node:crypto'
import { fileURLToPath } from 'node:url'
import pg from 'pg'
import type { AdoptionSettings } from '../../src/db/adopt.js'
import { connectionConfig } from '../../src/db/connection.js'
import { migrate, type MigrateResult } from '../../src/db/migrate.js'
import { unsealOAuthToken } from '../../src/security/oauth-secrets.js'
import { parseEncryptionKeys } from '../../src/security/secret-box.js'
import { onServer } from '../engine.js'
import { makeOlderDatabase } from './older-database.js'

export const MIGRATIONS = fileURLToPath(new URL('../../prisma/migrations', import.meta.url))
export const KEY_TEXT = `test:${Buffer.alloc(32, 7).toString('base64')}`
export const KEYS = parseEncryptionKeys(KEY_TEXT)

export interface OlderDatabase {
  /** The superuser's. */
  url: string
  /** All rows of a statement, or of the last of several. */
  query<Row extends pg.QueryResultRow = Record<string, unknown>>(text: string): Promise<Row[]>
  drop(): Promise<void>
}

/** Databases of the older application, each a copy of the same one, so that their rows are equal to the microsecond. */
export async function olderDatabases(): Promise<{
  make(): Promise<OlderDatabase>
  drop(): Promise<void>
}> {
  const template = `adopt_template_${randomBytes(4).toString('hex')}`
  await onServer(`create database ${template}`)
  await withClient(urlOf(template), makeOlderDatabase)
  return {
    async make() {
      const name = `adopt_${randomBytes(6).toString('hex')}`
      await onServer(`create database ${name} template ${template}`)
      // Whatever the server's own is: it is told as a warning where it is another one.
      await onServer(`alter database ${name} set timezone to 'UTC'`)
      const url = urlOf(name)
      return {
        url,
        query: (text) => queryAt(url, text),
        drop: () => onServer(`drop database if exists ${name} with (force)`),
      }
    },
    drop: () => onServer(`drop database if exists ${template} with (force)`),
  }
}

function urlOf(database: string): string {
  const url = new URL(process.env['TEST_POSTGRES_URL'] ?? '')
  url.pathname = `/${database}`
  return url.href
}

export async function withClient<T>(url: string, work: (client: pg.Client) => Promise<T>): Promise<T> {
  const client = new pg.Client({ connectionString: url })
  client.on('error', () => {})
  await client.connect()
  try {
    return await work(client)
  } finally {
    await client.end()
  }
}

export async function queryAt<Row extends pg.QueryResultRow>(url: string, text: string): Promise<Row[]> {
  return await withClient(url, async (client) => {
    const result: pg.QueryResult<Row> | pg.QueryResult<Row>[] = await client.query<Row>(text)
    return (Array.isArray(result) ? result.at(-1) : result)?.rows ?? []
  })
}

export interface TakenOver extends MigrateResult {
  said: string[]
  warned: string[]
}

/** `migrate` as the command runs it; with a key and without a name for the owner where nothing else is given. */
export async function takeOver(url: string, settings: Partial<AdoptionSettings> = {}): Promise<TakenOver> {
  const said: string[] = []
  const warned: string[] = []
  const result = await migrate({
    pgConfig: connectionConfig({ url, ssl: 'disable', sslCa: undefined }),
    folder: MIGRATIONS,
    waitMs: 0,
    log: (line) => void said.push(line),
    warn: (line) => void warned.push(line),
    adoption: { ownerName: undefined, ring: KEYS, ...settings },
  })
  return { ...result, said, warned }
}

/**
 * Everything that an adoption leaves, so that two of them can be compared: its own time is written as `adoption`,
 * OAuth tokens are opened, ids of migrations and events are left out.
 */
export async function stateOf(url: string): Promise<Record<string, unknown>> {
  return await withClient(url, async (client) => {
    const rows = async (text: string): Promise<Record<string, unknown>[]> =>
      (await client.query<Record<string, unknown>>(text)).rows
    const [adoption] = await rows('select adopted_at::text, oauth_tokens, finished_at from auth_adoption')
    const state: Record<string, unknown> = {
      adoption: { ...adoption, adopted_at: undefined },
      users: await rows('select to_json(u) as row from auth_users u order by id'),
      sessions: await rows('select to_json(s) as row from auth_sessions s order by id'),
      tokens: (await rows('select to_json(t) as row from auth_oauth_tokens t order by id')).map(({ row }) =>
        openToken(row as StoredToken),
      ),
      legacy: await rows(`select to_json(u) as row from legacy.auth_users u
        union all select to_json(s) from legacy.auth_sessions s
        union all select to_json(t) from legacy.auth_oauth_tokens t`),
      identities: await rows(
        "select sequencename, last_value from pg_sequences where schemaname = 'public' and sequencename like 'auth%' order by 1",
      ),
      migrations: await rows(
        'select migration_name, checksum, finished_at is not null as done, rolled_back_at, applied_steps_count from _prisma_migrations order by 1',
      ),
      events: await rows(
        "select action, actor_type, event::json->'metadata' as metadata from audit_events order by id",
      ),
      relations: await rows(
        `select relnamespace::regnamespace::text as schema, relname, relkind, pg_get_userbyid(relowner) as owner, relacl::text,
           relrowsecurity, relforcerowsecurity from pg_class
          where relnamespace::regnamespace::text in ('public', 'legacy', 'gary', 'reports') order by 1, 2`,
      ),
      policies: await rows('select tablename, policyname, roles::text from pg_policies order by 1, 2'),
    }
    const at = new Set([adoption?.['adopted_at'], isoOf(adoption?.['adopted_at'])])
    return JSON.parse(
      JSON.stringify(state, (_, value: unknown) => (at.has(value) ? 'adoption' : value)),
    ) as Record<string, unknown>
  })
}

/** As to_json writes what ::text gives. */
function isoOf(text: unknown): string {
  return String(text).replace(' ', 'T').replace(/\+00$/, '+00:00')
}

interface StoredToken {
  user_id: number
  provider: string
  access_token: string
  refresh_token: string | null
}

function openToken(row: StoredToken): StoredToken {
  const open = (column: 'access_token' | 'refresh_token') => {
    const stored = row[column]
    return stored === null
      ? null
      : unsealOAuthToken(KEYS, { userId: row.user_id, provider: row.provider, column }, stored)
  }
  return { ...row, access_token: open('access_token') ?? '', refresh_token: open('refresh_token') }
}
