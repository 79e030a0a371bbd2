import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { Proxy } from '../proxy.js'
import { Cluster, freePort } from './cluster.js'
import { eventually } from './eventually.js'
import { Load } from './load.js'
import { Service } from './service.js'
import { superuser } from './superuser.js'

/** As service.ts sets DRAIN_SECONDS, and half a second for the process to end. */
const DRAIN_MS = 4500

let cluster: Cluster

beforeAll(async () => {
  cluster = await Cluster.create()
})
afterAll(async () => await cluster.destroy())

/** Not ready any more, or nobody listens. */
async function draining(service: Service): Promise<void> {
  await eventually('it drains', () =>
    service.isReady().then(
      (ready) => (ready ? undefined : true),
      () => true as const,
    ),
  )
}

async function waitsForLock(database: string): Promise<void> {
  await eventually('a request waits for the lock', async () => {
    const rows = await cluster.query(
      `select from pg_stat_activity where wait_event_type = 'Lock' and datname = '${database}'`,
    )
    return rows.length > 0 ? true : undefined
  })
}

/** Ends the service, with exit code 0; how long that took. */
async function endedAfterMs(service: Service): Promise<number> {
  const startedAt = performance.now()
  await service.stop()
  return performance.now() - startedAt
}

describe('F23: SIGTERM', () => {
  it('under load: what is under way is answered, the process ends with 0, and nothing acknowledged is lost', async () => {
    const database = await cluster.database()
    const service = await new Service(cluster.url(database)).started()
    const load = new Load(service, await service.login())
    await eventually('the load runs', () => (load.history.count('ok') > 50 ? true : undefined))
    expect(await endedAfterMs(service)).toBeLessThan(DRAIN_MS)
    const history = await load.stop()
    await history.check(cluster, database)
    // Whoever was answered was told the truth; whoever came later met a closed door, and knows that he does not know.
    expect(history.count('ok')).toBeGreaterThan(50)
  })

  it('while a change waits for a lock: it is made, and its client is answered, before the process ends', async () => {
    const database = await cluster.database()
    const service = await new Service(cluster.url(database), { DATABASE_LOCK_MS: '1900' }).started()
    const token = await service.login()
    const holder = await superuser(cluster, database)
    await holder.query('begin; lock table config_entries in access exclusive mode')
    const changing = service.request('PUT', '/v1/config/global/late', {
      token,
      body: { value: 1 },
      headers: { 'if-none-match': '*' },
    })
    await waitsForLock(database)
    service.child.kill('SIGTERM')
    await draining(service)
    await holder.query('rollback')
    expect((await changing).status).toBe(201)
    expect(await endedAfterMs(service)).toBeLessThan(DRAIN_MS)
    const rows = await cluster.query("select version from config_entries where key = 'late'", database)
    expect(rows).toEqual([{ version: 1 }])
    await holder.end()
  })

  it('twice: the second one ends the process at once', async () => {
    const database = await cluster.database()
    const service = await new Service(cluster.url(database)).started()
    const token = await service.login()
    const holder = await superuser(cluster, database)
    await holder.query('begin; lock table config_entries in access exclusive mode')
    const hanging = service.request('GET', '/v1/config/global/x', { token }).catch(() => undefined)
    await waitsForLock(database)
    service.child.kill('SIGTERM')
    // Two signals before the first is looked at would be one.
    await draining(service)
    expect(await endedAfterMs(service)).toBeLessThan(1000)
    await hanging
    await holder.end()
  })

  it.each([
    ['the network swallows everything', (proxy: Proxy) => proxy.become('black_hole')],
    ['the database is down', (proxy: Proxy) => proxy.become('reset')],
    ['the database accepts and never answers', (proxy: Proxy) => proxy.become('silent')],
  ] as const)('while %s: within the drain time, with 0', async (_, hurt) => {
    const database = await cluster.database()
    const url = cluster.url(database)
    const proxy = new Proxy(url)
    await proxy.open()
    const service = await new Service(proxy.through(url)).started()
    const load = new Load(service, await service.login())
    await eventually('the load runs', () => (load.history.count('ok') > 20 ? true : undefined))
    await hurt(proxy)
    await eventually('it is felt', () =>
      load.history.count('fail') + load.history.count('unknown') > 0 ? true : undefined,
    )
    expect(await endedAfterMs(service)).toBeLessThan(DRAIN_MS)
    const history = await load.stop()
    proxy.close()
    await eventually('the server has given up what it heard no more of', async () =>
      (await cluster.backends()).length === 0 ? true : undefined,
    )
    await history.check(cluster, database)
  })

  it('while every backend is stopped, or a table is locked: within the drain time, with 0', async () => {
    const database = await cluster.database()
    const service = await new Service(cluster.url(database), { DATABASE_TIMEOUT: '60' }).started()
    const token = await service.login()
    const holder = await superuser(cluster, database)
    await holder.query('begin; lock table config_entries in access exclusive mode')
    const locked = service.request('GET', '/v1/config/global/x', { token }).catch(() => undefined)
    await waitsForLock(database)
    const pids = await cluster.backends()
    for (const pid of pids) process.kill(pid, 'SIGSTOP')
    const stopped = service.request('GET', '/v1/auth/session', { token }).catch(() => undefined)
    expect(await endedAfterMs(service)).toBeLessThan(DRAIN_MS)
    for (const pid of pids) process.kill(pid, 'SIGCONT')
    await Promise.all([locked, stopped])
    await holder.end()
  })

  it('while it still waits for its database to appear: at once, with 0', async () => {
    const service = await new Service(`postgres://postgres:x@127.0.0.1:${await freePort()}/none`).started(
      'listening',
    )
    expect(await endedAfterMs(service)).toBeLessThan(2000)
  })
})
