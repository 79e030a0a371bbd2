// The obvious way with an ORM: Hono and Prisma's client. Requests are those of ../bare.mjs; no row-level security.
import { createAdaptorServer } from '@hono/node-server'
import { PrismaPg } from '@prisma/adapter-pg'
import { Hono } from 'hono'
import { randomUUID } from 'node:crypto'
import { configEvent, csvLine, entryOf, pageOf, sha256, stored } from '../shapes.mjs'
import client from './node_modules/.bench-client/index.js'

const IDLE_MS = 2 * 3600 * 1000
const EXPORT_BATCH = 5000
const GLOBAL = { scope: 'global', owner: '', environment: '' }
const ACTOR = { actorType: 'user', actorId: 1, actorName: 'bench' }

const prisma = new client.PrismaClient({
  adapter: new PrismaPg({
    connectionString: process.env['DATABASE_URL'],
    max: Number(process.env['DATABASE_POOL_SIZE']),
  }),
  // Under load a transaction waits for longer than the 2 s of the default.
  transactionOptions: { maxWait: 30_000, timeout: 30_000 },
})

/** @param {string | undefined} authorization */
async function sessionOf(authorization) {
  const now = Date.now()
  return await prisma.session.findFirst({
    where: {
      sessionToken: sha256((authorization ?? '').slice(7)),
      expiresAt: { gt: new Date(now) },
      lastActivity: { gt: new Date(now - IDLE_MS) },
      user: { isActive: true },
    },
    include: { user: true },
  })
}

/** @param {string} key @param {string} value */
async function write(key, value) {
  return await prisma.$transaction(async (tx) => {
    const entry = await tx.configEntry.update({
      where: { scope_owner_environment_key: { ...GLOBAL, key } },
      data: { value, version: { increment: 1 }, updatedAt: new Date(), updatedBy: 'bench' },
    })
    const { version, secretPaths, tags, description } = entry
    const requestId = randomUUID()
    const { eventId, bodyHash, event } = configEvent(key)
    await tx.configRevision.create({
      data: {
        ...GLOBAL,
        ...ACTOR,
        key,
        version,
        operation: 'put',
        value,
        secretPaths,
        tags,
        description,
        requestId,
      },
    })
    await tx.auditEventId.create({ data: { eventId, actor: 'user:1', bodyHash } })
    await tx.auditEvent.create({
      data: {
        ...ACTOR,
        eventId,
        occurredAt: new Date(),
        eventType: 'config_change',
        level: 'info',
        source: 'service',
        action: 'config.put',
        target: `config/global/${key}`,
        requestId,
        event,
      },
    })
    return entry
  })
}

/** @param {ReturnType<typeof stored>[]} events */
async function append(events) {
  return await prisma.$transaction(async (tx) => {
    const fresh = await tx.auditEventId.createManyAndReturn({
      data: events.map(({ eventId, bodyHash }) => ({ eventId, bodyHash, actor: 'user:1' })),
      skipDuplicates: true,
      select: { eventId: true },
    })
    const ids = new Set(fresh.map(({ eventId }) => eventId))
    const rows = events.filter(({ eventId }) => ids.has(eventId))
    await tx.auditEvent.createMany({
      data: rows.map(({ bodyHash: _bodyHash, ...row }) => Object.assign(row, ACTOR, { source: 'client' })),
    })
    return rows.length
  })
}

const json = { 'content-type': 'application/json' }
const works = new Hono()
works.get('/session', async (c) => {
  const session = await sessionOf(c.req.header('authorization'))
  if (session === null) return c.notFound()
  const { user, sessionToken: _token, ...own } = session
  const { passwordHash: _hash, ...known } = user
  return c.json({ ...own, user: known })
})
works.get('/config/:key', async (c) => {
  const entry = await prisma.configEntry.findFirst({
    where: { ...GLOBAL, key: c.req.param('key'), deleted: false },
  })
  return entry === null ? c.notFound() : c.body(entryOf(entry), 200, json)
})
works.put('/config/:key', async (c) => {
  const { value } = await c.req.json()
  return c.body(entryOf(await write(c.req.param('key'), JSON.stringify(value))), 200, json)
})
works.post('/events', async (c) => {
  const body = await c.req.json()
  return c.json({ accepted: await append((Array.isArray(body) ? body : [body]).map(stored)) })
})
works.get('/page', async (c) => {
  const at = new Date(c.req.query('at') ?? '')
  const rows = await prisma.auditEvent.findMany({
    where: {
      receivedAt: { lte: at },
      OR: [{ receivedAt: { lt: at } }, { id: { lt: BigInt(c.req.query('id') ?? 0) } }],
    },
    omit: {
      eventType: true,
      level: true,
      userId: true,
      agentId: true,
      sessionId: true,
      requestId: true,
      traceId: true,
    },
    orderBy: [{ receivedAt: 'desc' }, { id: 'desc' }],
    take: 51,
  })
  return c.body(pageOf(rows.map((row) => Object.assign(row, { id: Number(row.id) }))), 200, json)
})
works.get('/csv', (c) => {
  const encoder = new TextEncoder()
  /** @type {{ receivedAt_id: { receivedAt: Date, id: bigint } } | undefined} */
  let cursor
  const body = new ReadableStream({
    async pull(controller) {
      const rows = await prisma.auditEvent.findMany({
        select: {
          id: true,
          receivedAt: true,
          eventId: true,
          occurredAt: true,
          eventType: true,
          level: true,
          source: true,
          actorType: true,
          actorId: true,
          actorName: true,
          userId: true,
          agentId: true,
          sessionId: true,
          requestId: true,
        },
        orderBy: [{ receivedAt: 'asc' }, { id: 'asc' }],
        take: EXPORT_BATCH,
        ...(cursor === undefined ? {} : { cursor, skip: 1 }),
      })
      const last = rows.at(-1)
      if (last === undefined) return controller.close()
      if (cursor === undefined) controller.enqueue(encoder.encode(`${Object.keys(last).join(',')}\n`))
      cursor = { receivedAt_id: { receivedAt: last.receivedAt, id: last.id } }
      controller.enqueue(encoder.encode(rows.map(csvLine).join('')))
    },
  })
  return c.body(body, 200, { 'content-type': 'text/csv' })
})

const app = new Hono()
app.get('/ready', async (c) => c.json(await prisma.$queryRaw`select 1 as one`))
app.use('/checked/*', async (c, next) => {
  if ((await sessionOf(c.req.header('authorization'))) === null) return c.notFound()
  await next()
})
app.route('/', works)
app.route('/checked', works)

createAdaptorServer({ fetch: app.fetch }).listen(Number(process.env['PORT']), '127.0.0.1')
process.on('SIGTERM', () => process.exit(0))
