// The load generator: a process of its own, raw sockets and no HTTP library, so that it costs the two
// measured sides the same few microseconds. Told over IPC what to send, answers with what it saw.
import { connect } from 'node:net'

/**
 * @typedef {object} Load
 * @property {number} port
 * @property {string[]} requests whole HTTP/1.1 requests; connection i sends number i, again and again
 * @property {number} connections
 * @property {number} warmMs
 * @property {number} measureMs
 * @property {number} [count] instead of a time: so many requests in all
 */
/**
 * @typedef {object} Seen
 * @property {number} perSecond
 * @property {number} p50 milliseconds
 * @property {number} p99
 * @property {number} requests
 * @property {number} errors answers other than 2xx, and lost connections
 * @property {string} firstError
 */

const HEAD_END = Buffer.from('\r\n\r\n')
const CHUNKS_END = Buffer.from('0\r\n\r\n')
const DRAIN_MS = 15_000

process.on('message', (load) => {
  run(/** @type {Load} */ (load)).then(
    (seen) => process.send?.({ done: seen }),
    (error) => process.send?.({ failed: String(error) }),
  )
})
process.on('disconnect', () => process.exit(0))

/** @param {Load} load @returns {Promise<Seen>} */
async function run(load) {
  const state = { measuring: false, stopping: false, left: load.count ?? Infinity, errors: 0, firstError: '' }
  /** @type {number[]} */
  const times = []
  const all = Array.from({ length: load.connections }, (_, index) =>
    drive(load.port, Buffer.from(load.requests[index % load.requests.length] ?? ''), state, times),
  )
  if (load.count !== undefined) {
    state.measuring = true
    await Promise.all(all)
    return summary(times, 1, state)
  }
  await sleep(load.warmMs)
  state.measuring = true
  process.send?.({ measuring: true })
  const started = performance.now()
  await sleep(load.measureMs)
  state.measuring = false
  const seconds = (performance.now() - started) / 1000
  process.send?.({ measured: true })
  state.stopping = true
  await Promise.race([Promise.all(all), sleep(DRAIN_MS)])
  return summary(times, seconds, state)
}

/** @param {number[]} times @param {number} seconds @param {{ errors: number, firstError: string }} state */
function summary(times, seconds, { errors, firstError }) {
  const sorted = Float64Array.from(times).sort()
  const at = (/** @type {number} */ share) =>
    sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? Number.NaN
  return {
    perSecond: times.length / seconds,
    p50: at(0.5),
    p99: at(0.99),
    requests: times.length,
    errors,
    firstError,
  }
}

/**
 * One connection: sends, waits for the whole answer, sends again.
 * @param {number} port @param {Buffer} request
 * @param {{ measuring: boolean, stopping: boolean, left: number, errors: number, firstError: string }} state
 * @param {number[]} times @returns {Promise<void>}
 */
function drive(port, request, state, times) {
  return new Promise((resolve) => {
    const socket = connect({ port, host: '127.0.0.1', noDelay: true })
    let sent = 0
    /** @type {Buffer | undefined} */
    let held
    const fail = (/** @type {string} */ why) => {
      state.errors += 1
      state.firstError ||= why.slice(0, 400)
    }
    const next = () => {
      if (state.stopping || state.left <= 0) return void socket.end()
      state.left -= 1
      sent = performance.now()
      socket.write(request)
    }
    socket.on('connect', next)
    socket.on('data', (data) => {
      held = held === undefined ? data : Buffer.concat([held, data])
      if (!isWhole(held)) return
      const status = held.latin1Slice(9, 12)
      if (status[0] !== '2') fail(held.toString())
      else if (state.measuring) times.push(performance.now() - sent)
      held = undefined
      next()
    })
    socket.on('error', (error) => fail(String(error)))
    socket.on('close', () => {
      if (!state.stopping && state.left > 0) fail('the connection was closed')
      resolve()
    })
  })
}

/** @param {Buffer} answer a single one: the next is asked for only when this one is whole */
function isWhole(answer) {
  const headEnd = answer.indexOf(HEAD_END)
  if (headEnd < 0) return false
  const head = answer.latin1Slice(0, headEnd).toLowerCase()
  const at = head.indexOf('\r\ncontent-length:')
  if (at >= 0) return answer.length >= headEnd + 4 + Number.parseInt(head.slice(at + 17), 10)
  if (head.includes('\r\ntransfer-encoding: chunked')) return answer.subarray(-5).equals(CHUNKS_END)
  return true
}

/** @param {number} ms @returns {Promise<void>} */
function sleep(ms) {
  return new Promise((resolve) => void setTimeout(resolve, ms))
}
