import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import { afterAll, expect } from 'vitest'
import { eventually } from './eventually.js'

const root = fileURLToPath(new URL('../..', import.meta.url))
export const PASSWORD = 'password-canary-1'
export const OPERATIONS_TOKEN = 'operations-canary-1'

/** A test that fails half way leaves its service running: none outlives the tests. */
const running = new Set<ChildProcess>()
afterAll(() => {
  for (const child of running) child.kill('SIGKILL')
})

/** The built service as a process of its own, on a database that the test hurts. */
export class Service {
  readonly child: ChildProcess
  readonly exit: Promise<number | null>
  #output = ''
  base = ''

  constructor(url: string, env: Record<string, string> = {}) {
    this.child = spawn(process.execPath, ['dist/main.js', 'serve'], {
      cwd: root,
      env: {
        PATH: process.env['PATH'],
        HOST: '127.0.0.1',
        PORT: '0',
        BCRYPT_COST: '4',
        AUTH_LOGIN: 'owner',
        AUTH_PASSWORD: PASSWORD,
        ENCRYPTION_KEY: `k:${Buffer.alloc(32, 1).toString('base64')}`,
        OPERATIONS_TOKEN,
        DATABASE_URL: url,
        // A fifth of the default: waiting 1 s, statement 2 s, client's timer 2.4 s, request 3 s.
        DATABASE_TIMEOUT: '6',
        DATABASE_POOL_SIZE: '8',
        DRAIN_SECONDS: '4',
        ...env,
      },
    })
    for (const stream of [this.child.stdout, this.child.stderr])
      stream?.on('data', (chunk: Buffer) => (this.#output += chunk.toString()))
    running.add(this.child)
    this.child.once('exit', () => running.delete(this.child))
    this.exit = once(this.child, 'exit').then(([code]) => code as number | null)
  }

  get output(): string {
    return this.#output
  }

  /** Resolves when it listens; with `ready`, when it serves. */
  async started(wait: 'listening' | 'ready' = 'ready'): Promise<this> {
    const port = await eventually('the service listens', () => {
      if (this.child.exitCode !== null) throw new Error(`the service ended:\n${this.#output}`)
      return /"port":(\d+)/.exec(this.#output)?.[1]
    })
    this.base = `http://127.0.0.1:${port}`
    if (wait === 'ready') await eventually('the service is ready', () => this.isReady())
    return this
  }

  async isReady(): Promise<true | undefined> {
    return (await fetch(`${this.base}/ready`)).ok ? true : undefined
  }

  async health(): Promise<Health> {
    return (await (await fetch(`${this.base}/health`)).json()) as Health
  }

  async request(
    method: string,
    path: string,
    { token, body, headers, signal }: RequestOptions = {},
  ): Promise<Answer> {
    const startedAt = performance.now()
    const type = method === 'PATCH' ? 'application/merge-patch+json' : 'application/json'
    const response = await fetch(this.base + path, {
      method,
      headers: {
        ...(token === undefined ? {} : { authorization: `Bearer ${token}` }),
        ...(body === undefined ? {} : { 'content-type': type }),
        ...headers,
      },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      ...(signal === undefined ? {} : { signal }),
    })
    const text = await response.text()
    const retryAfter = response.headers.get('retry-after')
    return {
      status: response.status,
      body: text === '' ? undefined : JSON.parse(text),
      retryAfter: retryAfter === null ? null : Number(retryAfter),
      headers: response.headers,
      elapsedMs: performance.now() - startedAt,
    }
  }

  /** A session of the owner. */
  async login(): Promise<string> {
    const { status, body } = await this.request('POST', '/v1/auth/login', {
      body: { username: 'owner', password: PASSWORD },
    })
    if (status !== 200) throw new Error(`login: ${status} ${JSON.stringify(body)}`)
    return body.token
  }

  async force(state: 'open' | 'closed' | 'auto'): Promise<void> {
    const { status } = await this.request('POST', '/health/circuit', {
      token: OPERATIONS_TOKEN,
      body: { state },
    })
    expect(status).toBe(200)
  }

  /** Ends it as a platform does, and looks at what it left: exit code 0, no crash, no secret in its log. */
  async stop(): Promise<void> {
    if (this.child.exitCode === null && this.child.signalCode === null) this.child.kill('SIGTERM')
    const giveUp = setTimeout(() => this.child.kill('SIGKILL'), 15_000)
    const code = await this.exit
    clearTimeout(giveUp)
    expect(code, this.#output.slice(-2000)).toBe(0)
    expect(this.#output).not.toMatch(/unhandled|uncaught|MaxListenersExceeded/i)
    expect(this.#output).not.toMatch(/canary/)
  }
}

export interface Health {
  status: string
  database: {
    breaker: {
      state: string
      calls: number
      failures: number
      slow: number
      openings: number
      retry_after_seconds: number | null
    }
    pool: { total: number; idle: number; waiting: number; limit: number }
    last_error: { class: string } | null
  }
}

export interface Answer {
  status: number
  // Of many shapes; a wrong one fails the assertion on it.
  // eslint-disable-next-line @typescript-eslint/no-explicit-any
  body: any
  retryAfter: number | null
  headers: Headers
  elapsedMs: number
}

export interface RequestOptions {
  token?: string
  body?: unknown
  headers?: Record<string, string>
  signal?: AbortSignal
}
