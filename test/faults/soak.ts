import { type ChildProcessByStdio, spawn } from 'node:child_process'
import { once } from 'node:events'
import { readdirSync } from 'node:fs'
import type { Readable } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { Proxy } from '../proxy.js'
import { Cluster } from './cluster.js'
import { eventually } from './eventually.js'
import { History } from './history.js'
import { Load } from './load.js'
import { OPERATIONS_TOKEN, Service } from './service.js'
import { FAULTS, between, randomFrom } from './soak-faults.js'

const MINUTES = Number(process.env['SOAK_MINUTES'])
const SEED = Number(process.env['SOAK_SEED'])
const LIVENESS = fileURLToPath(new URL('liveness.mjs', import.meta.url))
const COLLECT_GARBAGE = fileURLToPath(new URL('collect-garbage.cjs', import.meta.url))
const WARM_UP_MS = 60_000
const SAMPLE_EVERY_MS = 60_000
const CLIENTS = 8
const BATCH_SIZE = 20
const POOL_SIZE = 8
/** Above what a server that does nothing takes on the same machine at the same time. */
const LIVENESS_MS = 50
/** From here on growth is a leak, and no longer a warm-up. */
const GROWTH_COUNTS_FROM_MINUTES = 10
const GROWTH = 1.1

let cluster: Cluster
let proxy: Proxy
let service: Service
let database: string
let token: string
let asking: ChildProcessByStdio<null, Readable, null> | undefined

beforeAll(async () => {
  cluster = await Cluster.create()
  database = await cluster.database()
  proxy = new Proxy(cluster.url(database))
  await proxy.open()
  service = await new Service(proxy.through(cluster.url(database)), {
    DATABASE_POOL_SIZE: String(POOL_SIZE),
    NODE_OPTIONS: `--require=${COLLECT_GARBAGE}`,
  }).started()
  token = await service.login()
})
afterAll(async () => {
  // Of a run that failed: in the others both have ended in order.
  asking?.kill()
  service?.child.kill('SIGKILL')
  proxy?.close()
  await cluster?.destroy()
})

interface Footprint {
  rssBytes: number
  heapBytes: number
}

/** What is held: without collecting first, the heap says when that was last done. */
async function footprint(): Promise<Footprint> {
  const from = service.output.length
  service.child.kill('SIGUSR2')
  await eventually(
    'the garbage is collected',
    () => service.output.includes('garbage collected', from) || undefined,
  )
  const { rss_bytes: rssBytes, heap_used_bytes: heapBytes } = (await detailed()).process
  return { rssBytes, heapBytes }
}

async function detailed() {
  const { body } = await service.request('GET', '/health/detailed', { token: OPERATIONS_TOKEN })
  return body as {
    process: { rss_bytes: number; heap_used_bytes: number; active_resources: Record<string, number> }
  }
}

/** Sockets, timers and the like that the service holds, and its open files. */
async function handles(): Promise<{ resources: number; files: number }> {
  const { active_resources } = (await detailed()).process
  const resources = Object.values(active_resources).reduce((sum, count) => sum + count, 0)
  return { resources, files: readdirSync(`/proc/${service.child.pid ?? 0}/fd`).length }
}

function load(history: History): Load {
  return new Load(service, token, CLIENTS, { batchSize: BATCH_SIZE, history })
}

it(`${MINUTES} minutes of faults, seed ${SEED}: nothing acknowledged is lost, nothing leaks, and it heals from each`, async () => {
  process.stdout.write(`seed ${SEED}\n`)
  const random = randomFrom(SEED)
  const history = new History()
  const warming = load(history)
  await sleep(WARM_UP_MS)
  await warming.stop()
  const before = await footprint()
  const handlesBefore = await handles()

  const liveness = watchLiveness()
  const recoveries: { name: string; ms: number }[] = []
  const samples: Footprint[] = []
  let sampledAtMs = performance.now()
  const underFaults = load(history)
  for (const until = performance.now() + MINUTES * 60_000; performance.now() < until;) {
    const names = Object.keys(FAULTS)
    const name = names[Math.floor(between(random, 0, names.length))] ?? ''
    await FAULTS[name]?.({ cluster, database, proxy }, random)
    const healedAtMs = performance.now()
    await eventually(
      `changes are acknowledged again after: ${name}`,
      () => (history.okAtMs.at(-1) ?? 0) > healedAtMs || undefined,
      30_000,
    )
    recoveries.push({ name, ms: history.recoveredAfterMs(healedAtMs) })
    if (performance.now() - sampledAtMs > SAMPLE_EVERY_MS) {
      samples.push(await footprint())
      sampledAtMs = performance.now()
    }
    await sleep(between(random, 200, 2000))
  }
  await underFaults.stop()
  await eventually('the service is ready', () => service.isReady())

  const live = await liveness()
  let handlesAfter = await handles()
  const tooMany = (): boolean =>
    handlesAfter.resources > handlesBefore.resources + POOL_SIZE ||
    handlesAfter.files > handlesBefore.files + POOL_SIZE
  await eventually('no more handles than before', async () => {
    handlesAfter = await handles()
    return tooMany() ? undefined : true
  }).catch(() => undefined)

  const after = await footprint()
  const wrong = await history.check(cluster, database).then(
    () => null,
    (error: unknown) => error as Error,
  )
  report(history, recoveries, live, { before, samples, after }, { handlesBefore, handlesAfter })
  process.stdout.write(wrong === null ? 'lost: 0\n' : `LOST OR WRONG: ${wrong.message}\n`)
  if (wrong !== null) throw wrong
  expect(history.count('fail') + history.count('unknown'), 'the faults hit nothing').toBeGreaterThan(0)
  expect(live.service.failed, 'liveness failed').toBe(0)
  expect(live.service.p99Ms - live.control.p99Ms, 'liveness took long').toBeLessThan(LIVENESS_MS)
  expect(tooMany(), 'handles are leaked').toBe(false)
  if (MINUTES >= GROWTH_COUNTS_FROM_MINUTES) {
    expect(after.heapBytes, 'the heap grew').toBeLessThan(before.heapBytes * GROWTH)
    expect(after.rssBytes, 'memory grew').toBeLessThan(before.rssBytes * GROWTH)
  }
  // Exit code 0, and no warning, crash or secret in the log.
  await service.stop()
})

interface Liveness {
  failed: number
  asked: number
  p99Ms: number
  maxMs: number
}

/** Begins to ask; what it gives ends that and tells. */
function watchLiveness(): () => Promise<{ service: Liveness; control: Liveness }> {
  const child = spawn(process.execPath, [LIVENESS, service.base], { stdio: ['ignore', 'pipe', 'inherit'] })
  asking = child
  let measured = ''
  child.stdout.on('data', (chunk: Buffer) => (measured += chunk.toString()))
  return async () => {
    child.kill('SIGTERM')
    await once(child, 'close')
    return JSON.parse(measured) as { service: Liveness; control: Liveness }
  }
}

function report(
  history: History,
  recoveries: { name: string; ms: number }[],
  live: { service: Liveness; control: Liveness },
  memory: { before: Footprint; samples: Footprint[]; after: Footprint },
  {
    handlesBefore,
    handlesAfter,
  }: Record<'handlesBefore' | 'handlesAfter', { resources: number; files: number }>,
): void {
  const times = recoveries.map(({ ms }) => ms).toSorted((a, b) => a - b)
  const p99 = times[Math.floor(times.length * 0.99)] ?? 0
  const series = (of: (footprint: Footprint) => number): string =>
    `${megabytes(of(memory.before))} before, ${memory.samples.map((sample) => megabytes(of(sample))).join(' ')} each minute, ${megabytes(of(memory.after))} after`
  const lines = [
    `seed ${SEED}, ${MINUTES} minutes, ${recoveries.length} faults`,
    ...Object.keys(FAULTS).map((name) => {
      const own = recoveries.filter((recovery) => recovery.name === name).map(({ ms }) => ms)
      return `  ${name}: ${own.length} times, recovered within ${Math.max(0, ...own).toFixed(0)} ms`
    }),
    `changes: ${history.writes('ok')} acknowledged, ${history.writes('fail')} refused, ${history.writes('unknown')} unknown (${history.operations.length} requests)`,
    `recovery: worst ${(times.at(-1) ?? 0).toFixed(0)} ms, p99 ${p99.toFixed(0)} ms`,
    `liveness: p99 ${live.service.p99Ms.toFixed(0)} ms, max ${live.service.maxMs.toFixed(0)} ms, failed ${live.service.failed} of ${live.service.asked} (a bare server's: ${live.control.p99Ms.toFixed(0)}, ${live.control.maxMs.toFixed(0)})`,
    `heap held, MB: ${series(({ heapBytes }) => heapBytes)}`,
    `rss, MB: ${series(({ rssBytes }) => rssBytes)}`,
    `handles at rest: ${handlesBefore.resources} before, ${handlesAfter.resources} after; open files: ${handlesBefore.files} before, ${handlesAfter.files} after`,
  ]
  process.stdout.write(`${lines.join('\n')}\n`)
}

function megabytes(bytes: number): string {
  return (bytes / 2 ** 20).toFixed(1)
}
