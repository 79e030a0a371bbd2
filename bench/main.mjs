// The service beside the bare stack on one database and one machine: see bare.mjs for what "bare" is. Asserts
// nothing about time; ends with 1 when a request failed or the run did. With --peers also beside other stacks, whose
// packages are installed for it under bench/peers.
//   BENCH_EVENTS=1000000  BENCH_SECONDS=3  BENCH_ROUNDS=3  BENCH_ONLY=S1,S4  BENCH_DATABASE_URL=postgres://super...
//   BENCH_CALLERS=1 identities of the known caller, in turns: what one identity asks at once shares more
//   BENCH_PROFILE=service instead of measuring: where its CPU goes (or known, bare), function by function
//   DATABASE_POOL_SIZE, DATABASE_LANES, DATABASE_PREPARE: of every process that has a use for them
import { cpus } from 'node:os'
import { setTimeout as sleep } from 'node:timers/promises'
import { end, endAll, residentMb } from './children.mjs'
import {
  PASSWORD,
  USERNAME,
  configKey,
  CONNECTIONS,
  exampleSettings,
  fillEvents,
  openDatabase,
} from './data.mjs'
import { measure, roundTrips, startLoad } from './measure.mjs'
import { watchPostgres } from './postgres-cpu.mjs'
import { printProfiles } from './profile.mjs'
import { printReport } from './report.mjs'
import { startServer } from './servers.mjs'
import { median } from './statistics.mjs'
import { READINGS, serverOf, worksFor } from './works.mjs'

const EVENTS = Number(process.env['BENCH_EVENTS'] || 1_000_000)
const SECONDS = Number(process.env['BENCH_SECONDS'] || 3)
const ROUNDS = Number(process.env['BENCH_ROUNDS'] || 3)
const ONLY = (process.env['BENCH_ONLY'] || '').split(',').filter(Boolean)
const PROFILED = process.env['BENCH_PROFILE'] || ''
const WITH_PEERS = process.argv.includes('--peers')
/** V8 compiles what it has seen often: a request costs the service twice as much before. So long, uncounted. */
const WARM_SECONDS = 2 * SECONDS

const say = (/** @type {string} */ line) => void process.stdout.write(`${line}\n`)
const progress = (/** @type {string} */ line) => void process.stderr.write(`${line}\n`)

/** @typedef {import('./works.mjs').Work} Work */
/** @typedef {import('./works.mjs').Reading} Reading */
/** @typedef {import('./servers.mjs').Server} Server */
/** @typedef {import('./measure.mjs').Measured} Measured */

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
  if (WITH_PEERS) (await import('./peers/install.mjs')).installPeers(progress)
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
  const owner = { AUTH_LOGIN: USERNAME, AUTH_PASSWORD: PASSWORD }
  const service = await startServer('service', db, { env: owner })
  const token = await prepareEntries(service.port)
  await end(service.child)
  progress(`filling ${EVENTS} events`)
  const positions = await fillEvents(db.url, EVENTS)
  const works = worksFor({ token, positions }).filter(({ id }) => ONLY.length === 0 || ONLY.includes(id))
  if (PROFILED !== '')
    return await printProfiles(db, works, PROFILED === '1' ? 'service' : PROFILED, SECONDS, say)

  const readings = READINGS.filter((reading) => WITH_PEERS || !['prisma', 'fastify'].includes(reading))
  const names = [...new Set(readings.map(serverOf))]
  progress('starting each')
  const starts = await startUps(db, names)
  progress('counting round trips')
  const trips = await countTrips(db, works, readings)
  /** @type {Map<string, Server>} */
  const servers = new Map()
  for (const name of names) servers.set(name, await startServer(name, db))
  const meters = { load: startLoad(db.folder), postgresCpu: await watchPostgres(db.url) }
  const results = []
  for (const work of works) {
    progress(`${work.id} ${work.name}`)
    results.push({ work, seen: await measureWork(meters, servers, work, readings) })
  }
  return printReport(
    {
      head: [
        `${new Date().toISOString()}, Node ${process.version}, ${db.version} (${db.where}), ${cpus().length} x ${cpus()[0]?.model}`,
        `${EVENTS} events, ${ROUNDS} rounds of ${SECONDS} s, medians, ${CONNECTIONS} connections (login 4, CSV 1)`,
      ],
      results,
      trips,
      memory: [...servers].map(([name, { child }]) => {
        const { startMs = Number.NaN, idleMb = Number.NaN } = starts.get(name) ?? {}
        return { name, startMs, idleMb, loadedMb: residentMb(child) }
      }),
    },
    say,
  )
}

/**
 * All readings of a work in turns, so that what slows the machine slows all; none is always first.
 * @param {Parameters<typeof measure>[0]} meters @param {Map<string, Server>} servers @param {Work} work
 * @param {readonly Reading[]} all @returns {Promise<Map<Reading, Measured[]>>}
 */
async function measureWork(meters, servers, work, all) {
  const readings = all.filter((reading) => work.requests[reading] !== undefined)
  const seen = new Map(readings.map((reading) => [reading, /** @type {Measured[]} */ ([])]))
  const once = async (/** @type {Reading} */ reading, /** @type {number} */ seconds) => {
    const server = servers.get(serverOf(reading))
    if (server === undefined) throw new Error(`${reading} has no server`)
    return await measure(meters, server, work, work.requests[reading] ?? [], seconds)
  }
  if (!work.isStream) for (const reading of readings) await once(reading, WARM_SECONDS)
  for (let round = 0; round < ROUNDS; round += 1)
    for (const turn of readings.keys()) {
      const reading = readings[(turn + round) % readings.length] ?? 'service'
      seen.get(reading)?.push(await once(reading, SECONDS))
    }
  return seen
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

/** @param {NonNullable<typeof database>} db @param {string[]} names */
async function startUps(db, names) {
  const seen = new Map(
    names.map((name) => [name, { ms: /** @type {number[]} */ ([]), mb: /** @type {number[]} */ ([]) }]),
  )
  for (let round = 0; round < 2 * ROUNDS - 1; round += 1)
    for (const [name, { ms, mb }] of seen) {
      const { child, readyMs } = await startServer(name, db)
      ms.push(readyMs)
      await sleep(500)
      mb.push(residentMb(child))
      await end(child)
    }
  return new Map([...seen].map(([name, { ms, mb }]) => [name, { startMs: median(ms), idleMb: median(mb) }]))
}

/** @param {NonNullable<typeof database>} db @param {Work[]} works @param {readonly Reading[]} readings */
async function countTrips(db, works, readings) {
  /** @type {Map<Reading, Map<string, number>>} */
  const trips = new Map()
  for (const reading of readings) {
    const asked = works.flatMap(({ id, isStream, requests }) => {
      const own = requests[reading]
      return own === undefined || isStream ? [] : [{ id, requests: own }]
    })
    trips.set(reading, await roundTrips(serverOf(reading), db, asked))
  }
  return trips
}
