// The processes of a run: each is known by its pid and ended with the run, however that ends.
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { openSync, readFileSync, readdirSync } from 'node:fs'
import { get } from 'node:http'
import { createServer } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { execFileSync } from 'node:child_process'

const END_MS = 5000

/** @typedef {import('node:child_process').ChildProcess} Child */
/** @type {Set<Child>} */
const children = new Set()
// The last resort, when the run has not ended them itself.
process.on('exit', () => {
  for (const child of children) child.kill('SIGKILL')
})

/**
 * @param {string[]} args @param {Record<string, string>} env @param {string} logFile
 * @param {{ ipc?: boolean }} [options] @returns {Child}
 */
export function start(args, env, logFile, { ipc = false } = {}) {
  const log = openSync(logFile, 'a')
  const { PATH = '', HOME = '' } = process.env
  const child = spawn(process.execPath, args, {
    env: { PATH, HOME, ...env },
    stdio: ipc ? ['ignore', log, log, 'ipc'] : ['ignore', log, log],
  })
  children.add(child)
  child.on('exit', () => children.delete(child))
  return child
}

/** Ends one and waits for it. @param {Child} child @returns {Promise<void>} */
export async function end(child) {
  if (!children.has(child)) return
  const ended = once(child, 'exit')
  child.kill('SIGTERM')
  const force = setTimeout(() => child.kill('SIGKILL'), END_MS)
  await ended
  clearTimeout(force)
}

export async function endAll() {
  await Promise.all([...children].map(end))
}

/** @returns {Promise<number>} */
export async function freePort() {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const address = server.address()
  server.close()
  await once(server, 'close')
  return typeof address === 'object' && address !== null ? address.port : 0
}

/**
 * Asks until the answer is one that counts; the milliseconds since `started`.
 * @param {Child} child @param {string} url @param {number} started
 * @param {(status: number) => boolean} [counts] @returns {Promise<number>}
 */
export async function untilAnswered(child, url, started, counts = (status) => status === 200) {
  for (;;) {
    if (child.exitCode !== null || child.signalCode !== null) throw new Error(`${url}: the process ended`)
    if (counts(await statusOf(url))) return performance.now() - started
    if (performance.now() - started > 60_000) throw new Error(`${url}: not ready within 60 s`)
    await sleep(5)
  }
}

/** @param {string} url @returns {Promise<number>} 0 when nobody listens */
function statusOf(url) {
  return new Promise((resolve) => {
    const request = get(url, { agent: false }, (response) => {
      response.resume()
      resolve(response.statusCode ?? 0)
    })
    request.on('error', () => resolve(0))
  })
}

/** Resident memory in MB. @param {Child} child */
export function residentMb(child) {
  const { pid = 0 } = child
  try {
    const kb = /VmRSS:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]
    if (kb !== undefined) return Number(kb) / 1024
  } catch {
    // No /proc: ps knows.
  }
  return Number(execFileSync('ps', ['-o', 'rss=', '-p', String(pid)], { encoding: 'utf8' })) / 1024
}

/** CPU time so far in microseconds, to 10 ms; NaN without /proc. @param {Child} child */
export function cpuMicros(child) {
  try {
    const stat = readFileSync(`/proc/${child.pid}/stat`, 'utf8')
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
    return (Number(fields[11]) + Number(fields[12])) * 10_000
  } catch {
    return Number.NaN
  }
}

/** CPU time so far of the thread that serves, in milliseconds; NaN without /proc. @param {number} pid */
export function mainThreadMs(pid) {
  try {
    return schedule(pid, String(pid)).ranMs
  } catch {
    return Number.NaN
  }
}

/** Of the threads at low priority: so many, how long they ran, and waited for a core. @param {Child} child */
export function lowThreads({ pid = 0 }) {
  const sum = { count: 0, ranMs: 0, waitedMs: 0 }
  try {
    for (const thread of readdirSync(`/proc/${pid}/task`)) {
      const stat = readFileSync(`/proc/${pid}/task/${thread}/stat`, 'utf8')
      if (!(Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[16]) > 0)) continue
      const { ranMs, waitedMs } = schedule(pid, thread)
      sum.count += 1
      sum.ranMs += ranMs
      sum.waitedMs += waitedMs
    }
  } catch {
    // No /proc, no threads.
  }
  return sum
}

/** @param {number} pid @param {string} thread */
function schedule(pid, thread) {
  const [ran, waited] = readFileSync(`/proc/${pid}/task/${thread}/schedstat`, 'utf8').split(' ')
  return { ranMs: Number(ran) / 1e6, waitedMs: Number(waited) / 1e6 }
}
