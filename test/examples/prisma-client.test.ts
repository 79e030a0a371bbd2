import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { join } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { PrismaPg } from '@prisma/adapter-pg'
import pg from 'pg'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { createPostgresDatabase } from '../engine.js'
import { run } from './running.js'

/** As much of the generated client as is used here: it exists only while this runs. */
interface Client {
  user: {
    findUnique(query: { where: { username: string }; include?: { sessions: true } }): Promise<object | null>
    create(query: { data: { username: string; passwordHash: string } }): Promise<{ id: number }>
  }
  session: {
    create(query: {
      data: { sessionToken: string; userId: number; expiresAt: Date; ipAddress?: string }
    }): Promise<{ id: number }>
  }
  $transaction<T>(work: (tx: Client) => Promise<T>): Promise<T>
  $disconnect(): Promise<void>
}

const root = fileURLToPath(new URL('../..', import.meta.url))
let folder: string
let database: Awaited<ReturnType<typeof createPostgresDatabase>>
let sql: pg.Client
let prisma: Client

/** Our models under another program's generator. */
async function generateClient(): Promise<new (options: { adapter: PrismaPg }) => Client> {
  createRequire(import.meta.url).resolve('@prisma/client/package.json')
  const cache = join(root, 'node_modules/.cache')
  await mkdir(cache, { recursive: true })
  // Below node_modules, so that the generated code finds its runtime.
  folder = await mkdtemp(join(cache, 'prisma-client-test-'))
  const ours = await readFile(join(root, 'prisma/schema.prisma'), 'utf8')
  const generator = 'generator client {\n  provider = "prisma-client-js"\n  output   = "./client"\n}'
  const theirs = ours.replace(/^generator \w+ \{[^}]*\}/m, generator)
  expect(theirs.match(/^generator /gm)).toHaveLength(1)
  await writeFile(join(folder, 'schema.prisma'), theirs)
  const generated = await run(
    process.execPath,
    [
      'node_modules/prisma/build/index.js',
      'generate',
      '--schema',
      join(folder, 'schema.prisma'),
      '--no-hints',
    ],
    { PRISMA_GENERATE_SKIP_AUTOINSTALL: '1', CHECKPOINT_DISABLE: '1' },
  )
  expect(generated).toMatchObject({ code: 0 })
  const client = (await import(pathToFileURL(join(folder, 'client/index.js')).href)) as {
    PrismaClient: new (options: { adapter: PrismaPg }) => Client
  }
  return client.PrismaClient
}

beforeAll(async () => {
  database = await createPostgresDatabase()
  sql = new pg.Client({ connectionString: database.url })
  await sql.connect()
  const PrismaClient = await generateClient()
  prisma = new PrismaClient({ adapter: new PrismaPg({ connectionString: database.url }) })
})
afterAll(async () => {
  await prisma?.$disconnect()
  await sql?.end()
  await database?.drop()
  if (folder !== undefined) await rm(folder, { recursive: true, force: true })
})

const sessionOf = (userId: number, sessionToken: string) => ({
  data: { sessionToken, userId, expiresAt: new Date('2030-01-01T00:00:00Z'), ipAddress: '192.0.2.7' },
})

describe("an outside program's Prisma client on our tables", () => {
  it('finds a user by name', async () => {
    await sql.query("INSERT INTO auth_users (username, password_hash) VALUES ('found', 'made-up-hash')")
    expect(await prisma.user.findUnique({ where: { username: 'found' } })).toMatchObject({
      username: 'found',
      passwordHash: 'made-up-hash',
      isActive: true,
      lastLogin: null,
      createdAt: expect.any(Date),
      role: 'user',
      version: 1,
    })
    expect(await prisma.user.findUnique({ where: { username: 'nobody' } })).toBeNull()
  })

  it('creates a user and a session in one transaction', async () => {
    await prisma.$transaction(async (tx) => {
      const { id } = await tx.user.create({ data: { username: 'made', passwordHash: 'made-up-hash' } })
      await tx.session.create(sessionOf(id, 'made-up-token'))
    })
    const { rows } = await sql.query(
      `SELECT username, password_hash, is_active, role, username_key, session_token, host(ip_address) AS address,
              expires_at AT TIME ZONE 'UTC' = '2030-01-01' AS expires
         FROM auth_users JOIN auth_sessions ON user_id = auth_users.id`,
    )
    expect(rows).toEqual([
      {
        username: 'made',
        password_hash: 'made-up-hash',
        is_active: true,
        role: 'user',
        username_key: null,
        session_token: 'made-up-token',
        address: '192.0.2.7',
        expires: true,
      },
    ])
    expect(
      await prisma.user.findUnique({ where: { username: 'made' }, include: { sessions: true } }),
    ).toMatchObject({ sessions: [{ sessionToken: 'made-up-token', ipAddress: '192.0.2.7' }] })
  })

  it('leaves nothing of a transaction that fails at its second statement', async () => {
    const failing = prisma.$transaction(async (tx) => {
      const { id } = await tx.user.create({ data: { username: 'undone', passwordHash: 'made-up-hash' } })
      await tx.session.create(sessionOf(id, 'made-up-token'))
    })
    await expect(failing).rejects.toMatchObject({ code: 'P2002' })
    expect(await prisma.user.findUnique({ where: { username: 'undone' } })).toBeNull()
  })
})
