import { execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, rm, symlink } from 'node:fs/promises'
import { type AddressInfo, type Socket, connect, createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest'
import { connectionConfig } from '../../src/db/connection.js'
import { migrate } from '../../src/db/migrate.js'
import { KEY_TEXT, MIGRATIONS, type OlderDatabase, olderDatabases, stateOf, takeOver } from './adopting.js'
import { connectOlder, signIn } from './older-application.js'
import { OLDER_USERS } from './older-database.js'

const root = resolve(import.meta.dirname, '../..')

// The service's migrate in a process of its own, so that it can be killed.
const childScript = `
const [folder, argument] = process.argv.slice(1)
const { migrate } = await import(folder + '/build/db/migrate.js')
const { parseEncryptionKeys } = await import(folder + '/build/security/secret-box.js')
const { key, ...options } = JSON.parse(argument)
const adoption = { ownerName: undefined, ring: parseEncryptionKeys(key) }
await migrate({ ...options, adoption, log() {} })
process.exit()
`

let databases: Awaited<ReturnType<typeof olderDatabases>>
let older: OlderDatabase
let undisturbed: Record<string, unknown>
/** The service as it is built, for this file alone. */
let built: string

beforeAll(async () => {
  built = await mkdtemp(join(tmpdir(), 'gary-built-'))
  for (const name of ['node_modules', 'prisma', 'package.json'])
    await symlink(join(root, name), join(built, name))
  const tsc = join(root, 'node_modules/.bin/tsc')
  const options = ['--outDir', `${built}/build`, '--tsBuildInfoFile', `${built}/tsbuildinfo`]
  await promisify(execFile)(tsc, ['-p', 'tsconfig.build.json', ...options], { cwd: root })
  databases = await olderDatabases()
  const first = await databases.make()
  await takeOver(first.url)
  undisturbed = await stateOf(first.url)
  await first.drop()
})
afterAll(async () => {
  await databases?.drop()
  await rm(built, { recursive: true, force: true })
})
beforeEach(async () => {
  older = await databases.make()
})
afterEach(() => older.drop())

/** A way to the server that counts the packets which pass, and acts at one of them. */
async function openWay(url: string) {
  const { hostname, port } = new URL(url)
  const sockets = new Set<Socket>()
  const way = {
    packets: 0,
    /** Called before each packet to the server; true when that one is not to arrive. */
    onPacket: (_count: number): boolean => false,
    url: '',
    cut(): void {
      for (const socket of sockets) socket.destroy()
    },
    close(): void {
      way.cut()
      listener.close()
    },
  }
  const listener = createServer((client) => {
    const server = connect(Number(port || 5432), hostname)
    for (const socket of [client, server]) {
      sockets.add(socket)
      socket
        .on('error', () => {})
        .on('close', () => {
          client.destroy()
          // What has arrived is done by the server, and what it answers is heard by nobody.
          server.end()
          sockets.delete(socket)
        })
    }
    server.pipe(client)
    client.on('data', (chunk) => {
      way.packets += 1
      if (way.onPacket(way.packets)) return
      server.write(chunk)
    })
  }).listen(0, '127.0.0.1')
  await once(listener, 'listening')
  const through = new URL(url)
  through.host = `127.0.0.1:${(listener.address() as AddressInfo).port}`
  way.url = through.href
  return way
}

type Way = Awaited<ReturnType<typeof openWay>>

async function withWay<T>(work: (way: Way) => Promise<T>): Promise<T> {
  const way = await openWay(older.url)
  try {
    return await work(way)
  } finally {
    way.close()
  }
}

/** The older tables in their place with nothing of ours beside them, or everything taken over: nothing in between. */
async function expectAllOrNothing(): Promise<'untouched' | 'taken over'> {
  const untouched = "select to_regclass('auth_adoption') is null as untouched"
  await vi.waitUntil(async () => (await sessions()) === 0, { timeout: 10_000 })
  const [row] = await older.query<{ untouched: boolean }>(untouched)
  if (row?.untouched !== true) {
    expect(await stateOf(older.url)).toEqual(undisturbed)
    return 'taken over'
  }
  expect(
    await older.query(
      "select relname from pg_class where relnamespace = 'public'::regnamespace and relkind = 'r' order by 1",
    ),
  ).toEqual([{ relname: 'auth_oauth_tokens' }, { relname: 'auth_sessions' }, { relname: 'auth_users' }])
  expect(await older.query('select count(*)::int as n from auth_users')).toEqual([{ n: OLDER_USERS.length }])
  expect(
    await older.query("select nspname from pg_namespace where nspname in ('legacy', 'gary', 'reports')"),
  ).toEqual([])
  return 'untouched'
}

/** How many sessions of a migration the server still has: one that was cut off ends by itself. */
async function sessions(): Promise<number> {
  const [row] = await older.query<{ n: number }>(
    `select count(*)::int as n from pg_stat_activity
      where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'`,
  )
  return row?.n ?? 0
}

function optionsAt(url: string) {
  const pgConfig = connectionConfig({ url, ssl: 'disable', sslCa: undefined })
  return { pgConfig, folder: MIGRATIONS, waitMs: 10_000 }
}

/** How many packets a whole run sends. */
async function countPackets(): Promise<number> {
  const whole = await databases.make()
  const way = await openWay(whole.url)
  try {
    await takeOver(way.url)
    return way.packets
  } finally {
    way.close()
    await whole.drop()
  }
}

describe('taking over', { timeout: 300_000 }, () => {
  it('is whole or did not begin, when its process is killed at any of many moments, and the next run completes it', async () => {
    const total = await countPackets()
    // All over the run, and each of the last ones: among them is the commit.
    const points = [
      ...Array.from({ length: 10 }, (_, i) => Math.ceil(((i + 0.5) * (total - 6)) / 10)),
      ...Array.from({ length: 6 }, (_, i) => total - 5 + i),
    ]
    const outcomes = { untouched: 0, 'taken over': 0 }
    let kills = 0
    for (const [index, point] of points.entries()) {
      await withWay(async (way) => {
        const argument = JSON.stringify({ ...optionsAt(way.url), key: KEY_TEXT })
        const child = spawn(process.execPath, ['--input-type=module', '-e', childScript, built, argument], {
          stdio: ['ignore', 'ignore', 'inherit'],
        })
        way.onPacket = (count) => {
          if (count === point) child.kill('SIGKILL')
          // In turn: the packet at which it dies still arrives, or does not.
          return count === point && index % 2 === 0
        }
        const [, signal] = (await once(child, 'exit')) as [number | null, string | null]
        if (signal === 'SIGKILL') kills += 1
      })
      const outcome = await expectAllOrNothing()
      outcomes[outcome] += 1
      if (outcome === 'taken over') {
        await older.drop()
        older = await databases.make()
      }
    }
    expect(kills).toBeGreaterThanOrEqual(15)
    expect(outcomes.untouched).toBeGreaterThanOrEqual(10)
    await takeOver(older.url)
    expect(await stateOf(older.url)).toEqual(undisturbed)
  })

  it('is whole or did not begin, when the connection breaks at any of its statements', async () => {
    const total = await countPackets()
    const outcomes = new Set<string>()
    for (let point = 1; point <= total; point += point < total - 12 ? 4 : 1) {
      for (const arrives of point < total - 12 ? [false] : [false, true]) {
        await withWay(async (way) => {
          way.onPacket = (count) => {
            if (count !== point) return false
            // After this packet is written, or instead of it.
            if (arrives) setImmediate(() => way.cut())
            else way.cut()
            return !arrives
          }
          await takeOver(way.url).catch(() => {})
        })
        const outcome = await expectAllOrNothing()
        outcomes.add(outcome)
        if (outcome === 'taken over') {
          await older.drop()
          older = await databases.make()
        }
      }
    }
    expect([...outcomes].sort()).toEqual(['taken over', 'untouched'])
    await takeOver(older.url)
    expect(await stateOf(older.url)).toEqual(undisturbed)
  })

  it('waits for a session that holds the tables, names it, and lets others to their turn meanwhile', async () => {
    const idle = await connectOlder(older.url)
    const other = await connectOlder(older.url)
    const said: string[] = []
    try {
      // As the older application leaves its connections: in a transaction that nothing ends.
      await idle.query("set application_name to 'older application'; begin; select 1 from auth_users")
      const running = migrate({ ...optionsAt(older.url), log: (line) => void said.push(line) })
      await vi.waitUntil(() => said.some((line) => line.startsWith('waiting')), { timeout: 20_000 })
      expect(said.find((line) => line.startsWith('waiting'))).toMatch(
        /hold the tables: older application \(process \d+, idle in transaction since /,
      )
      const alice = OLDER_USERS[0]
      expect(await signIn(other, alice.username, alice.hash, new Date())).toBe('signed in')
      await idle.query('commit')
      await running
      expect(await older.query('select count(*)::int as n from auth_users')).toEqual([{ n: 8 }])
    } finally {
      await idle.end()
      await other.end()
    }
  })

  it('gives up after its time, with nothing changed and the session named', async () => {
    const idle = await connectOlder(older.url)
    try {
      await idle.query("set application_name to 'older application'; begin; select 1 from auth_sessions")
      await expect(takeOver(older.url)).rejects.toMatchObject({
        code: 'failed',
        message: expect.stringMatching(
          /^Nothing was changed, for other sessions hold the tables: older application \(process /,
        ),
      })
    } finally {
      await idle.end()
    }
    expect(await expectAllOrNothing()).toBe('untouched')
  })

  it('makes a statement of the older application wait, which then finds the new tables', async () => {
    const client = await connectOlder(older.url)
    try {
      const [alice] = OLDER_USERS
      const answers: string[] = []
      const running = takeOver(older.url)
      const state = { isDone: false }
      void running.finally(() => (state.isDone = true)).catch(() => {})
      while (!state.isDone) {
        answers.push(await signIn(client, alice.username, alice.hash, new Date()))
        await sleep(5)
      }
      await running
      answers.push(await signIn(client, alice.username, alice.hash, new Date()))
      expect(new Set(answers)).toEqual(new Set(['signed in']))
      // The last one is in the new table and not in the old one.
      expect(
        await older.query(
          'select n.last_login > o.last_login as newer from auth_users n join legacy.auth_users o using (id) where id = 1',
        ),
      ).toEqual([{ newer: true }])
    } finally {
      await client.end()
    }
  })
})
