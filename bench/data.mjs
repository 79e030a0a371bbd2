// The database of a run: its own, made, filled and dropped; never one that was there before.
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import pg from 'pg'

export const CONNECTIONS = 32
export const BATCH = 100
export const USERNAME = 'bench'
export const PASSWORD = 'correct horse battery staple'

/** What an export of all events has of each: of bare by COPY, which the others are compared with. */
export const EXPORTED = `select id, received_at, event_id, occurred_at, event_type, level, source, actor_type, actor_id,
  actor_name, user_id, agent_id, session_id, request_id from audit_events`

/** Each connection writes an entry of its own: no waiting for a row of another. @param {number} index */
export const configKey = (index) => `bench-${index}`

/** About one kilobyte, as a consumer's settings. */
export function exampleSettings() {
  return Object.fromEntries(
    Array.from({ length: 16 }, (_, index) => [
      `setting_${index}`,
      { provider: 'openrouter', model: `model-${index}`, ctx_length: 100_000, temperature: 0.5 },
    ]),
  )
}

/** About six hundred bytes, as the consumer's tool events. @param {number} index */
export function exampleEvent(index) {
  return {
    event_type: 'tool_execution',
    level: 'info',
    message: `Tool call ${index} finished`,
    timestamp: 1_795_000_000.25,
    user_id: '1',
    agent_id: `agent-${index % 10}`,
    session_id: `session-${index % 100}`,
    tool_name: 'code_execution',
    operation: 'run',
    component: 'tools',
    function_name: 'execute',
    input_data: { runtime: 'python', code: 'print(sum(range(10)))', reset: false },
    output_data: { stdout: '45', exit_code: 0, truncated: false },
    duration_ms: 12.75,
    request_id: `request-${index}`,
    trace_id: `trace-${index}`,
    metadata: { attempt: 1, host: 'worker-1', tags: ['bench', 'tool'] },
  }
}

/**
 * A migrated, empty database on BENCH_DATABASE_URL's server (a superuser's URL), else on an embedded one.
 * @param {(line: string) => void} log
 */
export async function openDatabase(log) {
  const { startEmbedded } = await import('../build/db/embedded.js')
  const { migrate } = await import('../build/db/migrate.js')
  const { connectionConfig } = await import('../build/db/connection.js')
  const given = process.env['BENCH_DATABASE_URL']
  const folder = await mkdtemp(join(tmpdir(), 'gary-bench-'))
  const embedded = given === undefined ? await startEmbedded({ dataDir: folder, log }) : undefined
  const serverUrl = given ?? embedded?.url ?? ''
  const name = `gary_bench_${process.pid}`
  const url = new URL(serverUrl)
  url.pathname = `/${name}`

  const close = async () => {
    if (embedded === undefined)
      await withClient(serverUrl, (client) => client.query(`drop database if exists ${name} with (force)`))
    await embedded?.stop()
    await rm(folder, { recursive: true, force: true })
  }
  try {
    const version = await withClient(serverUrl, async (client) => {
      await client.query(`create database ${name}`)
      const { rows } = await client.query("select split_part(version(), ' on ', 1) as version")
      return String(rows[0]?.version)
    })
    await migrate({
      pgConfig: connectionConfig({ url: url.href, ssl: 'disable', sslCa: undefined }),
      folder: fileURLToPath(new URL('../prisma/migrations', import.meta.url)),
      log: () => {},
      waitMs: 10_000,
    })
    return { url: url.href, version, folder, where: given === undefined ? 'embedded' : 'given', close }
  } catch (error) {
    await close()
    throw error
  }
}

/** Events over the last twenty days, and positions spread over them. @param {string} url @param {number} count */
export async function fillEvents(url, count) {
  const { event_type, level, ...rest } = exampleEvent(0)
  return await withClient(url, async (client) => {
    await client.query('set synchronous_commit = off')
    await client.query(
      `with made as (
         select n, gen_random_uuid() as event_id, now() - (n + 1) * (interval '20 days' / $1::float) as at
         from generate_series(1, $1::integer) as n
       ), ids as (
         insert into audit_event_ids (event_id, actor, body_hash, received_at)
         select event_id, 'user:1', md5(n::text) || md5(n::text), at from made
       )
       insert into audit_events (received_at, event_id, occurred_at, event_type, level, source, actor_type, actor_id,
         actor_name, user_id, agent_id, session_id, request_id, trace_id, event)
       select at, event_id, at, $2, $3, 'client', 'user', 1, $4, '1', 'agent-' || n % 10, 'session-' || n % 1000,
         'request-' || n, 'trace-' || n, '{"event_id":"' || event_id || '",' || $5
       from made order by at`,
      [count, event_type, level, USERNAME, JSON.stringify({ event_type, level, ...rest }).slice(1)],
    )
    await client.query('vacuum analyze audit_events')
    await client.query('vacuum analyze audit_event_ids')
    const { rows } = await client.query(
      `select to_char(e.received_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as at, e.id
       from generate_series(0, $1::integer - 1) as part
       cross join lateral (
         select received_at, id from audit_events
         where received_at <= now() - interval '1 day' - part * (interval '18 days' / $1::integer)
         order by received_at desc, id desc limit 1
       ) e`,
      [CONNECTIONS],
    )
    return rows.map((row) => ({ at: String(row.at), id: Number(row.id) }))
  })
}

/**
 * @template T
 * @param {string} connectionString @param {(client: pg.Client) => Promise<T>} use @returns {Promise<T>}
 */
async function withClient(connectionString, use) {
  const client = new pg.Client({ connectionString, ssl: false })
  client.on('error', () => {})
  await client.connect()
  try {
    return await use(client)
  } finally {
    await client.end()
  }
}
