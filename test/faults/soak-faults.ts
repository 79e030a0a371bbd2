import { setTimeout as sleep } from 'node:timers/promises'
import type { Proxy } from '../proxy.js'
import type { Cluster } from './cluster.js'
import { eventually } from './eventually.js'

/** What a fault can hurt. */
export interface Victim {
  cluster: Cluster
  database: string
  proxy: Proxy
}

/** From 0 to below 1. */
export type Random = () => number

/** Hurts, and resolves as soon as it is over: the server accepts, the way is free. */
export type Fault = (victim: Victim, random: Random) => Promise<void>

/** mulberry32: small, and good enough to choose by. */
export function randomFrom(seed: number): Random {
  let state = seed
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
}

/** A number from `low` to below `high`. */
export function between(random: Random, low: number, high: number): number {
  return low + random() * (high - low)
}

export const FAULTS: Record<string, Fault> = {
  'terminate all backends': async ({ cluster }) => {
    await cluster.query(
      "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'gary-zero-service'",
    )
  },
  'restart smart': async ({ cluster, proxy }) => {
    const stopped = cluster.stop('smart')
    // It waits for its clients to leave.
    proxy.cutAll()
    await stopped
    await cluster.start()
  },
  'restart fast': async ({ cluster }) => {
    await cluster.stop('fast')
    await cluster.start()
  },
  'restart immediate': async ({ cluster }) => {
    await cluster.stop('immediate')
    await cluster.start()
  },
  'kill -9 a backend': async ({ cluster }) => {
    const [pid] = await cluster.backends()
    signal(pid, 'SIGKILL')
    await eventually(
      'the server accepts again',
      async () => (await cluster.query('select 1')).length > 0 || undefined,
    )
  },
  'kill -9 the postmaster': async ({ cluster }) => {
    await cluster.stop('kill')
    await cluster.start()
  },
  'stop the backends': async ({ cluster }, random) => {
    const pids = await cluster.backends()
    for (const pid of pids) signal(pid, 'SIGSTOP')
    await sleep(between(random, 1000, 5000))
    for (const pid of pids) signal(pid, 'SIGCONT')
  },
  'black hole': async ({ proxy }, random) => {
    await proxy.become('black_hole')
    await sleep(between(random, 1000, 5000))
    // What was swallowed stays lost: the connections are as good as cut.
    proxy.cutAll()
    await proxy.become('pass')
  },
  'accept and never answer': async ({ proxy }, random) => {
    await proxy.become('silent')
    proxy.cutAll()
    await sleep(between(random, 1000, 3000))
    proxy.cutAll()
    await proxy.become('pass')
  },
  refuse: async ({ proxy }, random) => {
    await proxy.become('refuse')
    proxy.dropServers()
    await sleep(between(random, 500, 3000))
    await proxy.become('pass')
  },
  reset: async ({ proxy }, random) => {
    await proxy.become('reset')
    await sleep(between(random, 0, 2000))
    await proxy.become('pass')
  },
  'cut after COMMIT': async ({ proxy }, random) => {
    await commitsCut(proxy, 'cutAfterCommits', Math.ceil(between(random, 0, 8)))
  },
  'cut before COMMIT': async ({ proxy }, random) => {
    await commitsCut(proxy, 'cutBeforeCommits', Math.ceil(between(random, 0, 8)))
  },
  latency: async ({ proxy }, random) => {
    proxy.latencyMs = between(random, 20, 800)
    await sleep(between(random, 1000, 4000))
    proxy.latencyMs = 0
  },
  'one byte at a time': async ({ proxy }, random) => {
    proxy.sliceBytes = 1
    await sleep(between(random, 500, 2000))
    proxy.sliceBytes = 0
  },
  'lock a table': async ({ cluster, database }) => {
    await cluster.query(
      'begin; lock table config_entries in access exclusive mode; select pg_sleep(2); commit',
      database,
    )
  },
}

async function commitsCut(
  proxy: Proxy,
  what: 'cutAfterCommits' | 'cutBeforeCommits',
  count: number,
): Promise<void> {
  proxy[what] = count
  await eventually('the commits were cut', () => proxy[what] === 0 || undefined)
}

function signal(pid: number | undefined, name: NodeJS.Signals): void {
  try {
    if (pid !== undefined) process.kill(pid, name)
  } catch {
    // It ended in the same moment.
  }
}
