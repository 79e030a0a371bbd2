// Many requests at once over connections that are open already, as a reverse proxy keeps them: a process of its own
// and raw sockets, since the service shares the cores with it. Told over IPC what to send, answers with what it saw.
import { once } from 'node:events'
import { connect } from 'node:net'
import { mainThreadMs } from './children.mjs'

/**
 * @typedef {object} Flood
 * @property {number} port
 * @property {string[]} requests whole HTTP/1.1 requests, one a connection, all written in one go
 * @property {number} floods
 * @property {number} pauseMs between them
 * @property {number} pid of the service
 */
/** @typedef {{ status: number, retryAfter: string | undefined, ms: number }} Seen ms: from its write to its answer */
/** @typedef {{ seen: Seen[], cpuMs: number }} Flooded cpuMs: the service's main thread, up to the last refusal */

const HEAD_END = '\r\n\r\n'
// So that this side is compiled by then.
const WARM = Buffer.from('GET /health/live HTTP/1.1\r\nhost: bench\r\n\r\n')
const WARM_FLOODS = 10

process.on('message', (flood) => {
  run(/** @type {Flood} */ (flood)).then(
    (done) => process.send?.({ done }),
    (error) => process.send?.({ failed: String(error) }),
  )
})
process.on('disconnect', () => process.exit(0))

/** @param {Flood} told @returns {Promise<Flooded[]>} */
async function run({ port, requests, floods, pauseMs, pid }) {
  const bytes = requests.map((request) => Buffer.from(request))
  const sockets = await Promise.all(
    requests.map(async () => {
      const socket = connect({ port, host: '127.0.0.1', noDelay: true })
      await once(socket, 'connect')
      return socket
    }),
  )
  const sendAll = async (/** @type {Buffer[]} */ sent) => {
    const before = mainThreadMs(pid)
    let after = before
    const seen = await Promise.all(
      sockets.map((socket, index) =>
        send(socket, sent[index] ?? WARM).then((answer) => {
          if (answer.status === 429 || answer.status === 503) after = mainThreadMs(pid)
          return answer
        }),
      ),
    )
    return { seen, cpuMs: after - before }
  }
  for (let flood = 0; flood < WARM_FLOODS; flood += 1) await sendAll([])
  /** @type {Flooded[]} */
  const all = []
  for (let flood = 0; flood < floods; flood += 1) {
    await new Promise((resolve) => void setTimeout(resolve, pauseMs))
    all.push(await sendAll(bytes))
  }
  for (const socket of sockets) socket.end()
  return all
}

/** @param {import('node:net').Socket} socket @param {Buffer} request @returns {Promise<Seen>} */
function send(socket, request) {
  return new Promise((resolve, reject) => {
    let held = ''
    const onClose = () => reject(new Error('the connection was closed'))
    const onData = (/** @type {Buffer} */ data) => {
      const now = performance.now()
      held += data.latin1Slice()
      const headEnd = held.indexOf(HEAD_END)
      if (headEnd < 0) return
      const header = (/** @type {string} */ name) =>
        new RegExp(`\r\n${name}: ([^\r]*)`, 'i').exec(held.slice(0, headEnd))?.[1]
      if (held.length < headEnd + HEAD_END.length + Number(header('content-length') ?? 0)) return
      socket.off('data', onData).off('close', onClose)
      resolve({ status: Number(held.slice(9, 12)), retryAfter: header('retry-after'), ms: now - sent })
    }
    socket.on('data', onData).on('close', onClose)
    const sent = performance.now()
    socket.write(request)
  })
}
