import { setTimeout as sleep } from 'node:timers/promises'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { Proxy } from '../proxy.js'
import { Cluster } from './cluster.js'
import { eventually } from './eventually.js'
import { underLoad } from './fault.js'
import { Service } from './service.js'

let cluster: Cluster

beforeAll(async () => {
  cluster = await Cluster.create()
})
afterAll(async () => await cluster.destroy())

describe('F8: the network swallows everything, on old and new connections', () => {
  it('and each request is answered within its deadline, and service is back when the network is', async () => {
    let healedAtMs = 0
    const history = await underLoad(cluster, async ({ proxy, service, token }) => {
      await proxy.become('black_hole')
      const answer = await service.request('GET', '/v1/auth/session', { token })
      expect([503, 504]).toContain(answer.status)
      expect(answer.elapsedMs).toBeLessThan(4500)
      await eventually('the circuit opens', async () =>
        (await service.health()).database.breaker.state === 'open' ? true : undefined,
      )
      expect((await service.health()).status).toBe('unavailable')
      // What was swallowed stays lost: the connections are as good as cut.
      proxy.cutAll()
      await proxy.become('pass')
      healedAtMs = performance.now()
    })
    expect(history.recoveredAfterMs(healedAtMs)).toBeLessThan(2500)
  })
})

describe('F9: the connection is reset after the COMMIT was forwarded and done', () => {
  it('and whoever repeats with the same Idempotency-Key learns the truth: there is exactly one row', async () => {
    const history = await underLoad(cluster, async ({ proxy }) => {
      for (let round = 0; round < 20; round += 1) {
        const before = proxy.hits
        proxy.cutAfterCommits = 1
        await eventually('a commit was cut', () => (proxy.hits > before ? true : undefined))
      }
    })
    expect(history.count('unknown')).toBeGreaterThan(0)
  })

  it('and the answer is 504 outcome_unknown, with Retry-After for who sent a key; the replay is the first answer', async () => {
    const database = await cluster.database()
    const proxy = new Proxy(cluster.url(database))
    await proxy.open()
    const service = await new Service(proxy.through(cluster.url(database))).started()
    const token = await service.login()
    const put = (key: string, headers: Record<string, string>) =>
      service.request('PUT', `/v1/config/global/${key}`, {
        token,
        body: { value: 1 },
        headers: { 'if-none-match': '*', ...headers },
      })
    proxy.cutAfterCommits = 1
    const unknown = await put('with', { 'idempotency-key': 'once' })
    expect([unknown.status, unknown.body.code, unknown.retryAfter]).toEqual([504, 'outcome_unknown', 1])
    const replayed = await put('with', { 'idempotency-key': 'once' })
    expect([replayed.status, replayed.headers.get('idempotent-replayed')]).toEqual([201, 'true'])
    proxy.cutAfterCommits = 1
    const without = await put('without', {})
    expect([without.status, without.body.code, without.retryAfter]).toEqual([504, 'outcome_unknown', null])
    const rows = await cluster.query('select key from config_revisions order by key', database)
    expect(rows).toEqual([{ key: 'with' }, { key: 'without' }])
    await service.stop()
    proxy.close()
  })
})

describe('F10: the connection is cut before the COMMIT arrives', () => {
  it('and what was refused is not there', async () => {
    await underLoad(cluster, async ({ proxy }) => {
      for (let round = 0; round < 20; round += 1) {
        const before = proxy.hits
        proxy.cutBeforeCommits = 1
        await eventually('a commit was cut', () => (proxy.hits > before ? true : undefined))
      }
    })
  })
})

describe('F11: the server accepts and never answers', () => {
  it('and waiting for a connection is bounded, the circuit opens, and service heals', async () => {
    await underLoad(cluster, async ({ proxy, service, token }) => {
      await proxy.become('silent')
      proxy.cutAll()
      const answer = await service.request('GET', '/v1/auth/session', { token })
      expect(answer.status).toBe(503)
      expect(answer.elapsedMs).toBeLessThan(2500)
      await eventually('the circuit opens', async () =>
        (await service.health()).database.breaker.state === 'open' ? true : undefined,
      )
      proxy.cutAll()
      await proxy.become('pass')
    })
  })
})

describe('F12: the way to the database is slow or broken into pieces', () => {
  it.each([50, 500])('%i ms more each way: slower, and nothing fails', async (latencyMs) => {
    const history = await underLoad(
      cluster,
      async ({ proxy, load }) => {
        proxy.latencyMs = latencyMs
        const before = load.history.count('ok')
        await eventually('ten more changes', () =>
          load.history.count('ok') >= before + 10 ? true : undefined,
        )
        proxy.latencyMs = 0
        expect(proxy.hits).toBeGreaterThan(20)
      },
      // A new connection is four round trips: the limits of the default let it be made, a fifth of them would not.
      { mustHit: false, env: { DATABASE_TIMEOUT: '30' } },
    )
    expect(history.count('unknown')).toBe(0)
  })

  it('5 s more each way: refused within the limits, and healed afterwards', async () => {
    await underLoad(cluster, async ({ proxy, service, token }) => {
      proxy.latencyMs = 5000
      const answer = await service.request('GET', '/v1/auth/session', { token })
      expect([503, 504]).toContain(answer.status)
      expect(answer.elapsedMs).toBeLessThan(4500)
      await sleep(500)
      proxy.latencyMs = 0
    })
  })

  it('one byte at a time: nothing fails', async () => {
    const history = await underLoad(
      cluster,
      async ({ proxy, load }) => {
        proxy.sliceBytes = 1
        const before = load.history.count('ok')
        await eventually('ten more changes', () =>
          load.history.count('ok') >= before + 10 ? true : undefined,
        )
        proxy.sliceBytes = 0
      },
      { mustHit: false },
    )
    expect(history.count('unknown') + history.count('fail')).toBe(0)
  })
})
