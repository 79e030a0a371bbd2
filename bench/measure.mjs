// One measurement: the load generator told what to send, and what server and database used meanwhile.
import { join } from 'node:path'
import { cpuMicros, end, start } from './children.mjs'
import { fileURLToPath } from 'node:url'
import { startServer } from './servers.mjs'
import { startWireProxy } from './wire-proxy.mjs'

/** Connections are made in it; V8 has compiled before, in a measurement that is not counted. */
const LEAD_MS = 300
const COUNTED_REQUESTS = 20
/** So many go ahead, so that every connection knows the statements. */
const UNCOUNTED_REQUESTS = 60

/** @typedef {import('./works.mjs').Work} Work */
/** @typedef {import('./servers.mjs').Server} Server */
/** @typedef {import('./load.mjs').Seen & { cpu: number, postgres: number }} Measured microseconds of CPU a request */
/** @typedef {import('./children.mjs').Child} Child */

/** @param {string} folder of its log @returns {Child} */
export function startLoad(folder) {
  const program = fileURLToPath(new URL('load.mjs', import.meta.url))
  return start([program], {}, join(folder, 'load.log'), { ipc: true })
}

/**
 * @param {{ load: Child, postgresCpu: () => number }} with_ @param {Server} server @param {Work} work
 * @param {string[]} requests @param {number} seconds @returns {Promise<Measured>}
 */
export async function measure({ load, postgresCpu }, server, work, requests, seconds) {
  let cpu = 0
  let postgres = 0
  const { connections, isStream } = work
  const told = {
    port: server.port,
    connections,
    requests,
    isStream,
    warmMs: LEAD_MS,
    measureMs: seconds * 1000,
  }
  const seen = await tell(load, told, (message) => {
    const sign = message === 'measuring' ? -1 : 1
    cpu += sign * cpuMicros(server.child)
    postgres += sign * postgresCpu()
  })
  return { ...seen, cpu: cpu / seen.requests, postgres: postgres / seen.requests }
}

/**
 * @param {Child} load @param {import('./load.mjs').Load} what
 * @param {(message: 'measuring' | 'measured') => void} onPhase @returns {Promise<import('./load.mjs').Seen>}
 */
function tell(load, what, onPhase = () => {}) {
  return new Promise((resolve, reject) => {
    const onExit = () => reject(new Error('the load generator ended'))
    const settle = (/** @type {() => void} */ how) => {
      load.off('message', onMessage)
      load.off('exit', onExit)
      how()
    }
    // One listener for all: a message that comes between two of them would be lost.
    const onMessage = (/** @type {any} */ message) => {
      if (message.phase !== undefined) onPhase(message.phase)
      if (message.failed !== undefined) settle(() => reject(new Error(`load: ${message.failed}`)))
      if (message.done !== undefined) settle(() => resolve(message.done))
    }
    load.on('message', onMessage)
    load.once('exit', onExit)
    load.send(what)
  })
}

/**
 * Round trips a request, of each work: counted one request after the other, on a server of its own behind a proxy.
 * @param {string} name of the server @param {{ url: string, folder: string }} database
 * @param {{ id: string, requests: string[] }[]} works @returns {Promise<Map<string, number>>}
 */
export async function roundTrips(name, database, works) {
  const target = new URL(database.url)
  const proxy = await startWireProxy({ host: target.hostname, port: Number(target.port || 5432) })
  target.hostname = '127.0.0.1'
  target.port = String(proxy.port)
  const server = await startServer(name, { ...database, url: target.href })
  const load = startLoad(database.folder)
  /** @type {Map<string, number>} */
  const trips = new Map()
  for (const { id, requests } of works) {
    const isSlow = id === 'S7'
    const count = isSlow ? 3 : COUNTED_REQUESTS
    const told = { port: server.port, connections: 1, requests, isStream: false, warmMs: 0, measureMs: 0 }
    await tell(load, { ...told, count: isSlow ? 3 : UNCOUNTED_REQUESTS })
    const before = proxy.count()
    const { errors, firstError } = await tell(load, { ...told, count })
    if (errors > 0) throw new Error(`${name}, ${id}: ${firstError}`)
    trips.set(id, (proxy.count() - before) / count)
  }
  await Promise.all([end(server.child), end(load)])
  proxy.close()
  return trips
}
