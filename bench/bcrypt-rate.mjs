// A thread that verifies one password after the other: how often in so many seconds, at cost 12, and at the priority
// of the service's own hash threads; and how long each ran on a core, where /proc tells that.
import { readFileSync } from 'node:fs'
import { setPriority } from 'node:os'
import { parentPort, workerData } from 'node:worker_threads'
import { hashSync, verifySync } from '@node-rs/bcrypt'

if (process.platform === 'linux') setPriority(0, 19)
const hash = hashSync('a password', { cost: 12 })
let count = 0
const ranBefore = ranMs()
const started = performance.now()
for (const until = started + workerData.seconds * 1000; performance.now() < until; count += 1)
  verifySync('a password', hash)
parentPort?.postMessage({
  rate: (count / (performance.now() - started)) * 1000,
  cpuMs: (ranMs() - ranBefore) / count,
})

function ranMs() {
  try {
    return Number(readFileSync('/proc/thread-self/schedstat', 'utf8').split(' ')[0]) / 1e6
  } catch {
    return Number.NaN
  }
}
