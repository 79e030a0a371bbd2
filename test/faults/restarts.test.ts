import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { Proxy } from '../proxy.js'
import { Cluster } from './cluster.js'
import { eventually } from './eventually.js'
import { type Scene, underLoad } from './fault.js'
import { Service } from './service.js'

let cluster: Cluster

beforeAll(async () => {
  cluster = await Cluster.create()
})
afterAll(async () => await cluster.destroy())

/** While the circuit is open: not ready, and an answer within 50 ms that says when to come again. */
async function refusesAtOnce({ service, token }: Scene): Promise<void> {
  await eventually('the circuit opens', async () =>
    (await service.health()).database.breaker.state === 'open' ? true : undefined,
  )
  const answers: { elapsedMs: number; retryAfter: number | null }[] = []
  await eventually('ten refusals by the open circuit', async () => {
    const [before, answer, after] = [
      await service.health(),
      await service.request('GET', '/v1/auth/session', { token }),
      await service.health(),
    ]
    const { openings } = before.database.breaker
    const open =
      before.database.breaker.state === 'open' &&
      after.database.breaker.state === 'open' &&
      after.database.breaker.openings === openings
    expect(before.status === 'unavailable' || !open).toBe(true)
    if (open && answer.status === 503) answers.push(answer)
    return answers.length >= 10 ? true : undefined
  })
  answers.sort((a, b) => a.elapsedMs - b.elapsedMs)
  expect(answers[Math.floor(answers.length / 2)]?.elapsedMs).toBeLessThan(50)
  for (const { retryAfter } of answers) expect(retryAfter).toBeGreaterThanOrEqual(1)
}

describe('F1: the database is down when the service starts', () => {
  it('and it serves within 2 s of the database, with no restart', async () => {
    const database = await cluster.database()
    await cluster.stop('fast')
    const service = await new Service(cluster.url(database)).started('listening')
    expect((await service.request('GET', '/health/live')).status).toBe(200)
    const refused = await service.request('GET', '/v1/auth/session', { token: `gzs_${'a'.repeat(43)}` })
    expect([refused.status, refused.body.code]).toEqual([503, 'unavailable'])
    expect(refused.retryAfter).toBeGreaterThanOrEqual(1)
    expect((await service.health()).status).toBe('starting')
    const acceptedAtMs = await cluster.start()
    await eventually('the service is ready', () => service.isReady())
    expect(performance.now() - acceptedAtMs).toBeLessThan(2000)
    await service.login()
    await service.stop()
  })
})

describe('F2: every backend is terminated, also inside transactions', () => {
  it('and service goes on within 1 s', async () => {
    let killedAtMs = 0
    const history = await underLoad(cluster, async ({ cluster }) => {
      for (let round = 0; round < 5; round += 1) {
        await eventually('there is something to terminate', async () => {
          const killed = await cluster.query(
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'gary-zero-service'",
          )
          return killed.length > 0 ? true : undefined
        })
        killedAtMs = performance.now()
        await new Promise((resolve) => setTimeout(resolve, 300))
      }
    })
    expect(history.recoveredAfterMs(killedAtMs)).toBeLessThan(1000)
  })
})

describe('F3: the server restarts under load', () => {
  it.each(['smart', 'fast', 'immediate'] as const)(
    '%s, and changes are acknowledged within 1 s of its accepting',
    async (how) => {
      let acceptedAtMs = 0
      const history = await underLoad(cluster, async (scene) => {
        const stopped = scene.cluster.stop(how)
        // A smart stop waits for the clients to leave, and new ones are refused meanwhile.
        if (how === 'smart') scene.proxy.cutAll()
        await stopped
        await refusesAtOnce(scene)
        acceptedAtMs = await scene.cluster.start()
      })
      expect(history.recoveredAfterMs(acceptedAtMs)).toBeLessThan(1000)
    },
  )
})

describe('F4: a backend is killed with -9, and the server restarts all of them', () => {
  it('and service goes on by itself', async () => {
    await underLoad(cluster, async ({ cluster }) => {
      const [pid] = await cluster.backends()
      process.kill(pid ?? 0, 'SIGKILL')
      await eventually('the server accepts again', () => cluster.query('select 1').then(() => true as const))
    })
  })
})

describe('F5: the postmaster is killed with -9 and started again', () => {
  it('and changes are acknowledged within 1 s of its accepting', async () => {
    let acceptedAtMs = 0
    const history = await underLoad(cluster, async (scene) => {
      await scene.cluster.stop('kill')
      acceptedAtMs = await scene.cluster.start()
    })
    expect(history.recoveredAfterMs(acceptedAtMs)).toBeLessThan(1000)
  })
})

describe('F6: all backends are stopped for 5 s', () => {
  it('and requests are answered within their deadline, and service goes on', async () => {
    await underLoad(cluster, async ({ cluster, service, token }) => {
      const pids = await cluster.backends()
      for (const pid of pids) process.kill(pid, 'SIGSTOP')
      const answer = await service.request('GET', '/v1/auth/session', { token })
      expect([200, 503, 504]).toContain(answer.status)
      expect(answer.elapsedMs, 'the deadline is 3 s, and a second for the cancelling').toBeLessThan(4500)
      await new Promise((resolve) => setTimeout(resolve, 5000 - answer.elapsedMs))
      for (const pid of pids) process.kill(pid, 'SIGCONT')
    })
  })
})

describe('F7: only the postmaster is stopped', () => {
  it('and the pool goes on serving, the circuit closed, for no connection was lost', async () => {
    const history = await underLoad(
      cluster,
      async ({ cluster, service, load }) => {
        cluster.signalPostmaster('SIGSTOP')
        const before = load.history.count('ok')
        await eventually('a hundred more changes', () =>
          load.history.count('ok') > before + 100 ? true : undefined,
        )
        const { status, database } = await service.health()
        expect([status, database.breaker.state, database.breaker.failures]).toEqual(['ok', 'closed', 0])
        cluster.signalPostmaster('SIGCONT')
      },
      { mustHit: false },
    )
    expect(history.count('fail') + history.count('unknown')).toBe(0)
  })
})

describe('a service that starts before its database is migrated', () => {
  it('is ready soon after the migration', async () => {
    await cluster.query('create database empty_gary')
    const proxy = new Proxy(cluster.url('empty_gary'))
    await proxy.open()
    const service = await new Service(proxy.through(cluster.url('empty_gary'))).started('listening')
    await eventually('it says what it waits for', () =>
      service.output.includes('waiting for the database') ? true : undefined,
    )
    const { migrate } = await import('../../src/db/migrate.js')
    await migrate({
      pgConfig: { connectionString: cluster.url('empty_gary') },
      folder: 'prisma/migrations',
      log: () => {},
      waitMs: 5000,
    })
    await eventually('the service is ready', () => service.isReady(), 4000)
    await service.stop()
    proxy.close()
  })
})
