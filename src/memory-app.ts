import { readEnv } from './env.js'
import { MemorySource } from './db/memory.js'
import type { Log } from './routes/context.js'
import { createService } from './service.js'

export interface MemoryAppOptions {
  /** Made at once, so that a test can sign in. */
  owner?: { username: string; password: string }
  /** Any of the service's variables, such as SERVICE_API_KEY; none is read from the process. */
  env?: Record<string, string>
}

export interface MemoryApp {
  /** The web-standard handler, for a server or for tests: `await app.fetch(new Request('http://x/health'))`. */
  fetch(request: Request): Promise<Response>
  /** The one-time token for POST /v1/setup; null when an owner was given. */
  setupToken: string | null
}

/**
 * The whole API over tables in this process: no server, no files, nothing left behind. Passwords are
 * hashed at the lowest cost, in one thread that ends when it is idle. What it cannot show (row-level security,
 * concurrency, faults) is in the README.
 */
export async function createMemoryApp(options: MemoryAppOptions = {}): Promise<MemoryApp> {
  const source = new MemorySource()
  let setupToken: string | null = null
  const service = createService({
    env: readEnv({
      BCRYPT_COST: '4',
      HASHING_THREADS: '1',
      ENCRYPTION_KEY: `memory:${Buffer.alloc(32, 7).toString('base64')}`,
      ...(options.owner === undefined
        ? {}
        : { AUTH_LOGIN: options.owner.username, AUTH_PASSWORD: options.owner.password }),
      ...options.env,
    }),
    source,
    streamSource: source,
    requestMs: 15_000,
    log: SILENT,
    checkRoles: false,
    onSetupToken: (token) => (setupToken = token),
  })
  await service.becomeReady(new AbortController().signal)
  return { fetch: async (request) => await service.app.fetch(request), setupToken }
}

const SILENT: Log = { info: () => {}, warn: () => {}, error: () => {}, child: () => SILENT }
