import { randomBytes, randomUUID } from 'node:crypto'
import { tmpdir } from 'node:os'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { Cluster } from './cluster.js'
import { eventually } from './eventually.js'
import { underLoad } from './fault.js'
import { type Answer, Service } from './service.js'
import { SmallDisk } from './small-disk.js'

/** What a test made, to be undone in the reverse order, whatever became of it. */
const undo: (() => unknown)[] = []

async function undoAll(): Promise<void> {
  for (let step = undo.pop(); step !== undefined; step = undo.pop()) await step()
}

function smallDisk(megabytes: number): SmallDisk {
  const disk = new SmallDisk(megabytes)
  undo.push(() => disk.unmount())
  return disk
}

async function clusterOn(options: Parameters<typeof Cluster.create>[0]): Promise<Cluster> {
  const cluster = await Cluster.create(options)
  undo.push(() => cluster.destroy())
  return cluster
}

describe('F19: the disk of the tables is full', () => {
  let disk: SmallDisk
  let cluster: Cluster

  beforeAll(async () => {
    disk = smallDisk(160)
    // The log is elsewhere: a server that cannot write that one breaks down, see below.
    cluster = await clusterOn({ parent: disk.folder, walParent: tmpdir() })
  })
  afterAll(undoAll)

  const reads = (service: Service, token: string, path: string): Promise<Answer[]> =>
    Promise.all(Array.from({ length: 50 }, () => service.request('GET', path, { token })))

  it('and changes are refused, 503 storage_full, while sessions are known and entries read; with room again it heals by itself', async () => {
    let freedAtMs = 0
    const history = await underLoad(cluster, async ({ service, token, load }) => {
      const created = await service.request('PUT', '/v1/config/global/read', {
        token,
        body: { value: 1 },
        headers: { 'if-none-match': '*' },
      })
      expect(created.status).toBe(201)
      load.history.add({ kind: 'entry', id: 'read', outcome: 'ok', detail: 'by the test' })
      disk.fill()
      const full = await eventually('changes are refused', () => {
        const refused = load.refusals.filter(({ code }) => code === 'storage_full')
        return refused.length >= 50 ? refused : undefined
      })
      for (const { retryAfter } of full) expect(retryAfter).toBeGreaterThanOrEqual(1)
      // The load's clients repeat until they succeed; these are refused for good, and must not be there.
      for (let index = 0; index < 10; index += 1) {
        const id = `too-large-${index}`
        const value = randomBytes(20_000).toString('hex')
        const { status, body } = await service.request('PUT', `/v1/config/global/${id}`, {
          token,
          body: { value },
          headers: { 'if-none-match': '*' },
        })
        expect([status, body.code]).toEqual([503, 'storage_full'])
        load.history.add({ kind: 'entry', id, outcome: 'fail', detail: 'by the test' })
      }
      for (const path of ['/v1/auth/session', '/v1/config/global/read'])
        expect((await reads(service, token, path)).filter(({ status }) => status !== 200)).toEqual([])
      expect(await service.isReady()).toBe(true)
      disk.free()
      freedAtMs = performance.now()
    })
    expect(history.recoveredAfterMs(freedAtMs)).toBeLessThan(2000)
  })

  // Each change is one look-up of a session that succeeds and one statement that fails: half of all calls.
  it('and where nearly all requests are changes the circuit may open; it closes by itself, the disk still full', async () => {
    const service = await new Service(cluster.url(await cluster.database()), {
      BREAKER_WINDOW_SECONDS: '1',
    }).started()
    try {
      const token = await service.login()
      disk.fill()
      const writing = new AbortController()
      let refused = 0
      const writers = Array.from({ length: 8 }, async () => {
        while (!writing.signal.aborted) {
          const message = 'x'.repeat(2000)
          const event = { event_id: randomUUID(), event_type: 'system_event', level: 'info', message }
          const { status } = await service.request('POST', '/v1/audit/events', { token, body: event })
          if (status === 503) refused += 1
        }
      })
      await eventually('changes are refused', () => (refused >= 400 ? true : undefined)).finally(() =>
        writing.abort(),
      )
      await Promise.all(writers)
      await eventually(
        'sessions are known',
        async () =>
          (await service.request('GET', '/v1/auth/session', { token })).status === 200 ? true : undefined,
        3000,
      )
    } finally {
      disk.free()
      await service.stop()
    }
  })
})

describe('F19: the disk of the write-ahead log is full', () => {
  afterAll(undoAll)

  it('and the server breaks down; the service outlives it, and nothing acknowledged is lost', async () => {
    const disk = smallDisk(96)
    const cluster = await clusterOn({
      walParent: disk.folder,
      settings: ['max_wal_size=48MB', 'min_wal_size=32MB'],
    })
    let acceptedAtMs = 0
    const history = await underLoad(cluster, async ({ service, token }) => {
      disk.fill()
      await eventually('the server breaks down for want of a segment', () =>
        cluster.query('select pg_switch_wal()').then(
          () => undefined,
          () => true as const,
        ),
      )
      const refused = await service.request('GET', '/v1/auth/session', { token })
      expect(refused.status).toBe(503)
      disk.free()
      acceptedAtMs = await cluster.start()
    })
    expect(history.recoveredAfterMs(acceptedAtMs)).toBeLessThan(1000)
  })
})
