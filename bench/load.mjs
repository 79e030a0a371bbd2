// The load generator: a process of its own, raw sockets and no HTTP library, so that it costs the
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
 * @property {boolean} isStream one request, whose answer's rows are what is counted
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
const LINE_FEED = 10
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
  if (load.isStream) return await readRows(load.port, load.requests[0] ?? '')
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
  process.send?.({ phase: 'measuring' })
  const started = performance.now()
  await sleep(load.measureMs)
  state.measuring = false
  const seconds = (performance.now() - started) / 1000
  process.send?.({ phase: 'measured' })
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
 * The rows of one answer as fast as they come: lines of a chunked body, without the first, which names the columns.
 * @param {number} port @param {string} request @returns {Promise<Seen>}
 */
function readRows(port, request) {
  return new Promise((resolve) => {
    const socket = connect({ port, host: '127.0.0.1', noDelay: true })
    let started = 0
    let lines = 0
    let head = Buffer.alloc(0)
    let isBody = false
    let ended = false
    const body = chunkReader((data, from, to) => {
      for (let at = from; at < to; at += 1) if (data[at] === LINE_FEED) lines += 1
    })
    const end = (/** @type {string} */ firstError) => {
      if (ended) return
      ended = true
      socket.destroy()
      process.send?.({ phase: 'measured' })
      const ms = performance.now() - started
      const requests = Math.max(0, lines - 1)
      const errors = firstError === '' ? 0 : 1
      resolve({ perSecond: (requests / ms) * 1000, p50: ms, p99: ms, requests, errors, firstError })
    }
    socket.on('connect', () => {
      process.send?.({ phase: 'measuring' })
      started = performance.now()
      socket.write(request)
    })
    socket.on('data', (data) => {
      let from = 0
      if (!isBody) {
        head = Buffer.concat([head, data])
        const headEnd = head.indexOf(HEAD_END)
        if (headEnd < 0) return
        if (head.latin1Slice(9, 12) !== '200') return end(head.toString().slice(0, 400))
        isBody = true
        data = head
        from = headEnd + HEAD_END.length
      }
      if (body(data, from)) end('')
    })
    socket.on('error', (error) => end(String(error)))
    socket.on('close', () => end('the answer was cut'))
  })
}

/**
 * Tells the parts of a chunked body, however they are cut (RFC 9112, section 7.1); true when it is whole.
 * @param {(data: Buffer, from: number, to: number) => void} onPart
 */
function chunkReader(onPart) {
  let left = 0
  let size = ''
  return (/** @type {Buffer} */ data, /** @type {number} */ from) => {
    for (let at = from; at < data.length;) {
      // What is left of a chunk includes the two bytes behind it.
      if (left > 0) {
        const to = Math.min(data.length, at + left)
        onPart(data, at, Math.min(to, at + left - 2))
        left -= to - at
        at = to
        continue
      }
      const byte = data[at] ?? 0
      at += 1
      if (byte !== LINE_FEED) size += String.fromCharCode(byte)
      else {
        const length = Number.parseInt(size, 16)
        if (length === 0) return true
        left = length + 2
        size = ''
      }
    }
    return false
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
