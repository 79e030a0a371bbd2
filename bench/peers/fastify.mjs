// Fastify and postgres.js, whose tagged templates are prepared statements and travel in a pipeline. Requests are those
// of ../bare.mjs; no row-level security.
import Fastify from 'fastify'
import { randomUUID } from 'node:crypto'
import { Readable } from 'node:stream'
import postgres from 'postgres'
import { configEvent, csvLine, entryOf, pageOf, sha256, stored } from '../shapes.mjs'

const EXPORT_BATCH = 5000
const sql = postgres(process.env['DATABASE_URL'] ?? '', {
  max: Number(process.env['DATABASE_POOL_SIZE']),
  onnotice: () => {},
})

/** @param {string | undefined} authorization */
async function sessionOf(authorization) {
  const [session] = await sql`
    select s.id as session_id, s.created_at as session_created_at, s.expires_at, s.last_activity, s.ip_address,
      s.user_agent, u.id, u.username, u.role, u.is_active, u.must_change_password, u.created_at, u.updated_at,
      u.last_login, u.password_changed_at, u.version
    from auth_sessions s join auth_users u on u.id = s.user_id
    where s.session_token = ${sha256((authorization ?? '').slice(7))} and s.expires_at > now()
      and s.last_activity > now() - interval '2 hours' and u.is_active`
  return session
}

/** @param {string} key @param {string} value */
async function write(key, value) {
  const requestId = randomUUID()
  const { eventId, bodyHash, event } = configEvent(key)
  return await sql.begin(async (sql) => {
    const [entry = {}] = await sql`
      update config_entries set value = ${value}, version = version + 1, updated_at = now(), updated_by = 'bench'
      where scope = 'global' and owner = '' and environment = '' and key = ${key}
      returning scope, owner, environment, key, value, version, secret_paths, tags, description, created_at,
        updated_at, updated_by`
    await sql`
      insert into config_revisions (scope, owner, environment, key, version, operation, value, secret_paths, tags,
        description, actor_type, actor_id, actor_name, request_id)
      values ('global', '', '', ${key}, ${entry.version}, 'put', ${value}, ${entry.secret_paths}, ${entry.tags},
        ${entry.description}, 'user', 1, 'bench', ${requestId})`
    await sql`insert into audit_event_ids (event_id, actor, body_hash) values (${eventId}, 'user:1', ${bodyHash})`
    await sql`
      insert into audit_events (event_id, occurred_at, event_type, level, source, actor_type, actor_id, actor_name,
        action, target, request_id, event)
      values (${eventId}, now(), 'config_change', 'info', 'service', 'user', 1, 'bench', 'config.put',
        ${`config/global/${key}`}, ${requestId}, ${event})`
    return entry
  })
}

/** @param {ReturnType<typeof stored>[]} events */
async function append(events) {
  const fresh = await sql`
    with input as (
      select * from jsonb_to_recordset(${sql.json(/** @type {any} */ (events))}) as e("eventId" uuid, "bodyHash" text,
        "occurredAt" timestamptz, "eventType" text, level text, "userId" text, "agentId" text, "sessionId" text,
        "requestId" text, "traceId" text, event text)
    ), ids as (
      insert into audit_event_ids (event_id, actor, body_hash) select "eventId", 'user:1', "bodyHash" from input
      on conflict (event_id) do nothing returning event_id
    ), appended as (
      insert into audit_events (event_id, occurred_at, event_type, level, source, actor_type, actor_id, actor_name,
        user_id, agent_id, session_id, request_id, trace_id, event)
      select i."eventId", i."occurredAt", i."eventType", i.level, 'client', 'user', 1, 'bench', i."userId",
        i."agentId", i."sessionId", i."requestId", i."traceId", i.event
      from input i join ids on ids.event_id = i."eventId"
    ) select event_id from ids`
  return fresh.length
}

/** @param {import('fastify').FastifyInstance} works */
async function routes(works) {
  works.get('/session', async (request, reply) => {
    return (await sessionOf(request.headers.authorization)) ?? reply.code(404).send()
  })
  works.get('/config/:key', async (request, reply) => {
    const { key } = /** @type {{ key: string }} */ (request.params)
    const [entry] = await sql`
      select scope, owner, environment, key, value, version, secret_paths, tags, description, created_at, updated_at,
        updated_by
      from config_entries
      where scope = 'global' and owner = '' and environment = '' and key = ${key} and not deleted`
    return entry === undefined ? reply.code(404).send() : reply.type('application/json').send(entryOf(entry))
  })
  works.put('/config/:key', async (request, reply) => {
    const { key } = /** @type {{ key: string }} */ (request.params)
    const { value } = /** @type {{ value: unknown }} */ (request.body)
    return reply.type('application/json').send(entryOf(await write(key, JSON.stringify(value))))
  })
  works.post('/events', async ({ body }) => {
    return { accepted: await append((Array.isArray(body) ? body : [body]).map(stored)) }
  })
  works.get('/page', async (request, reply) => {
    const { at, id } = /** @type {{ at: string, id: string }} */ (request.query)
    const rows = await sql`
      select id, received_at, event_id, occurred_at, source, actor_type, actor_id, actor_name, on_behalf_of, action,
        target, event
      from audit_events
      where received_at <= ${at} and (received_at < ${at} or id < ${id})
      order by received_at desc, id desc limit 51`
    return reply.type('application/json').send(pageOf(rows))
  })
  works.get('/csv', (_, reply) => reply.type('text/csv').send(Readable.from(csv())))
}

async function* csv() {
  const batches = sql`
    select id, received_at, event_id, occurred_at, event_type, level, source, actor_type, actor_id, actor_name, user_id,
      agent_id, session_id, request_id
    from audit_events`.cursor(EXPORT_BATCH)
  let isFirst = true
  for await (const rows of batches) {
    if (isFirst) yield `${Object.keys(rows[0] ?? {}).join(',')}\n`
    isFirst = false
    yield rows.map(csvLine).join('')
  }
}

const app = Fastify({ logger: false, bodyLimit: 4 * 1024 * 1024 })
app.get('/ready', async () => await sql`select 1 as one`)
app.register(routes)
app.register(
  async (checked) => {
    checked.addHook('onRequest', async (request, reply) => {
      if ((await sessionOf(request.headers.authorization)) === undefined) await reply.code(404).send()
    })
    await checked.register(routes)
  },
  { prefix: '/checked' },
)
await app.listen({ port: Number(process.env['PORT']), host: '127.0.0.1' })
process.on('SIGTERM', () => process.exit(0))
