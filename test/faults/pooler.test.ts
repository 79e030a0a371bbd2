import { hashSync } from '@node-rs/bcrypt'
import pg from 'pg'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { Proxy } from '../proxy.js'
import { Cluster } from './cluster.js'
import { eventually } from './eventually.js'
import { type Scene, underLoad } from './fault.js'
import { PgBouncer, SERVER_CONNECTIONS } from './pgbouncer.js'
import { PASSWORD, Service } from './service.js'

const POOLED = { DATABASE_POOLED: 'true' }
/** So long that the limits of the login never speak before those of the service. */
const LOGIN_TIMEOUT_MS = 600_000

let cluster: Cluster
let pooler: PgBouncer

beforeAll(async () => {
  cluster = await Cluster.create()
  pooler = await PgBouncer.start(cluster, LOGIN_TIMEOUT_MS)
})
afterAll(async () => {
  await pooler?.destroy()
  await cluster.destroy()
})

interface Stage {
  database: string
  proxy: Proxy
  service: Service
}

/** A service on a database of its own behind PgBouncer, ended whatever happens. */
async function onStage(env: Record<string, string>, play: (stage: Stage) => Promise<void>): Promise<void> {
  const database = await cluster.database()
  const proxy = new Proxy(pooler.url(database))
  await proxy.open()
  const service = new Service(proxy.through(pooler.url(database)), { ...POOLED, ...env })
  try {
    await service.started()
    await play({ database, proxy, service })
  } finally {
    await service.stop().finally(() => proxy.close())
  }
}

describe('F29: PgBouncer in transaction mode stands between', () => {
  it.each([
    ['PgBouncer', async () => await pooler.stop(), async () => await pooler.start()],
    ['the database behind it', async () => await cluster.stop('fast'), async () => await cluster.start()],
  ])('%s is restarted, and changes are acknowledged within 3 s of its accepting', async (_, stop, start) => {
    let acceptedAtMs = 0
    const restart = async ({ service }: Scene): Promise<void> => {
      await stop()
      await eventually('the circuit opens', async () =>
        (await service.health()).database.breaker.state === 'open' ? true : undefined,
      )
      acceptedAtMs = await start()
    }
    const history = await underLoad(cluster, restart, {
      env: POOLED,
      behindProxy: (database) => pooler.url(database),
    })
    expect(history.recoveredAfterMs(acceptedAtMs)).toBeLessThan(3000)
  })

  it('eight users read at once, on fewer connections than they are, and each only ever sees what is theirs', async () => {
    await onStage({}, async ({ database, service }) => {
      const users = await Promise.all(
        Array.from({ length: 8 }, (_, n) => signIn(service, database, `user-${n}`)),
      )
      for (const { token, name } of users) {
        const { status } = await service.request('PUT', '/v1/config/user/me/whose', {
          token,
          body: { value: name },
          headers: { 'if-none-match': '*' },
        })
        expect(status).toBe(201)
      }
      const seen = users.map(() => new Map<unknown, number>())
      await Promise.all(
        users.map(async ({ token }, user) => {
          for (let turn = 0; turn < 500; turn += 1) {
            const { body } = await service.request('GET', '/v1/config/user/me/whose', { token })
            seen[user]?.set(body.value, (seen[user]?.get(body.value) ?? 0) + 1)
          }
        }),
      )
      expect(seen).toEqual(users.map(({ name }) => new Map([[name, 500]])))
      const [servers] = await cluster.query<{ count: number }>(
        `select count(*)::int from pg_stat_activity where datname = '${database}' and usename like 'pooled%'`,
      )
      expect(servers?.count, 'connections were shared').toBeLessThanOrEqual(SERVER_CONNECTIONS)
    })
  })

  it('what the deadline of a request stops stops on the server too', async () => {
    const limits = {
      DATABASE_ACQUIRE_MS: '1500',
      DATABASE_STATEMENT_MS: '2700',
      DATABASE_QUERY_MS: '2800',
      REQUEST_DEADLINE_MS: '2900',
    }
    await onStage(limits, async ({ database, proxy, service }) => {
      const token = await service.login()
      const change = (method: string, header: string, body?: unknown, by = token) =>
        service.request(method, '/v1/config/global/late', { token: by, body, headers: { [header]: '*' } })
      expect((await change('PUT', 'if-none-match', { value: 1 })).status).toBe(201)
      const holder = await lockOf(database)
      // Its first request: the session check takes so much of the request's time that its deadline comes before the statement's own.
      const fresh = await service.login()
      proxy.latencyMs = 500
      const answer = change('DELETE', 'if-match', undefined, fresh)
      await eventually(
        'the change waits for the lock',
        async () => (await waiting(database)) === 1 || undefined,
      )
      proxy.latencyMs = 0
      const { status, body } = await answer
      expect([status, body.code]).toEqual([504, 'deadline_exceeded'])
      expect(proxy.cancels).toBe(1)
      await eventually(
        'nothing waits any more',
        async () => (await waiting(database)) === 0 || undefined,
        2000,
      )
      await holder.release()
      expect((await change('DELETE', 'if-match')).status, 'it was still there').toBe(204)
    })
  })
})

/** A user made past the service, who signs in. */
async function signIn(service: Service, database: string, name: string) {
  await cluster.query(
    `insert into auth_users (username, username_key, password_hash, role)
     values ('${name}', '${name}', '${hashSync(PASSWORD, { cost: 4 })}', 'user')`,
    database,
  )
  const { body } = await service.request('POST', '/v1/auth/login', {
    body: { username: name, password: PASSWORD },
  })
  return { name, token: body.token as string }
}

/** Keeps every change of configuration waiting until it is released. */
async function lockOf(database: string): Promise<{ release: () => Promise<void> }> {
  const client = new pg.Client({ connectionString: cluster.url(database) })
  client.on('error', () => {})
  await client.connect()
  await client.query('begin; lock table config_entries in access exclusive mode')
  return { release: async () => await client.end() }
}

async function waiting(database: string): Promise<number> {
  const rows = await cluster.query(
    "select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'",
    database,
  )
  return rows.length
}
