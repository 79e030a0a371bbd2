import { type ChildProcessByStdio, spawn } from 'node:child_process'
import { once } from 'node:events'
import type { Readable } from 'node:stream'
import { fileURLToPath } from 'node:url'
import { setTimeout as sleep } from 'node:timers/promises'
import { expect } from 'vitest'
import { Proxy } from '../proxy.js'
import type { Cluster } from './cluster.js'
import { eventually } from './eventually.js'
import type { History } from './history.js'
import { Load } from './load.js'
import { Service } from './service.js'

const LIVENESS = fileURLToPath(new URL('liveness.mjs', import.meta.url))
/** Of the median, and of the slowest hundredth beyond that of a server that does nothing: on shared cores those are the scheduler's. */
const LIVENESS_MS = 50
const SLOWEST_MS = 250
/** Long enough for a hundredth of the answers to be more than one of them. */
const LIVENESS_FOR_MS = 4000

export interface Scene {
  cluster: Cluster
  database: string
  proxy: Proxy
  service: Service
  load: Load
  token: string
}

interface Liveness {
  asked: number
  failed: number
  medianMs: number
  p99Ms: number
  maxMs: number
}

export interface FaultOptions {
  env?: Record<string, string>
  /** A fault that hits no change proves nothing; false where the promise is just that: nobody notices. */
  mustHit?: boolean
  clients?: number
  /** What stands between the proxy and the server: its address for a database. Else it is the server's. */
  behindProxy?: (database: string) => string
  /** Who holds the truth at the end, where it is not the server of the beginning. */
  truth?: () => Cluster
}

/**
 * One fault under load: a service by a proxy on a database of its own, `hurt`, and back to health. Then: every
 * client was told the truth, liveness answered throughout, no connection was leaked, and the service ends in order.
 */
export async function underLoad(
  cluster: Cluster,
  hurt: (scene: Scene) => Promise<void>,
  {
    env = {},
    mustHit = true,
    clients = 8,
    behindProxy = (database) => cluster.url(database),
    truth = () => cluster,
  }: FaultOptions = {},
): Promise<History> {
  const database = await cluster.database()
  const address = behindProxy(database)
  const proxy = new Proxy(address)
  await proxy.open()
  const service = await new Service(proxy.through(address), env).started()
  let liveness: ChildProcessByStdio<null, Readable, null> | undefined
  try {
    const token = await service.login()
    const load = new Load(service, token, clients)
    await eventually('the load runs', () => (load.history.count('ok') > 20 ? true : undefined))
    liveness = spawn(process.execPath, [LIVENESS, service.base], { stdio: ['ignore', 'pipe', 'inherit'] })
    let measured = ''
    liveness.stdout.on('data', (chunk: Buffer) => (measured += chunk.toString()))
    const startedAtMs = performance.now()
    await hurt({ cluster, database, proxy, service, load, token })
    const healedAtMs = performance.now()
    await eventually('changes are acknowledged again', () =>
      load.history.recoveredAfterMs(healedAtMs) < Infinity ? true : undefined,
    )
    await sleep(Math.max(0, LIVENESS_FOR_MS - (performance.now() - startedAtMs)))
    const history = await load.stop()
    liveness.kill('SIGTERM')
    await once(liveness, 'close')
    await eventually('the service is ready', () => service.isReady())
    await history.check(truth(), database)
    if (mustHit)
      expect(history.count('fail') + history.count('unknown'), 'the fault hit nothing').toBeGreaterThan(0)
    const live = JSON.parse(measured) as { service: Liveness; control: Liveness }
    expect(live.service.asked).toBeGreaterThan(10)
    expect(live.service.failed, 'liveness failed').toBe(0)
    expect(live.service.medianMs, 'liveness took long').toBeLessThan(LIVENESS_MS)
    expect(live.service.p99Ms - live.control.p99Ms, 'liveness was held up').toBeLessThan(SLOWEST_MS)
    const limit = Number(env['DATABASE_POOL_SIZE'] ?? 8) + 2
    await eventually('no connection is leaked', async () =>
      (await truth().backends()).length <= limit ? true : undefined,
    )
    process.stdout.write(
      `    ${history.count('ok')} ok, ${history.count('fail')} refused, ${history.count('unknown')} unknown; liveness p99 ${live.service.p99Ms.toFixed(0)} ms (a bare server's: ${live.control.p99Ms.toFixed(0)})\n`,
    )
    return history
  } finally {
    liveness?.kill()
    await service.stop().finally(() => proxy.close())
  }
}
