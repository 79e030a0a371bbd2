import { once } from 'node:events'
import { type AddressInfo, type Server, type Socket, connect, createServer } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { FrontendReader, answersComplete } from './proxy-messages.js'

interface Pair {
  client: Socket
  server: Socket
  reader: FrontendReader
  /** The server's side was dropped; the client hears of it when it next speaks. */
  dropped: boolean
  /** What the server answered since a COMMIT that the client is not to hear about. */
  withheld: Buffer[] | undefined
}

/**
 * pass; black_hole: nothing arrives any more, on either side, of old and new connections; silent: new
 * connections are accepted and never answered; refuse: nobody listens; reset: as refuse, and those that are there are reset.
 */
export type Mode = 'pass' | 'black_hole' | 'silent' | 'refuse' | 'reset'

/** A way to a PostgreSQL server on which everything can go wrong. */
export class Proxy {
  #target: { host: string; port: number }
  readonly #pairs = new Set<Pair>()
  #listener: Server | undefined
  #port = 0
  #mode: Mode = 'pass'
  latencyMs = 0
  /** By the socket they go to: the last of the packets that are still under way. */
  readonly #waiting = new Map<Socket, Promise<void>>()
  /** Bytes a packet; 0 leaves them as they are. */
  sliceBytes = 0
  /** So many of the next commits are done by the server and never acknowledged, or never reach it. */
  cutAfterCommits = 0
  cutBeforeCommits = 0
  /** How often a fault of this proxy hit a connection or a commit. */
  hits = 0
  connections = 0
  /** Connections that asked to cancel a statement. */
  cancels = 0

  constructor(target: string) {
    this.#target = targetOf(target)
  }

  /** Listens; the port stays the same when it is opened again. */
  async open(): Promise<void> {
    if (this.#listener !== undefined) return
    const listener = createServer((client) => this.#accept(client)).listen(this.#port, '127.0.0.1')
    await once(listener, 'listening')
    this.#listener = listener
    this.#port = (listener.address() as AddressInfo).port
  }

  /** The same database by this way. */
  through(url: string): string {
    const way = new URL(url)
    way.host = `127.0.0.1:${this.#port}`
    return way.href
  }

  async become(mode: Mode): Promise<void> {
    this.#mode = mode
    if (mode === 'refuse' || mode === 'reset') {
      this.#listener?.close()
      this.#listener = undefined
    } else await this.open()
    if (mode === 'reset') this.cutAll()
    if (mode === 'black_hole') this.hits += this.#pairs.size
  }

  /** New connections go elsewhere; those that are there stay where they are. */
  retarget(url: string): void {
    this.#target = targetOf(url)
  }

  /** Every connection that is there is reset. */
  cutAll(): void {
    this.hits += this.#pairs.size
    for (const { client, server } of this.#pairs) {
      client.resetAndDestroy()
      server.destroy()
    }
  }

  /** The server's side ends, and each client hears of it when it next speaks: a machine on the way restarted. */
  dropServers(): void {
    for (const pair of this.#pairs) {
      pair.dropped = true
      pair.server.destroy()
    }
  }

  close(): void {
    this.#listener?.close()
    this.#listener = undefined
    for (const { client, server } of this.#pairs) {
      client.destroy()
      server.destroy()
    }
  }

  #accept(client: Socket): void {
    this.connections += 1
    const server = connect(this.#target)
    const pair: Pair = { client, server, reader: new FrontendReader(), dropped: false, withheld: undefined }
    this.#pairs.add(pair)
    if (this.#mode !== 'pass') this.hits += 1
    for (const end of [client, server]) {
      end.setNoDelay(true)
      end.on('error', () => end.destroy())
      end.on('close', () => this.#ended(pair, end))
    }
    client.on('data', (chunk) => this.#fromClient(pair, chunk))
    server.on('data', (chunk) => this.#fromServer(pair, chunk))
  }

  #ended(pair: Pair, end: Socket): void {
    if (pair.dropped && end === pair.server) return
    this.#pairs.delete(pair)
    // A black hole tells nobody that the other side is gone.
    if (this.#mode === 'black_hole' && end === pair.server) return
    ;(end === pair.client ? pair.server : pair.client).destroy()
  }

  #fromClient(pair: Pair, chunk: Buffer): void {
    if (pair.dropped) {
      this.hits += 1
      pair.client.resetAndDestroy()
      return
    }
    const { cancels, commits } = pair.reader.read(chunk)
    this.cancels += cancels
    if (commits > 0 && this.cutBeforeCommits > 0) {
      this.cutBeforeCommits -= 1
      this.hits += 1
      pair.client.resetAndDestroy()
      pair.server.destroy()
      return
    }
    if (commits > 0 && this.cutAfterCommits > 0) {
      this.cutAfterCommits -= 1
      pair.withheld = []
    }
    this.#pass(pair.server, chunk)
  }

  #fromServer(pair: Pair, chunk: Buffer): void {
    if (pair.withheld === undefined) return this.#pass(pair.client, chunk)
    pair.withheld.push(chunk)
    if (!answersComplete(Buffer.concat(pair.withheld))) return
    this.hits += 1
    pair.client.resetAndDestroy()
    pair.server.destroy()
  }

  #pass(to: Socket, chunk: Buffer): void {
    if (this.#mode === 'black_hole' || this.#mode === 'silent') return
    const waiting = this.#waiting.get(to)
    if (this.latencyMs === 0 && waiting === undefined) return this.#write(to, chunk)
    this.hits += 1
    // Behind what is still under way: no network hands on a connection's bytes in another order.
    const written = Promise.all([waiting, sleep(this.latencyMs)]).then(() => {
      this.#write(to, chunk)
      if (this.#waiting.get(to) === written) this.#waiting.delete(to)
    })
    this.#waiting.set(to, written)
  }

  #write(to: Socket, chunk: Buffer): void {
    if (to.destroyed) return
    if (this.sliceBytes === 0) return void to.write(chunk)
    this.hits += 1
    for (let at = 0; at < chunk.length; at += this.sliceBytes)
      to.write(chunk.subarray(at, at + this.sliceBytes))
  }
}

function targetOf(url: string): { host: string; port: number } {
  const { hostname, port } = new URL(url)
  return { host: hostname, port: Number(port || 5432) }
}
