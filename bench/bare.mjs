// What the service is compared with: node:http and pg.Pool, named statements, one statement a request (a
// transaction of several where there is a change to tell of), no framework, no validation, no row-level security (a
// superuser's login). Behind /checked/ the session is looked up first, in a statement of its own.
import { createHash, randomBytes, randomUUID } from 'node:crypto'
import { createServer } from 'node:http'
import bcrypt from '@node-rs/bcrypt'
import pg from 'pg'
import { copyTo } from './copy-out.mjs'
import { EXPORTED } from './data.mjs'
import { configEvent, entryOf, pageOf, stored } from './shapes.mjs'

const pool = new pg.Pool({
  connectionString: process.env.DATABASE_URL,
  max: Number(process.env.DATABASE_POOL_SIZE),
  ssl: false,
})
pool.on('error', () => {})

const SESSION = `select s.id as session_id, s.created_at as session_created_at, s.expires_at, s.last_activity,
    s.ip_address, s.user_agent, u.id, u.username, u.role, u.is_active, u.must_change_password, u.created_at, u.updated_at,
    u.last_login, u.password_changed_at, u.version
  from auth_sessions s join auth_users u on u.id = s.user_id
  where s.session_token = $1 and s.expires_at > now() and s.last_activity > now() - interval '2 hours' and u.is_active`
const READ = `select scope, owner, environment, key, value, version, secret_paths, tags, description, created_at, updated_at,
    updated_by from config_entries where scope = 'global' and owner = '' and environment = '' and key = $1 and not deleted`
const BEGIN = 'begin'
const COMMIT = 'commit'
const WRITE = `update config_entries set value = $2, version = version + 1, updated_at = now(), updated_by = $3
  where scope = 'global' and owner = '' and environment = '' and key = $1
  returning scope, owner, environment, key, value, version, secret_paths, tags, description, created_at, updated_at,
    updated_by`
const REVISION = `insert into config_revisions (scope, owner, environment, key, version, operation, value, secret_paths, tags,
    description, actor_type, actor_id, actor_name, request_id)
  values ($1, $2, $3, $4, $5, 'put', $6, $7, $8, $9, 'user', 1, $10, $11)`
const AUDIT_ID = `insert into audit_event_ids (event_id, actor, body_hash) values ($1, 'user:1', $2)`
const AUDIT = `insert into audit_events (event_id, occurred_at, event_type, level, source, actor_type, actor_id, actor_name,
    action, target, request_id, event)
  values ($1, now(), 'config_change', 'info', 'service', 'user', 1, $2, 'config.put', 'config/global/' || $3, $4, $5)`
const APPEND = `with input as (
    select * from json_to_recordset($1::json) as e("eventId" uuid, "bodyHash" text, "occurredAt" timestamptz,
      "eventType" text, level text, "userId" text, "agentId" text, "sessionId" text, "requestId" text, "traceId" text,
      event text)
  ), ids as (
    insert into audit_event_ids (event_id, actor, body_hash) select "eventId", 'user:1', "bodyHash" from input
    on conflict (event_id) do nothing returning event_id
  ), appended as (
    insert into audit_events (event_id, occurred_at, event_type, level, source, actor_type, actor_id, actor_name, user_id,
      agent_id, session_id, request_id, trace_id, event)
    select i."eventId", i."occurredAt", i."eventType", i.level, 'client', 'user', 1, 'bench', i."userId", i."agentId",
      i."sessionId", i."requestId", i."traceId", i.event
    from input i join ids on ids.event_id = i."eventId"
  ) select event_id from ids`
const PAGE = `select id, received_at, event_id, occurred_at, source, actor_type, actor_id, actor_name, on_behalf_of, action,
    target, event from audit_events
  where received_at <= $1 and (received_at < $1 or id < $2) order by received_at desc, id desc limit 51`
const CREDENTIALS =
  'select id, username, role, password_hash from auth_users where username_key = $1 and is_active'
const SIGN_IN = `insert into auth_sessions (session_token, user_id, expires_at)
  values ($1, $2, now() + interval '24 hours') returning id, created_at, expires_at`

/** @param {string} name @param {string} text @param {unknown[]} values */
async function rowsOf(name, text, values) {
  return (await pool.query({ name, text, values })).rows
}

/** @param {import('node:http').IncomingMessage} request */
function sessionOf(request) {
  const token = (request.headers.authorization ?? '').slice(7)
  return rowsOf('session', SESSION, [createHash('sha256').update(token).digest('hex')])
}

/** @param {import('node:http').IncomingMessage} request @returns {Promise<string>} */
function bodyOf(request) {
  return new Promise((resolve, reject) => {
    /** @type {Buffer[]} */
    const parts = []
    request.on('data', (part) => parts.push(part))
    request.on('end', () => resolve(Buffer.concat(parts).toString()))
    request.on('error', reject)
  })
}

/** A change, its revision and its audit row, all or nothing. @param {string} key @param {string} value */
async function write(key, value) {
  const client = await pool.connect()
  const run = async (
    /** @type {string} */ name,
    /** @type {string} */ text,
    /** @type {unknown[]} */ values = [],
  ) => (await client.query({ name, text, values })).rows[0]
  const requestId = randomUUID()
  const { eventId, bodyHash, event } = configEvent(key)
  try {
    await run('begin', BEGIN)
    const row = await run('write', WRITE, [key, value, 'bench'])
    const { scope, owner, environment, version, secret_paths, tags, description } = row
    const place = [scope, owner, environment, key, version]
    await run('revision', REVISION, [...place, value, secret_paths, tags, description, 'bench', requestId])
    await run('audit-id', AUDIT_ID, [eventId, bodyHash])
    await run('audit', AUDIT, [eventId, 'bench', key, requestId, event])
    await run('commit', COMMIT)
    client.release()
    return row
  } catch (error) {
    client.release(true)
    throw error
  }
}

/** @param {import('node:http').IncomingMessage} request @returns {Promise<string | undefined>} */
async function answer(request) {
  const url = request.url ?? ''
  if (url.startsWith('/checked/')) {
    const [session] = await sessionOf(request)
    if (session === undefined) return undefined
    return await work(url.slice('/checked'.length), request)
  }
  return await work(url, request)
}

/** @param {string} url @param {import('node:http').IncomingMessage} request @returns {Promise<string | undefined>} */
async function work(url, request) {
  if (url === '/ready') return JSON.stringify(await rowsOf('ready', 'select 1 as one', []))
  if (url === '/session') {
    const [row] = await sessionOf(request)
    return row && JSON.stringify(row)
  }
  if (url.startsWith('/config/')) {
    const key = url.slice('/config/'.length)
    if (request.method === 'GET') {
      const [row] = await rowsOf('read', READ, [key])
      return row && entryOf(row)
    }
    return entryOf(await write(key, JSON.stringify(JSON.parse(await bodyOf(request)).value)))
  }
  if (url === '/events') {
    const body = JSON.parse(await bodyOf(request))
    const events = (Array.isArray(body) ? body : [body]).map(stored)
    const rows = await rowsOf('append', APPEND, [JSON.stringify(events)])
    return JSON.stringify({ accepted: rows.length })
  }
  if (url.startsWith('/page?')) {
    const query = new URLSearchParams(url.slice('/page?'.length))
    const rows = await rowsOf('page', PAGE, [query.get('at'), query.get('id')])
    return pageOf(rows)
  }
  if (url === '/login') {
    const { username, password } = JSON.parse(await bodyOf(request))
    const [user] = await rowsOf('credentials', CREDENTIALS, [username])
    if (user === undefined || !(await bcrypt.verify(password, user.password_hash))) return undefined
    const token = `gzs_${randomBytes(32).toString('base64url')}`
    const hash = createHash('sha256').update(token).digest('hex')
    const [session] = await rowsOf('sign-in', SIGN_IN, [hash, user.id])
    return JSON.stringify({ token, session, user: { id: user.id, username: user.username, role: user.role } })
  }
  return undefined
}

const server = createServer((request, response) => {
  if (request.url === '/csv') {
    response.writeHead(200, { 'content-type': 'text/csv' })
    return void copyTo(pool, `copy (${EXPORTED}) to stdout with (format csv, header)`, response)
  }
  answer(request).then(
    (text) => {
      response.writeHead(text === undefined ? 404 : 200, {
        'content-type': 'application/json',
        'content-length': Buffer.byteLength(text ?? ''),
      })
      response.end(text)
    },
    (error) => {
      response.writeHead(500)
      response.end(String(error))
    },
  )
})
server.listen(Number(process.env.PORT), '127.0.0.1')
process.on('SIGTERM', () => process.exit(0))
