import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { createServer } from 'node:net'
import { fileURLToPath } from 'node:url'
import { afterEach, beforeAll, describe, expect, it } from 'vitest'
import { build } from '../build.js'
import { createPostgresDatabase } from '../engine.js'

const root = fileURLToPath(new URL('../..', import.meta.url))
const children: Running[] = []

interface Running {
  child: ChildProcess
  output(): string
  exit: Promise<number | null>
}

beforeAll(build)
afterEach(async () => {
  for (const { child, exit } of children.splice(0)) {
    child.kill('SIGKILL')
    await exit
  }
})

function run(args: string[], env: Record<string, string>): Running {
  const child = spawn(process.execPath, ['dist/main.js', ...args], {
    cwd: root,
    env: {
      PATH: process.env['PATH'],
      HOST: '127.0.0.1',
      PORT: '0',
      BCRYPT_COST: '4',
      DATABASE_TIMEOUT: '5',
      DRAIN_SECONDS: '3',
      ...env,
    },
  })
  let output = ''
  child.stdout.on('data', (chunk: Buffer) => (output += chunk.toString()))
  child.stderr.on('data', (chunk: Buffer) => (output += chunk.toString()))
  const exit = once(child, 'exit').then(([code]) => code as number | null)
  const running = { child, output: () => output, exit }
  children.push(running)
  return running
}

async function eventually<T>(look: () => T | undefined | Promise<T | undefined>): Promise<T> {
  for (const started = Date.now(); Date.now() - started < 20_000;) {
    const found = await look()
    if (found !== undefined) return found
    await new Promise((resolve) => setTimeout(resolve, 25))
  }
  throw new Error('did not happen in 20 s')
}

const baseOf = (running: Running): Promise<string> =>
  eventually(() => {
    const port = /"port":(\d+)/.exec(running.output())?.[1]
    return port === undefined ? undefined : `http://127.0.0.1:${port}`
  })

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as { port: number }
  server.close()
  return port
}

describe('serve', () => {
  it('logs JSON lines only, tells the set-up line once, and ends with 0 on SIGTERM', async () => {
    const { url, drop } = await createPostgresDatabase()
    const service = run(['serve'], { DATABASE_URL: url })
    const base = await baseOf(service)
    await eventually(async () => ((await fetch(`${base}/ready`)).ok ? true : undefined))
    await eventually(() => (service.output().includes('"ready"') ? true : undefined))
    for (const line of service.output().trim().split('\n')) {
      expect(JSON.parse(line)).toMatchObject({ level: expect.any(String), message: expect.any(String) })
    }
    expect(service.output().match(/gzi_/g)).toHaveLength(1)
    service.child.kill('SIGTERM')
    expect(await service.exit).toBe(0)
    await drop()
  })

  it('starts without its database: alive, not ready, 503 with Retry-After; SIGTERM still ends it with 0', async () => {
    const service = run(['serve'], {
      DATABASE_URL: `postgres://postgres:p-canary@127.0.0.1:${await freePort()}/none`,
    })
    const base = await baseOf(service)
    expect((await fetch(`${base}/health/live`)).status).toBe(200)
    expect((await fetch(`${base}/ready`)).status).toBe(503)
    const answer = await fetch(`${base}/v1/auth/session`, {
      headers: { authorization: `Bearer gzs_${'a'.repeat(43)}` },
    })
    expect([answer.status, ((await answer.json()) as { code: string }).code]).toEqual([503, 'unavailable'])
    expect(Number(answer.headers.get('retry-after'))).toBeGreaterThanOrEqual(1)
    service.child.kill('SIGTERM')
    expect(await service.exit).toBe(0)
    expect(service.output()).not.toContain('p-canary')
  })

  it('lets a request finish that was under way at SIGTERM, and takes no new connection', async () => {
    const { url, drop } = await createPostgresDatabase()
    const service = run(['serve'], {
      DATABASE_URL: url,
      AUTH_LOGIN: 'me',
      AUTH_PASSWORD: 'a long password',
      BCRYPT_COST: '12',
    })
    const base = await baseOf(service)
    await eventually(async () => ((await fetch(`${base}/ready`)).ok ? true : undefined))
    const login = fetch(`${base}/v1/auth/login`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ username: 'me', password: 'a long password' }),
    })
    // The hash takes a quarter of a second: the signal comes while it runs.
    await new Promise((resolve) => setTimeout(resolve, 60))
    service.child.kill('SIGTERM')
    expect((await login).status).toBe(200)
    const answered = Date.now()
    expect(await service.exit).toBe(0)
    expect(Date.now() - answered, 'it waits for no idle connection').toBeLessThan(2000)
    await expect(fetch(`${base}/health/live`)).rejects.toThrow('fetch failed')
    await drop()
  })

  it('refuses to start with faults in the environment, all at once and by name', async () => {
    const service = run(['serve'], {
      DATABASE_URL: 'postgres://${{ref}}',
      DATABASE_POOL_SIZE: 'many',
      PORT: '-1',
    })
    expect(await service.exit).toBe(1)
    for (const name of ['DATABASE_URL', 'DATABASE_POOL_SIZE', 'PORT'])
      expect(service.output()).toContain(name)
  })

  it('refuses an unsafe database: a table without row-level security', async () => {
    const { url, drop } = await createPostgresDatabase()
    const { default: pg } = await import('pg')
    const admin = new pg.Client({ connectionString: url })
    await admin.connect()
    await admin.query('alter table config_entries no force row level security')
    const service = run(['serve'], { DATABASE_URL: url })
    expect(await service.exit).toBe(1)
    expect(service.output()).toContain('config_entries')
    await admin.end()
    await drop()
  })
})

describe('migrate', () => {
  it('brings an empty database to where serve is ready, also from two processes at once', async () => {
    const { url, drop } = await createPostgresDatabase()
    const { default: pg } = await import('pg')
    const admin = new pg.Client({ connectionString: url })
    await admin.connect()
    await admin.query(
      'drop schema public cascade; drop schema gary cascade; drop schema reports cascade; create schema public',
    )
    await admin.end()
    const runs = [run(['migrate'], { DATABASE_URL: url }), run(['migrate'], { DATABASE_URL: url })]
    expect(await Promise.all(runs.map(({ exit }) => exit))).toEqual([0, 0])
    const service = run(['serve'], { DATABASE_URL: url })
    const base = await baseOf(service)
    await eventually(async () => ((await fetch(`${base}/ready`)).ok ? true : undefined))
    service.child.kill('SIGTERM')
    expect(await service.exit).toBe(0)
    await drop()
  })
})
