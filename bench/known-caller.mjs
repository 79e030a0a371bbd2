// The service's own data layer with its row-level security, for a caller who is known already: what remains of a
// request when nobody has to find out who asks. Requests are those of bare.mjs.
import { randomUUID } from 'node:crypto'
import { createAdaptorServer } from '@hono/node-server'
import { Hono } from 'hono'
import { CompiledQuery } from 'kysely'
import { appendTogether } from '../build/db/append-together.js'
import { asCaller } from '../build/db/as-caller.js'
import { eventsIn, eventsPage } from '../build/db/audit-events.js'
import { NO_REQUEST } from '../build/db/audit.js'
import { entryAt, writeEntry } from '../build/db/config.js'
import { connectionConfig } from '../build/db/connection.js'
import { createDatabase } from '../build/db/database.js'
import { createPostgresSources } from '../build/db/postgres-source.js'
import { COPY_HEAD, COPY_TAIL } from '../build/db/reports/catalog.js'
import { streamAsCaller } from '../build/db/transaction.js'
import { readEnv } from '../build/env.js'
import { limitsOf, streamBudgets } from '../build/limits.js'
import { EXPORTED } from './data.mjs'
import { entryOf, stored } from './shapes.mjs'

const env = readEnv(process.env)
const limits = limitsOf(env)
// As postgresSources in src/serve.ts does: what is set there has to be set here.
const lanes = Math.min(env.DATABASE_LANES, env.DATABASE_POOL_SIZE - 1)
const sources = createPostgresSources({
  ...limits,
  connection: connectionConfig({ url: env.DATABASE_URL ?? '', ssl: env.DATABASE_SSL, sslCa: undefined }),
  size: env.DATABASE_POOL_SIZE - lanes,
  lanes,
  prepare: env.DATABASE_PREPARE,
  streams: { size: 2, budgets: streamBudgets(limits.budgets) },
  pooled: env.DATABASE_POOLED,
  applicationName: 'known-caller',
  lifetimeMs: 30 * 60_000,
  onIdleError: () => {},
  onTransition: () => {},
  onAttemptFailed: () => {},
})
const db = createDatabase(sources.requests)
const streams = createDatabase(sources.streams)

/** As an owner's session would make it. @param {number} id @returns {import('../build/db/as-caller.js').Caller} */
const callerOf = (id) => ({
  databaseRole: 'gary_caller',
  userId: id,
  role: 'owner',
  scopes: '*',
  sessionId: id,
  keyId: null,
  actor: { type: 'user', id, name: 'bench' },
  onBehalfOf: null,
})
/** Only one by default, as an application's requests are all under its one key: what several ask shares less. */
const callers = Array.from({ length: Number(process.env['BENCH_CALLERS'] ?? 1) }, (_, index) =>
  callerOf(index + 1),
)
let turn = 0
const nextCaller = () => callers[(turn += 1) % callers.length] ?? callerOf(1)
const at = (/** @type {string} */ key) =>
  /** @type {const} */ ({ scope: 'global', owner: '', environment: '', key })
const json = { 'content-type': 'application/json' }

const app = new Hono()
app.get('/ready', async (c) => {
  await asCaller(db, nextCaller(), entryAt(db, at('none')))
  return c.body('{}', 200, json)
})
app.get('/config/:key', async (c) => {
  const [entry] = await asCaller(db, nextCaller(), entryAt(db, at(c.req.param('key'))))
  return entry === undefined ? c.notFound() : c.body(entryOf(entry), 200, json)
})
app.put('/config/:key', async (c) => {
  const address = at(c.req.param('key'))
  const { value } = await c.req.json()
  /** @type {import('../build/db/config.js').EntryWrite} */
  const write = {
    operation: 'put',
    value: JSON.stringify(value),
    secretPaths: [],
    tags: [],
    description: null,
  }
  const caller = nextCaller()
  const [entry] = await asCaller(
    db,
    caller,
    writeEntry(
      db,
      address,
      write,
      { is: 'present' },
      {
        caller,
        correlation: { ...NO_REQUEST, requestId: randomUUID() },
        eventType: 'config_change',
        level: 'info',
        action: 'config.put',
        target: `config/global/${address.key}`,
        message: `Configuration: put config/global/${address.key}`,
      },
    ),
  )
  return entry === undefined ? c.notFound() : c.body(entryOf(entry), 200, json)
})
app.post('/events', async (c) => {
  const caller = nextCaller()
  const body = await c.req.json()
  const events = (Array.isArray(body) ? body : [body]).map((each) => {
    const { event, ...columns } = stored(each)
    return { columns, text: event }
  })
  const fresh = await appendTogether(db, caller, events)
  return c.body(JSON.stringify({ accepted: fresh.size }), 200, json)
})
app.get('/page', async (c) => {
  const { at: afterReceivedAt = '', id } = c.req.query()
  const asked = { limit: 51, afterReceivedAt, afterId: Number(id) }
  const [row] = await asCaller(db, nextCaller(), eventsPage(db, asked))
  const events = eventsIn(row?.events ?? '')
  const items = events.slice(0, 50).map(eventJson)
  const last = events[49]
  return c.body(
    `{"items":[${items.join(',')}],"next":${JSON.stringify([last?.received_at, last?.id])}}`,
    200,
    json,
  )
})
app.get('/csv', (c) => {
  const pieces = streamAsCaller(
    streams,
    nextCaller(),
    CompiledQuery.raw(`${COPY_HEAD}${EXPORTED}${COPY_TAIL}`),
  )
  const body = new ReadableStream(
    {
      async pull(controller) {
        const { value, done } = await pieces.next()
        if (done === true) return controller.close()
        for (const piece of value) controller.enqueue(piece)
      },
      cancel: async () => void (await pieces.return(undefined)),
    },
    { highWaterMark: 0 },
  )
  return c.body(body, 200, { 'content-type': 'text/csv' })
})

createAdaptorServer({ fetch: app.fetch }).listen(env.PORT, '127.0.0.1')
process.on('SIGTERM', () => process.exit(0))

/** As the service's own route. @param {ReturnType<typeof eventsIn>[number]} row */
function eventJson({ event, ...row }) {
  return (
    `${event.slice(0, -1)},"id":${row.id},"received_at":"${row.received_at}","source":${row.source},` +
    `"actor":{"type":${row.actor_type},"id":${row.actor_id},"name":${row.actor_name}},` +
    `"on_behalf_of":${row.on_behalf_of},"action":${row.action},"target":${row.target},` +
    `"timestamp_iso":"${row.occurred_at}"}`
  )
}
