import { afterAll, beforeAll } from 'vitest'
import { MemorySource } from '../src/db/memory.js'
import { readEnv } from '../src/env.js'
import type { Log } from '../src/routes/context.js'
import { createToken, hashToken } from '../src/security/tokens.js'
import { closeServer, createService, listen } from '../src/service.js'
import { type TestDatabase, createTestDatabase } from './engine.js'

export const PASSWORD = 'correct horse battery'

export interface Answer {
  status: number
  headers: Headers
  text: string
  // Tests read bodies of many shapes; a wrong one fails the assertion on it.
  // eslint-disable-next-line @typescript-eslint/no-explicit-any
  body: any
}

export interface TestService {
  /** Where it listens, on 127.0.0.1. */
  port: number
  /** A request; `body` that is no string is sent as JSON, `token` as bearer. */
  call(method: string, path: string, options?: CallOptions): Promise<Answer>
  /** A session token of the owner `owner`. */
  ownerToken: string
  /** Of a service without AUTH_LOGIN; else empty. */
  setupToken: string
  database: TestDatabase
  /** A key of that user, made past the API and its rules. */
  keyOf(userId: number, scopes: readonly string[]): Promise<string>
  /** Everything logged so far, as text. */
  logged(): string
}

export interface CallOptions {
  token?: string
  body?: unknown
  headers?: Record<string, string>
}

/** The service on the engine of this run, with an owner who is signed in; ended after the file. */
export function useService(env: Record<string, string> = {}): TestService {
  const service = {} as TestService
  let database: TestDatabase | undefined
  let close: (() => Promise<void>) | undefined
  const lines: string[] = []
  const log: Log = {
    info: (fields, message) => void lines.push(JSON.stringify({ ...fields, message })),
    warn: (fields, message) => void lines.push(JSON.stringify({ ...fields, message, cause: causes(fields) })),
    error: (fields, message) =>
      void lines.push(JSON.stringify({ ...fields, message, cause: causes(fields) })),
    child: () => log,
  }

  beforeAll(async () => {
    database = await createTestDatabase()
    const { source } = database
    const built = createService({
      env: readEnv({
        BCRYPT_COST: '4',
        ENCRYPTION_KEY: `test:${Buffer.alloc(32, 1).toString('base64')}`,
        AUTH_LOGIN: 'owner',
        AUTH_PASSWORD: PASSWORD,
        ...env,
      }),
      source,
      streamSource: source,
      requestMs: 15_000,
      log,
      checkRoles: !(source instanceof MemorySource),
      onSetupToken: (token) => (service.setupToken = token),
    })
    await built.becomeReady(new AbortController().signal)
    const { server, port } = await listen(built.createListener(), '127.0.0.1', 0)
    close = () => closeServer(server, 1000)
    service.port = port
    service.database = database
    service.keyOf = async (userId, scopes) => {
      const key = createToken('gzk_')
      await service.database.read(
        `insert into auth_api_keys (user_id, name, prefix, key_hash, scopes)
         values (${userId}, 'test', 'gzk_test', '${hashToken(key)}', '{${scopes.join(',')}}')`,
      )
      return key
    }
    service.logged = () => lines.join('\n')
    service.call = async (method, path, { token, body, headers = {} } = {}) => {
      const type = method === 'PATCH' ? 'application/merge-patch+json' : 'application/json'
      const response = await fetch(`http://127.0.0.1:${port}${path}`, {
        method,
        headers: {
          ...(token === undefined ? {} : { authorization: `Bearer ${token}` }),
          ...(body === undefined ? {} : { 'content-type': type }),
          ...headers,
        },
        ...(body === undefined ? {} : { body: typeof body === 'string' ? body : JSON.stringify(body) }),
      })
      const text = await response.text()
      const isJson =
        response.headers.get('content-type')?.includes('json') === true &&
        !response.headers.get('content-type')?.includes('ndjson')
      return {
        status: response.status,
        headers: response.headers,
        text,
        body: isJson ? JSON.parse(text) : undefined,
      }
    }
    const { body } = await service.call('POST', '/v1/auth/login', {
      body: { username: 'owner', password: PASSWORD },
    })
    service.ownerToken = body.token ?? ''
  })
  afterAll(async () => {
    await close?.()
    await database?.drop()
  })
  return service
}

function causes(fields: object): string {
  const { err } = fields as { err?: unknown }
  return err instanceof Error
    ? `${err.stack ?? err.message} ${err.cause instanceof Error ? (err.cause.stack ?? '') : ''}`
    : ''
}
