import { once } from 'node:events'
import { type AddressInfo, type Server, connect, createServer } from 'node:net'
import pg from 'pg'
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest'
import { connectionConfig } from '../../src/db/connection.js'
import { createLogin } from '../../src/db/create-login.js'
import { createDatabase } from '../../src/db/database.js'
import type { GuardedPool } from '../../src/db/guarded-pool.js'
import type { ConnectionSource, SourceConnection } from '../../src/db/source.js'
import { sessionRoutes } from '../../src/routes/sessions.js'
import { configRoutes } from '../../src/routes/config.js'
import { type Log, requestContext } from '../../src/routes/context.js'
import { errorResponse } from '../../src/routes/error-response.js'
import { RecentCallers } from '../../src/routes/recent-callers.js'
import { createRouter } from '../../src/routes/validate.js'
import { createToken, hashToken } from '../../src/security/tokens.js'
import { createPostgresDatabase, guardedPool } from '../engine.js'

let url: string
let drop: () => Promise<void>
let superuser: pg.Client
let owner: number
let token: string
let serial = 0
const pools: GuardedPool[] = []
const listeners: Server[] = []

beforeAll(async () => {
  ;({ url, drop } = await createPostgresDatabase())
  superuser = new pg.Client({ connectionString: url })
  await superuser.connect()
  const { rows } = await superuser.query<{ id: number }>(
    "insert into auth_users (username, username_key, password_hash, role) values ('o', 'o', 'x', 'owner') returning id",
  )
  owner = rows[0]?.id ?? 0
  token = createToken('gzs_')
  await superuser.query(
    "insert into auth_sessions (session_token, user_id, expires_at) values ($1, $2, now() + interval '1 day')",
    [hashToken(token), owner],
  )
})
afterEach(async () => {
  for (const listener of listeners.splice(0)) listener.close()
  await Promise.all(pools.splice(0).map((pool) => pool.end(100)))
})
afterAll(async () => {
  await superuser.end()
  await drop()
})

function open(size: number, at = url): GuardedPool {
  const pool = guardedPool(at, { size })
  pools.push(pool)
  return pool
}

/** The routes over a source, asked by the owner. */
function routesOver(source: Pick<ConnectionSource, 'connect'>) {
  const log: Log = { info: () => {}, warn: () => {}, error: () => {}, child: () => log }
  const deps = {
    db: createDatabase(source),
    ring: null,
    sessionIdleSeconds: 3600,
    recentCallers: new RecentCallers(),
  }
  const app = createRouter()
  app.use(requestContext(log, { requestMs: 15_000, trustedProxy: 0 }))
  app.onError(errorResponse)
  app.route('/', configRoutes(deps))
  app.route('/', sessionRoutes(deps))
  return async (method: string, path: string, key?: string, body?: unknown, headers = {}, as = token) => {
    const type = method === 'PATCH' ? 'application/merge-patch+json' : 'application/json'
    const response = await app.request(path, {
      method,
      headers: {
        authorization: `Bearer ${as}`,
        'content-type': type,
        ...(key === undefined ? {} : { 'idempotency-key': key }),
        ...headers,
      },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    })
    return {
      status: response.status,
      text: await response.text(),
      etag: response.headers.get('etag'),
      replayed: response.headers.get('idempotent-replayed') === 'true',
      retryAfter: response.headers.get('retry-after'),
    }
  }
}

/** Counts what is sent, and can make the next look miss its row: as a snapshot of a moment before does. */
class Watched {
  readonly #source: ConnectionSource
  trips = 0
  misses = 0

  constructor(source: ConnectionSource) {
    this.#source = source
  }

  async connect(): Promise<SourceConnection> {
    const connection = await this.#source.connect()
    return {
      execute: async (statements, deadline) => {
        this.trips += 1
        const result = await connection.execute(statements, deadline)
        if (this.misses === 0 || !/pg_try_advisory_xact_lock/.test(statements.at(-1)?.text ?? ''))
          return result
        this.misses -= 1
        return {
          ...result,
          rows: [{ locked: true, request_hash: null, status: null, response: null, fresh: null }],
        }
      },
      stream: (...given) => connection.stream(...given),
      release: () => connection.release(),
    }
  }
}

const entry = (): [path: string, key: string] => {
  serial += 1
  return [`/v1/config/global/e${serial}`, `k${serial}`]
}
const count = async (text: string, ...values: unknown[]): Promise<number> =>
  (await superuser.query(text, values)).rowCount ?? 0
const revisions = (path: string) =>
  count('select from config_revisions where key = $1', path.split('/').at(-1))
const kept = (key: string) => count('select from idempotency_keys where key = $1', key)
const auditRows = () => count("select from audit_events where source = 'service'")
const expire = (key: string) =>
  count("update idempotency_keys set created_at = now() - interval '24 hours' where key = $1", key)

/** Others than these tests wait for locks on this server. */
const waitingForUs = () =>
  count(
    `select from pg_locks mine join pg_locks theirs
         on (theirs.transactionid, theirs.objid) is not distinct from (mine.transactionid, mine.objid)
        and theirs.locktype = mine.locktype
      where mine.pid = pg_backend_pid() and mine.locktype in ('transactionid', 'advisory') and not theirs.granted`,
  )

/** A further session of the owner. */
async function signedIn(): Promise<string> {
  const own = createToken('gzs_')
  await superuser.query(
    "insert into auth_sessions (session_token, user_id, expires_at) values ($1, $2, now() + interval '1 day')",
    [hashToken(own), owner],
  )
  return own
}

type Call = ReturnType<typeof routesOver>
type Told = Awaited<ReturnType<Call>>

/**
 * Connections made from now on find a slow function in place of pg_try_advisory_xact_lock: it waits for the test, in
 * the midst of its statement, whose snapshot is made by then.
 */
async function lateForItsLock() {
  const { database } = superuser
  await superuser.query(`
    create function public.pg_try_advisory_xact_lock(number bigint) returns boolean language plpgsql as $$
    begin
      perform pg_catalog.pg_advisory_xact_lock_shared(4711);
      return pg_catalog.pg_try_advisory_xact_lock(number);
    end $$;
    alter database ${database} set search_path = public, pg_catalog`)
  const call = routesOver(open(1))
  await call('GET', '/v1/config/global/none')
  await superuser.query(`alter database ${database} reset search_path`)
  return async (second: (call: Call) => Promise<Told>, first: () => Promise<Told>) => {
    await superuser.query('select pg_advisory_lock(4711)')
    try {
      const waits = second(call)
      await expect.poll(waitingForUs, { timeout: 10_000 }).toBe(1)
      const told = { first: await first() }
      await superuser.query('select pg_advisory_unlock(4711)')
      return { ...told, second: await waits }
    } finally {
      await superuser.query('select pg_advisory_unlock_all()')
    }
  }
}

describe('a change with a key', () => {
  it('takes one round trip, a replay too, where it is one statement; three and two where it is more', async () => {
    const watched = new Watched(open(1))
    const call = routesOver(watched)
    const [path, key] = entry()
    const trips = async (work: Promise<{ status: number }>) => {
      watched.trips = 0
      return [(await work).status, watched.trips]
    }
    // The first request of a session looks it up beforehand.
    expect(await trips(call('GET', path))).toEqual([404, 2])
    expect(await trips(call('PUT', path, undefined, { value: {} }))).toEqual([201, 1])
    const match = { 'if-match': '"1"' }
    expect(await trips(call('PUT', path, key, { value: { a: 1 } }, match))).toEqual([200, 1])
    expect(await trips(call('PUT', path, key, { value: { a: 1 } }, match))).toEqual([200, 1])
    expect(await trips(call('PUT', path, key, { value: { a: 2 } }, match))).toEqual([422, 1])
    // A refusal looks once more whether it was made already.
    expect(await trips(call('PUT', path, `${key}-stale`, { value: 1 }, match))).toEqual([412, 2])
    // What was expired is in the way, is taken out of it, and the statement sent again.
    await expire(key)
    const whatever = { 'if-match': '*' }
    expect(await trips(call('PUT', path, key, { value: { a: 3 } }, whatever))).toEqual([200, 3])
    expect(await trips(call('PUT', path, key, { value: { a: 3 } }, whatever))).toEqual([200, 1])
    // These read first.
    expect(await trips(call('PATCH', path, undefined, { b: 1 }))).toEqual([200, 2])
    expect(await trips(call('PATCH', path, key, { b: 2 }))).toEqual([200, 4])
    expect(await trips(call('PATCH', path, key, { b: 2 }))).toEqual([200, 2])
    const placeholder = { value: { a: '****PSWD****' } }
    await call('PUT', path, undefined, { value: { a: 1 }, secret_paths: [] }, whatever)
    expect(await trips(call('PUT', path, `${key}-kept`, placeholder, whatever))).toEqual([422, 4])
    expect(await trips(call('DELETE', path, key, undefined, whatever))).toEqual([204, 1])
    expect(await trips(call('DELETE', path, key, undefined, whatever))).toEqual([204, 1])
    expect(await trips(call('DELETE', path, `${key}-gone`, undefined, whatever))).toEqual([404, 3])

    // A session's own routes look it up, always.
    const logout = async (key?: string) =>
      await trips(call('POST', '/v1/auth/logout', key, undefined, {}, await signedIn()))
    expect([await logout(), await logout(key)]).toEqual([
      [204, 2],
      [204, 2],
    ])
  })

  it('keeps its times in UTC, also where its connection is not', async () => {
    const login = `elsewhere_${process.pid}`
    const config = connectionConfig({ url, ssl: 'disable', sslCa: undefined })
    const { password } = await createLogin(config, login, 30_000)
    await superuser.query(`alter role ${login} set timezone to 'Asia/Tokyo'`)
    const own = Object.assign(new URL(url), { username: login, password })
    const pool = guardedPool(own.href, { size: 1, pooled: true })
    pools.push(pool)
    const apiKey = createToken('gzk_')
    await superuser.query(
      "insert into auth_api_keys (user_id, name, prefix, key_hash, scopes) values ($1, 'u', 'gzk_', $2, '{config:read,config:write}')",
      [owner, hashToken(apiKey)],
    )
    const { status, text } = await routesOver(pool)(
      'PUT',
      '/v1/config/global/elsewhere',
      'elsewhere',
      { value: 1 },
      {},
      apiKey,
    )
    const { created_at: told } = JSON.parse(text) as { created_at: string }
    const stored = await superuser.query<{ at: Date }>(
      "select created_at as at from config_entries where key = 'elsewhere'",
    )
    expect([status, Date.parse(told)]).toEqual([201, stored.rows[0]?.at.getTime()])
    await pool.end(1000)
    await superuser.query(`drop owned by ${login}`)
    await superuser.query(`drop role ${login}`)
  })

  it('names its route by method and template', async () => {
    const call = routesOver(open(1))
    const [path, key] = entry()
    await call('PUT', path, key, { value: 1 })
    const { rows } = await superuser.query('select caller, route from idempotency_keys where key = $1', [key])
    expect(rows).toEqual([{ caller: `user:${owner}`, route: 'PUT /v1/config/global/:key' }])
  })

  it('that looked a moment too early still gives the first answer, whatever the change met', async () => {
    const watched = new Watched(open(1))
    const call = routesOver(watched)
    for (const [method, before, body, headers, meets] of [
      ['PUT', false, { value: 1 }, {}, 'precondition_required'],
      ['PUT', false, { value: 1 }, { 'if-none-match': '*' }, 'version_mismatch'],
      ['PUT', true, { value: 1 }, { 'if-match': '"1"' }, 'version_mismatch'],
      ['PUT', true, { value: 1 }, { 'if-match': '*' }, 'its own row'],
      ['PATCH', true, { n: 1 }, {}, 'its own row'],
      ['DELETE', true, undefined, { 'if-match': '"1"' }, 'not_found'],
    ] as const) {
      const [path, key] = entry()
      if (before) await call('PUT', path, undefined, { value: {} })
      const first = await call(method, path, key, body, headers)
      expect(first.status, meets).toBeLessThan(300)
      const made = await revisions(path)
      watched.misses = 1
      expect(await call(method, path, key, body, headers), meets).toEqual({ ...first, replayed: true })
      expect(watched.misses).toBe(0)
      expect(await revisions(path), meets).toBe(made)
    }
  })

  const insertEntry = `insert into config_entries (scope, owner, environment, key, version, value, updated_by)
    values ('global', '', '', '$key', 1, '0', 'o')`
  const lockEntry = "select from config_entries where key = '$key' for update"
  it.each([
    ['a creation', 'PUT', { value: 1 }, {}, insertEntry],
    ['a replacement', 'PUT', { value: 1 }, { 'if-match': '*' }, lockEntry],
    ['a patch', 'PATCH', { n: 1 }, {}, lockEntry],
    ['a deletion', 'DELETE', undefined, { 'if-match': '*' }, lockEntry],
    ['a sign-out', 'POST', undefined, {}, 'select from auth_sessions for update'],
  ] as const)(
    'answers in_progress at once while the first one runs, and the first answer after: %s',
    async (_, method, body, headers, hold) => {
      const call = routesOver(open(5))
      const [entryPath, key] = entry()
      const path = method === 'POST' ? '/v1/auth/logout' : entryPath
      const session = await signedIn()
      if (hold === lockEntry) await call('PUT', path, undefined, { value: {} })
      const made = await revisions(path)
      const make = () => call(method, path, key, body, headers, session)
      const whileTheFirstWaits = async () => {
        await superuser.query('begin')
        try {
          await superuser.query(hold.replace('$key', path.split('/').at(-1) ?? ''))
          const first = make()
          await expect.poll(waitingForUs, { timeout: 10_000 }).toBe(1)
          const startedAt = performance.now()
          const second = await make()
          expect(performance.now() - startedAt).toBeLessThan(1000)
          return { first, second }
        } finally {
          await superuser.query('rollback')
        }
      }
      const { first, second } = await whileTheFirstWaits()
      expect([second.status, JSON.parse(second.text).code, second.retryAfter]).toEqual([
        409,
        'in_progress',
        '1',
      ])
      expect((await first).status).toBeLessThan(300)
      // After a sign-out its token names nobody.
      if (method === 'POST') return
      expect(await make()).toEqual({ ...(await first), replayed: true })
      expect(await revisions(path)).toBe(made + 1)
    },
  )

  it('whose snapshot is older than the first answer, and its lock younger, is undone and tells that answer', async () => {
    const inTime = routesOver(open(1))
    const session = await signedIn()
    // Both connections are there before the lock is made to wait for the test.
    const late = await lateForItsLock()
    expect((await inTime('GET', '/v1/auth/session', undefined, undefined, {}, session)).status).toBe(200)
    for (const [what, before, method, body, headers] of [
      ['its row is there', undefined, 'PUT', { value: 1 }, {}],
      ['its row is there', undefined, 'PUT', { value: 1 }, { 'if-none-match': '*' }],
      ['another version', { value: 0 }, 'PUT', { value: 1 }, { 'if-match': '"1"' }],
      ['it would be made twice', { value: 0 }, 'PUT', { value: 1 }, { 'if-match': '*' }],
      ['its row is gone', { value: 0 }, 'DELETE', undefined, { 'if-match': '*' }],
      ['its session is gone', undefined, 'POST', undefined, {}],
    ] as const) {
      const [entryPath, key] = entry()
      const path = method === 'POST' ? '/v1/auth/logout' : entryPath
      if (before !== undefined) await inTime('PUT', path, undefined, before)
      const [made, events] = [await revisions(path), await auditRows()]
      const { second, first } = await late(
        (call) => call(method, path, key, body, headers, session),
        () => inTime(method, path, key, body, headers, session),
      )
      expect(first.status, what).toBeLessThan(300)
      expect(first.replayed).toBe(false)
      expect(second, what).toEqual({ ...first, replayed: true })
      expect([await auditRows(), await kept(key)], what).toEqual([events + 1, 1])
      if (method !== 'POST') expect(await revisions(path), what).toBe(made + 1)
    }
  })

  it('expired is made anew by one of twenty at once', async () => {
    const call = routesOver(open(5))
    const [path, key] = entry()
    const put = () => call('PUT', path, key, { value: 1 }, { 'if-match': '*' })
    await call('PUT', path, undefined, { value: 0 })
    await put()
    await expire(key)
    const answers = await Promise.all(Array.from({ length: 20 }, put))
    const done = answers.filter(({ status }) => status === 200)
    expect(done.filter(({ replayed }) => !replayed)).toHaveLength(1)
    expect(new Set(done.map(({ text, etag }) => text + etag)).size).toBe(1)
    for (const { status, text } of answers)
      if (status !== 200) expect([status, JSON.parse(text).code]).toEqual([409, 'in_progress'])
    expect([await revisions(path), await kept(key)]).toEqual([3, 1])
  })

  it('needs one connection, also where several want it at once', async () => {
    const call = routesOver(open(1))
    const [path, key] = entry()
    const whatever = { 'if-match': '*' }
    expect((await call('PUT', path, key, { value: { a: 1 } })).status).toBe(201)
    expect((await call('PUT', path, `${key}p`, { value: { a: '****PSWD****' } }, whatever)).status).toBe(422)
    expect((await call('PUT', path, `${key}n`, { value: 1 })).status).toBe(428)
    expect((await call('DELETE', path, `${key}n`)).status).toBe(428)
    const answers = await Promise.all([
      ...Array.from({ length: 6 }, (_, n) => call('PATCH', path, `${key}-${n}`, { [`n${n}`]: n })),
      ...Array.from({ length: 3 }, () => call('PUT', path, key, { value: { a: 1 } })),
    ])
    expect(answers.map(({ status }) => status)).toEqual([...Array(6).fill(200), ...Array(3).fill(201)])
    expect((await call('DELETE', path, key, undefined, { 'if-match': '*' })).status).toBe(204)
    expect(await revisions(path)).toBe(8)
  })

  it('loses no update among many others of the same entry', async () => {
    const call = routesOver(open(5))
    const [path, key] = entry()
    await call('PUT', path, undefined, { value: {} })
    const answers = await Promise.all(
      Array.from({ length: 20 }, (_, n) => call('PATCH', path, `${key}-${n}`, { [`n${n}`]: n })),
    )
    expect(new Set(answers.map(({ status }) => status))).toEqual(new Set([200]))
    const { value } = JSON.parse((await call('GET', path)).text) as { value: object }
    expect(Object.keys(value)).toHaveLength(20)
  })

  it('that is a sign-out says the same to a request let in before the session ended', async () => {
    const call = routesOver(open(1))
    const signOuts = "select from audit_events where action = 'auth.logout'"
    const before = await count(signOuts)
    const own = createToken('gzs_')
    const sessions = "values ($1, $2, now() + interval '1 day'"
    const { rows } = await superuser.query<{ id: number }>(
      `insert into auth_sessions (session_token, user_id, expires_at) ${sessions}) returning id`,
      [hashToken(own), owner],
    )
    const logout = () => call('POST', '/v1/auth/logout', 'bye', undefined, {}, own)
    const first = await logout()
    expect([first.status, first.replayed]).toEqual([204, false])
    expect((await logout()).status).toBe(401)
    await superuser.query(
      `insert into auth_sessions (session_token, user_id, expires_at, id) overriding system value ${sessions}, $3)`,
      [hashToken(own), owner, rows[0]?.id],
    )
    expect(await logout()).toEqual({ ...first, replayed: true })
    expect(await count(signOuts)).toBe(before + 1)
  })
})

describe('a connection that is lost after the change was sent', () => {
  /** A way to the server that is cut once it has answered what has this in it, and only then. */
  async function cutAfter(last: string): Promise<string> {
    const { hostname, port } = new URL(url)
    let armed = true
    const listener = createServer((client) => {
      const server = connect(Number(port || 5432), hostname)
      let answering = false
      client.on('data', (chunk) => {
        answering ||= armed && chunk.includes(last)
        server.write(chunk)
      })
      server.on('data', (chunk) => {
        if (!answering) return void client.write(chunk)
        armed = false
        client.resetAndDestroy()
      })
      for (const end of [client, server]) {
        end.on('error', () => end.destroy())
        end.on('close', () => (end === client ? server : client).destroy())
      }
    }).listen(0, '127.0.0.1')
    listeners.push(listener)
    await once(listener, 'listening')
    const at = new URL(url)
    at.host = `127.0.0.1:${(listener.address() as AddressInfo).port}`
    return at.href
  }

  it.each([
    ['PUT', 'insert into idempotency_keys', { value: 1 }, { 'if-match': '*' }],
    ['PATCH', 'commit', { a: 1 }, {}],
    ['DELETE', 'insert into idempotency_keys', undefined, { 'if-match': '*' }],
  ] as const)(
    'leaves the outcome unknown, and the same request again tells it: one change, by %s',
    async (method, last, body, headers) => {
      const [path, key] = entry()
      await routesOver(open(1))('PUT', path, undefined, { value: {} })
      const call = routesOver(open(2, await cutAfter(last)))
      const lost = await call(method, path, key, body, headers)
      expect([lost.status, JSON.parse(lost.text).code, lost.retryAfter]).toEqual([
        504,
        'outcome_unknown',
        '1',
      ])
      // Nothing of the answer that was to be given.
      expect(lost.etag).toBeNull()
      const told = await call(method, path, key, body, headers)
      expect([told.status, told.replayed]).toEqual([method === 'DELETE' ? 204 : 200, true])
      expect([await revisions(path), await kept(key)]).toEqual([2, 1])
    },
  )
})

describe('a stored answer', () => {
  /** What a statement does under an identity; nothing stays. */
  async function as(actor: string, text: string): Promise<string | number> {
    await superuser.query(`begin; set local role gary_caller; set local app.actor = '${actor}'`)
    try {
      return (await superuser.query(text)).rowCount ?? 0
    } catch (error) {
      return (error as pg.DatabaseError).code ?? String(error)
    } finally {
      await superuser.query('rollback')
    }
  }
  const DENIED = '42501'

  beforeAll(async () => {
    await superuser.query(
      `insert into idempotency_keys (caller, route, key, request_hash, status, response, created_at) values
         ('user:1001', 'r', 'fresh', 'h', 200, '{}', now() - interval '23 hours 59 minutes'),
         ('user:1001', 'r', 'expired', 'h', 200, '{}', now() - interval '24 hours 1 second'),
         ('api_key:1001', 'r', 'fresh', 'h', 200, '{}', now() - interval '25 hours')`,
    )
  })

  it('is seen by its caller alone: not by another, and not by a key of the same number', async () => {
    const all = 'select from idempotency_keys'
    expect(await as('user:1001', all)).toBe(2)
    expect(await as('api_key:1001', all)).toBe(1)
    expect(await as('user:1002', all)).toBe(0)
    expect(await as('', all)).toBe(0)
  })

  it('is made for oneself, and not back-dated or dated ahead', async () => {
    const insert = (caller: string, more = '', value = '') =>
      `insert into idempotency_keys (caller, route, key, request_hash, status, response${more})
       values ('${caller}', 'r', 'new', 'h', 200, '{}'${value})`
    expect(await as('user:1002', insert('user:1002'))).toBe(1)
    expect(await as('user:1002', insert('user:1001'))).toBe(DENIED)
    expect(await as('user:1002', insert('user:1002', ', created_at', ", now() + interval '1 year'"))).toBe(
      DENIED,
    )
  })

  it('is never changed, and goes only when it is expired, by its own caller', async () => {
    expect(await as('user:1001', "update idempotency_keys set response = ''")).toBe(DENIED)
    expect(await as('user:1001', 'delete from idempotency_keys')).toBe(1)
    expect(await as('user:1001', "delete from idempotency_keys where key = 'fresh'")).toBe(0)
    expect(await as('user:1002', 'delete from idempotency_keys')).toBe(0)
    expect(await as('', 'delete from idempotency_keys')).toBe(0)
  })
})
