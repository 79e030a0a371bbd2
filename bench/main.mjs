// The service beside the bare stack on one database and one machine: see bare.mjs for what "bare" is. Asserts
// nothing about time; ends with 1 when a request failed or the run did.
//   BENCH_EVENTS=1000000  BENCH_SECONDS=3  BENCH_ROUNDS=3  BENCH_ONLY=S1,S4  BENCH_DATABASE_URL=postgres://super...
//   BENCH_PROFILE=1       instead of measuring: where the service's CPU goes, function by function
import { once } from 'node:events'
import { mkdir, readFile } from 'node:fs/promises'
import { cpus } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { cpuMicros, end, endAll, freePort, residentMb, start, untilAnswered } from './children.mjs'
import {
  PASSWORD,
  USERNAME,
  configKey,
  CONNECTIONS,
  exampleSettings,
  fillEvents,
  openDatabase,
} from './data.mjs'
import { printProfile } from './profile.mjs'
import { startWireProxy } from './wire-proxy.mjs'
import { worksFor } from './works.mjs'

const EVENTS = Number(process.env['BENCH_EVENTS'] || 1_000_000)
const SECONDS = Number(process.env['BENCH_SECONDS'] || 3)
const ROUNDS = Number(process.env['BENCH_ROUNDS'] || 3)
const ONLY = (process.env['BENCH_ONLY'] || '').split(',').filter(Boolean)
const WARM_MS = 1000
const START_UPS = 5
const POOL_SIZE = '20'
const COUNTED_REQUESTS = 20

const SERVICE = fileURLToPath(new URL('../dist/main.js', import.meta.url))
const file = (/** @type {string} */ name) => fileURLToPath(new URL(name, import.meta.url))
const say = (/** @type {string} */ line) => void process.stdout.write(`${line}\n`)
const progress = (/** @type {string} */ line) => void process.stderr.write(`${line}\n`)

/** @typedef {import('./works.mjs').Work} Work */
/** @typedef {import('./load.mjs').Seen & { cpu: number }} Measured cpu: microseconds of the server's CPU a request */

/** @type {Awaited<ReturnType<typeof openDatabase>> | undefined} */
let database
let closing = false
async function close() {
  if (closing) return
  closing = true
  await endAll()
  await database?.close()
}
for (const signal of /** @type {const} */ (['SIGINT', 'SIGTERM']))
  process.once(signal, () => void close().finally(() => process.exit(130)))

try {
  database = await openDatabase(progress)
  process.exitCode = (await bench(database)) > 0 ? 1 : 0
} catch (error) {
  if (!closing) progress(error instanceof Error ? (error.stack ?? error.message) : String(error))
  process.exitCode = 1
} finally {
  await close()
}

/** @param {NonNullable<typeof database>} db @returns {Promise<number>} requests that failed */
async function bench(db) {
  const service = await startService(db.url, { AUTH_LOGIN: USERNAME, AUTH_PASSWORD: PASSWORD })
  const token = await prepareEntries(service.port)
  progress(`filling ${EVENTS} events`)
  const filling = performance.now()
  const positions = await fillEvents(db.url, EVENTS)
  progress(`filled in ${((performance.now() - filling) / 1000).toFixed(1)} s`)
  const works = worksFor({ token, positions }).filter(({ id }) => ONLY.length === 0 || ONLY.includes(id))
  if (process.env['BENCH_PROFILE'] !== undefined) {
    await end(service.child)
    return await profile(db, works)
  }
  const starts = await startUps(db.url)
  const trips = await roundTrips(db.url, works)
  const bare = await startBare(db.url)
  const load = start([file('load.mjs')], {}, join(db.folder, 'load.log'), { ipc: true })

  say(
    `\n${new Date().toISOString()}  Node ${process.version}  ${db.version} (${db.where})  ${cpus().length} x ${cpus()[0]?.model}`,
  )
  say(
    `${EVENTS} events, ${ROUNDS} rounds of ${SECONDS} s, pool ${POOL_SIZE}, ${CONNECTIONS} connections (login 4)\n`,
  )
  const columns = [24, 8, 8, 8, 8, 10, 8, 7, 11, 10, 7, 8]
  const row = (/** @type {string[]} */ cells) =>
    say(
      cells
        .map((cell, index) =>
          index === 0 ? cell.padEnd(columns[0] ?? 0) : cell.padStart(columns[index] ?? 0),
        )
        .join(''),
    )
  row([
    'work',
    'req/s',
    'p50 ms',
    'p99 ms',
    'CPU us',
    'bare r/s',
    'CPU us',
    'ratio',
    'goal',
    '+session',
    'trips',
    'errors',
  ])
  let failed = 0
  for (const work of works) {
    /** @type {Measured[]} */
    const ours = []
    /** @type {Measured[]} */
    const theirs = []
    /** @type {Measured[]} */
    const checked = []
    // V8 compiles what it has seen often: a first, uncounted round for each side.
    await measure(load, service, work.service, work.connections)
    await measure(load, bare, work.checked ?? work.bare, work.connections)
    for (let round = 0; round < ROUNDS; round += 1) {
      ours.push(await measure(load, service, work.service, work.connections))
      theirs.push(await measure(load, bare, work.bare, work.connections))
      if (work.checked !== undefined) checked.push(await measure(load, bare, work.checked, work.connections))
    }
    const all = [...ours, ...theirs, ...checked]
    const errors = all.reduce((sum, seen) => sum + seen.errors, 0)
    failed += errors
    const ratios = ours.map((seen, round) => seen.perSecond / (theirs[round]?.perSecond ?? Number.NaN))
    const fairer = checked.map((seen, round) => (ours[round]?.perSecond ?? Number.NaN) / seen.perSecond)
    const ratio = median(ratios)
    row([
      `${work.id} ${work.name}`,
      rate(median(ours.map(({ perSecond }) => perSecond))),
      median(ours.map(({ p50 }) => p50)).toFixed(1),
      median(ours.map(({ p99 }) => p99)).toFixed(1),
      median(ours.map(({ cpu }) => cpu)).toFixed(0),
      rate(median(theirs.map(({ perSecond }) => perSecond))),
      median(theirs.map(({ cpu }) => cpu)).toFixed(0),
      ratio.toFixed(2),
      work.goal === undefined ? '-' : `${work.goal} ${ratio >= work.goal ? 'met' : 'MISS'}`,
      checked.length === 0 ? '-' : median(fairer).toFixed(2),
      (trips.get(work.id) ?? Number.NaN).toFixed(1),
      errors === 0 ? '0' : `${errors} !`,
    ])
    for (const { firstError } of all.filter((seen) => seen.errors > 0).slice(0, 1))
      say(`  first error: ${firstError}`)
  }
  say(
    '\nratio: median of same-round ratios, service / bare with one statement a request and no session check;',
  )
  say(
    '+session: the same against bare with a session check ahead; trips: Sync and simple Query on the wire a request',
  )
  say(`start to first 200 on /ready: ${starts.ms.toFixed(0)} ms (median of ${START_UPS}; goal 600)`)
  say(
    `resident memory: idle ${starts.idleMb.toFixed(0)} MB (goal 90), after load ${residentMb(service.child).toFixed(0)} MB; bare after load ${residentMb(bare.child).toFixed(0)} MB`,
  )
  if (failed > 0) say(`\n*** ${failed} requests FAILED: these numbers do not count ***`)
  return failed
}

/** @typedef {{ child: import('./children.mjs').Child, port: number, readyMs: number }} Server */

/** @param {string} url @param {Record<string, string>} [env] @param {string[]} [nodeArgs] @returns {Promise<Server>} */
async function startService(url, env = {}, nodeArgs = []) {
  const port = await freePort()
  const started = performance.now()
  const logFile = join(database?.folder ?? '', 'service.log')
  const child = start(
    [...nodeArgs, SERVICE, 'serve'],
    {
      DATABASE_URL: url,
      DATABASE_SSL: 'disable',
      DATABASE_POOL_SIZE: POOL_SIZE,
      PORT: String(port),
      LOG_LEVEL: 'warn',
      ENCRYPTION_KEY: `bench:${Buffer.alloc(32, 7).toString('base64')}`,
      ...env,
    },
    logFile,
  )
  try {
    const readyMs = await untilAnswered(child, `http://127.0.0.1:${port}/ready`, started)
    return { child, port, readyMs }
  } catch (error) {
    throw new Error(`the service did not start; its log:\n${await readFile(logFile, 'utf8')}`, {
      cause: error,
    })
  }
}

/** @param {string} url @returns {Promise<Server>} */
async function startBare(url) {
  const port = await freePort()
  const started = performance.now()
  const child = start(
    [file('bare.mjs')],
    { DATABASE_URL: url, DATABASE_POOL_SIZE: POOL_SIZE, PORT: String(port) },
    join(database?.folder ?? '', 'bare.log'),
  )
  const readyMs = await untilAnswered(child, `http://127.0.0.1:${port}/`, started, (status) => status > 0)
  return { child, port, readyMs }
}

/** Signs in and creates each connection's configuration entry; answers with the token. @param {number} port */
async function prepareEntries(port) {
  const base = `http://127.0.0.1:${port}/v1`
  const json = { 'content-type': 'application/json' }
  const body = JSON.stringify({ username: USERNAME, password: PASSWORD })
  const login = await fetch(`${base}/auth/login`, { method: 'POST', headers: json, body })
  if (!login.ok) throw new Error(`login: ${login.status} ${await login.text()}`)
  const { token } = /** @type {{ token: string }} */ (await login.json())
  for (let index = 0; index < CONNECTIONS; index += 1) {
    const put = await fetch(`${base}/config/global/${configKey(index)}`, {
      method: 'PUT',
      headers: { ...json, authorization: `Bearer ${token}`, 'if-none-match': '*' },
      body: JSON.stringify({ value: exampleSettings() }),
    })
    if (put.status !== 201) throw new Error(`PUT: ${put.status} ${await put.text()}`)
  }
  return token
}

/** @param {string} url */
async function startUps(url) {
  const times = []
  const idle = []
  for (let run = 0; run < START_UPS; run += 1) {
    const { child, readyMs } = await startService(url)
    times.push(readyMs)
    await sleep(500)
    idle.push(residentMb(child))
    await end(child)
  }
  return { ms: median(times), idleMb: median(idle) }
}

/** Counted one request after the other, behind a warm-up. @param {string} url @param {Work[]} works */
async function roundTrips(url, works) {
  const target = new URL(url)
  const proxy = await startWireProxy({ host: target.hostname, port: Number(target.port || 5432) })
  target.hostname = '127.0.0.1'
  target.port = String(proxy.port)
  const service = await startService(target.href)
  const load = start([file('load.mjs')], {}, join(database?.folder ?? '', 'load.log'), { ipc: true })
  /** @type {Map<string, number>} */
  const trips = new Map()
  for (const work of works) {
    const count = work.id === 'S7' ? 3 : COUNTED_REQUESTS
    const told = { port: service.port, connections: 1, requests: work.service, warmMs: 0, measureMs: 0 }
    await tell(load, { ...told, count: 3 })
    const before = proxy.count()
    await tell(load, { ...told, count })
    trips.set(work.id, (proxy.count() - before) / count)
  }
  await Promise.all([end(service.child), end(load)])
  proxy.close()
  return trips
}

/**
 * @param {import('./children.mjs').Child} load @param {Server} server @param {string[]} requests
 * @param {number} connections @returns {Promise<Measured>}
 */
async function measure(load, server, requests, connections) {
  let cpu = 0
  const onMessage = (/** @type {{ measuring?: true, measured?: true }} */ message) => {
    if (message.measuring) cpu = -cpuMicros(server.child)
    if (message.measured) cpu += cpuMicros(server.child)
  }
  load.on('message', onMessage)
  const told = { port: server.port, connections, requests, warmMs: WARM_MS, measureMs: SECONDS * 1000 }
  const seen = await tell(load, told)
  load.off('message', onMessage)
  return { ...seen, cpu: cpu / seen.requests }
}

/**
 * @param {import('./children.mjs').Child} load @param {import('./load.mjs').Load} what
 * @returns {Promise<import('./load.mjs').Seen>}
 */
async function tell(load, what) {
  const gone = new AbortController()
  const onExit = () => gone.abort(new Error('the load generator ended'))
  load.once('exit', onExit)
  load.send(what)
  try {
    for (;;) {
      const [message] = await once(load, 'message', { signal: gone.signal })
      if (message.failed !== undefined) throw new Error(`load: ${message.failed}`)
      if (message.done !== undefined) return message.done
    }
  } finally {
    load.off('exit', onExit)
  }
}

/** @param {NonNullable<typeof database>} db @param {Work[]} works @returns {Promise<number>} */
async function profile(db, works) {
  const load = start([file('load.mjs')], {}, join(db.folder, 'load.log'), { ipc: true })
  let failed = 0
  for (const work of works) {
    const folder = join(db.folder, `profile-${work.id}`)
    await mkdir(folder)
    const service = await startService(db.url, {}, ['--cpu-prof', `--cpu-prof-dir=${folder}`])
    await measure(load, service, work.service, work.connections)
    const seen = await measure(load, service, work.service, work.connections)
    await end(service.child)
    failed += seen.errors
    say(
      `\n${work.id} ${work.name}: ${rate(seen.perSecond)} req/s, ${seen.cpu.toFixed(0)} us of CPU a request, ${seen.errors} errors ${seen.firstError}`,
    )
    await printProfile(folder, SECONDS, say)
  }
  return failed
}

/** @param {number} value */
function rate(value) {
  return value >= 100 ? value.toFixed(0) : value.toFixed(1)
}

/** @param {number[]} values */
function median(values) {
  const sorted = values.toSorted((a, b) => a - b)
  const middle = sorted.length >> 1
  const upper = sorted[middle] ?? Number.NaN
  return sorted.length % 2 === 1 ? upper : ((sorted[middle - 1] ?? Number.NaN) + upper) / 2
}
