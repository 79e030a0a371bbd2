// A TCP proxy in front of PostgreSQL that counts what a client sends to be answered: each Sync and each simple
// Query is one round trip. Protocol: PostgreSQL manual, 55.7 Message Formats.
import { once } from 'node:events'
import { connect, createServer } from 'node:net'

const SYNC = 'S'.charCodeAt(0)
const QUERY = 'Q'.charCodeAt(0)

/**
 * @param {{ host: string, port: number }} target
 * @returns {Promise<{ port: number, count(): number, close(): void }>}
 */
export async function startWireProxy(target) {
  let trips = 0
  /** @type {Set<import('node:net').Socket>} */
  const sockets = new Set()
  const server = createServer((client) => {
    const upstream = connect({ ...target, noDelay: true })
    for (const socket of [client, upstream]) {
      sockets.add(socket)
      socket.on('error', () => {})
      socket.on('close', () => {
        sockets.delete(socket)
        client.destroy()
        upstream.destroy()
      })
    }
    const read = messageReader((type) => {
      if (type === SYNC || type === QUERY) trips += 1
    })
    client.on('data', (data) => {
      read(data)
      upstream.write(data)
    })
    upstream.on('data', (data) => client.write(data))
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const address = server.address()
  return {
    port: typeof address === 'object' && address !== null ? address.port : 0,
    count: () => trips,
    close() {
      server.close()
      for (const socket of sockets) socket.destroy()
    },
  }
}

/**
 * Tells the type of each message behind the untyped start-up message, however the bytes are cut.
 * @param {(type: number) => void} onMessage
 */
function messageReader(onMessage) {
  let held = Buffer.alloc(0)
  let started = false
  let skip = 0
  return (/** @type {Buffer} */ data) => {
    held = held.length === 0 ? data : Buffer.concat([held, data])
    for (;;) {
      const passed = Math.min(skip, held.length)
      skip -= passed
      held = held.subarray(passed)
      const head = started ? 5 : 4
      if (held.length < head) return
      if (started) onMessage(held[0] ?? 0)
      skip = held.readUInt32BE(head - 4) + head - 4
      started = true
    }
  }
}
