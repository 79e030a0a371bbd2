import { mkdtempSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import http from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { Cluster } from './cluster.js'
import { eventually } from './eventually.js'
import { type Scene, underLoad } from './fault.js'
import { Service } from './service.js'
import { superuser } from './superuser.js'

let cluster: Cluster

beforeAll(async () => {
  cluster = await Cluster.create()
})
afterAll(async () => await cluster.destroy())

const stateOf = async (service: Service) => (await service.health()).database.breaker.state

describe('F21: the password is changed on the server', () => {
  it('and the connections that are there go on; new ones are refused until it is changed back', async () => {
    const login = new URL(cluster.url())
    await cluster.query("create role rotated superuser login password 'rotated-canary'")
    login.username = 'rotated'
    login.password = 'rotated-canary'
    const database = await cluster.database()
    login.pathname = `/${database}`
    const service = await new Service(login.href, { BREAKER_MAX_WAIT_SECONDS: '2' }).started()
    try {
      const token = await service.login()
      const session = async () => (await service.request('GET', '/v1/auth/session', { token })).status
      await cluster.query("alter role rotated password 'another'")
      for (let call = 0; call < 20; call += 1) expect(await session()).toBe(200)
      await cluster.query("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'rotated'")
      await eventually('calls are refused', async () => ((await session()) === 503 ? true : undefined))
      await eventually('the circuit opens', async () => {
        await session()
        return (await stateOf(service)) === 'open' ? true : undefined
      })
      expect((await service.health()).database.last_error?.class).toBe('misconfigured')
      await cluster.query("alter role rotated password 'rotated-canary'")
      await eventually('it heals', async () => ((await session()) === 200 ? true : undefined), 8000)
    } finally {
      await service.stop()
    }
  })

  it('or the database renamed, and back: it heals by itself', async () => {
    await underLoad(
      cluster,
      async ({ database, service, token }) => {
        const kick = `select pg_terminate_backend(pid) from pg_stat_activity where datname = '${database}'`
        await eventually('it is renamed', async () => {
          await cluster.query(kick)
          await cluster.query(`alter database ${database} rename to renamed_gary`)
          return true
        })
        await eventually('calls are refused', async () =>
          (await service.request('GET', '/v1/auth/session', { token })).status === 503 ? true : undefined,
        )
        await cluster.query(`alter database renamed_gary rename to ${database}`)
      },
      { env: { BREAKER_MAX_WAIT_SECONDS: '2' } },
    )
  })
})

describe("F22: the service's clock jumps", () => {
  it('a day ahead and a day back: sessions, circuit and connections stay as they were; only the times that clients tell are wrong', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'gary-clock-'))
    const clock = join(folder, 'clock')
    // In one step: the process looks at the file whenever it asks for the time.
    const jump = (offset: string): void => {
      writeFileSync(`${clock}.new`, offset)
      renameSync(`${clock}.new`, clock)
    }
    jump('+0')
    await underLoad(
      cluster,
      async ({ service, load, token, database }: Scene) => {
        const before = await cluster.backends()
        for (const offset of ['+1d', '-1d', '+0']) {
          jump(offset)
          const done = load.history.count('ok')
          await eventually('fifty more changes', () =>
            load.history.count('ok') > done + 50 ? true : undefined,
          )
          expect((await service.request('GET', '/v1/auth/session', { token })).status).toBe(200)
          const { status, database: seen } = await service.health()
          expect([status, seen.breaker.state, seen.breaker.failures]).toEqual(['ok', 'closed', 0])
        }
        const after = await cluster.backends()
        expect(before.filter((pid) => !after.includes(pid))).toEqual([])
        const [told] = await cluster.query<{ ahead: boolean; behind: boolean; received: boolean }>(
          `select bool_or(occurred_at > now() + interval '12 hours') as ahead,
                  bool_or(occurred_at < now() - interval '12 hours') as behind,
                  bool_and(received_at between now() - interval '10 minutes' and clock_timestamp()) as received
             from audit_events`,
          database,
        )
        expect(told, 'without ahead and behind the clock did not jump: is faketime installed?').toEqual({
          ahead: true,
          behind: true,
          received: true,
        })
      },
      {
        mustHit: false,
        env: {
          // Of Debian's package faketime: the clock of the whole process, not of JavaScript alone.
          LD_PRELOAD: '/usr/$LIB/faketime/libfaketimeMT.so.1',
          FAKETIME_TIMESTAMP_FILE: clock,
          FAKETIME_NO_CACHE: '1',
          // As the kernel does it: only the wall clock is ever set.
          FAKETIME_DONT_FAKE_MONOTONIC: '1',
        },
      },
    ).finally(() => rmSync(folder, { recursive: true }))
  })
})

describe('F27: clients go away in the middle of a request', () => {
  it('200 at once: what they asked for stops on the server, changes nothing, counts for nothing, leaks nothing', async () => {
    const database = await cluster.database()
    const service = await new Service(cluster.url(database), {
      DATABASE_LOCK_MS: '1900',
    }).started()
    const holder = await superuser(cluster, database)
    try {
      const token = await service.login()
      await service.request('PUT', '/v1/config/global/held', { token, body: { value: { n: 0 } } })
      await holder.query('begin')
      await holder.query('lock table config_entries in access exclusive mode')
      const waiting = async () =>
        Number(
          (
            await cluster.query<{ count: string }>(
              "select count(*) from pg_stat_activity where application_name = 'gary-zero-service' and wait_event_type = 'Lock'",
            )
          )[0]?.count,
        )
      const requests = Array.from({ length: 200 }, () => {
        const request = http.request(`${service.base}/v1/config/global/held`, {
          method: 'PATCH',
          headers: { authorization: `Bearer ${token}`, 'content-type': 'application/merge-patch+json' },
        })
        request.on('error', () => {})
        request.end('{"n":1}')
        return request
      })
      await eventually('the pool waits for the lock', async () =>
        (await waiting()) === 8 ? true : undefined,
      )
      for (const request of requests) request.destroy()
      await eventually(
        'nothing waits any more, while the lock is still held',
        async () => ((await waiting()) === 0 ? true : undefined),
        // On a lane nothing is cancelled: up to 16 wait there for a tenth of a second, one after the other.
        3000,
      )
      // They were stopped, and did not just run into the limit for locks.
      expect(service.output).not.toContain('lock_timeout')
      await holder.query('rollback')
      await eventually('the pool is idle', async () => {
        const { pool } = (await service.health()).database
        return pool.waiting === 0 && pool.total === pool.idle ? true : undefined
      })
      const { breaker } = (await service.health()).database
      expect([breaker.state, breaker.failures]).toEqual(['closed', 0])
      const { body } = await service.request('GET', '/v1/config/global/held', { token })
      expect([body.value, body.version]).toEqual([{ n: 0 }, 1])
      const sockets = await eventually('their sockets are gone', async () => {
        const detailed = await service.request('GET', '/health/detailed', { token: 'operations-canary-1' })
        const open = detailed.body.process.active_resources.TCPSocketWrap ?? 0
        return open < 30 ? open : undefined
      })
      expect(sockets).toBeLessThan(30)
    } finally {
      await holder.end()
      await service.stop()
    }
  })
})
