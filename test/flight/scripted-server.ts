import { once } from 'node:events'
import { type AddressInfo, type Server, type Socket, createServer } from 'node:net'

/** How a scripted server behaves beside what its statements ask of it; each list is gone through over and over. */
export interface Manners {
  /** Bytes of the pieces in which its answers leave. */
  pieces: number[]
  /** Turns of the event loop before each piece. */
  pauses: number[]
  /** Whether it takes a `flaky` text this time. */
  luck: boolean[]
  /** Behind so many bytes of answers the connection ends, or is reset. */
  loss: { atByte: number; how: 'end' | 'reset' } | undefined
}

/** What came until one Sync, and what became of it. */
export interface Group {
  /** Tokens of all Binds, those that were skipped among them. */
  bound: string[]
  /** Tokens of the statements that ran to their end. */
  executed: string[]
  /** The message of the one error. */
  failure: string | undefined
  /** How many bytes of answers it takes until its client can know how it went. */
  knownAtByte: number
}

/** What a Bind carries for the server: what it is called, and what is to become of it. */
export type Values = [token: string, rows: string, fails: Failing]
export type Failing = 'never' | 'bind' | 'execute' | 'sync'

interface Text {
  kind: string
  id: string
  columns: number
}

/**
 * A PostgreSQL server (manual, 55.2.3) as far as one connection needs it, which knows no SQL: `select <id> <columns>`,
 * `insert <id>`, `bad <id>` that no server takes, and `flaky <id> <columns>` that it takes with luck. What a statement
 * is to do comes as its values. It is strict: what a client must not send, it refuses, and `faults` tells.
 */
export class ScriptedServer {
  readonly groups: Group[] = []
  /** What the client did that no client may do. */
  readonly faults: string[] = []
  /** The name of each Parse that was not skipped, in order. */
  readonly parsed: string[] = []
  readonly #manners: Manners
  readonly #listener: Server
  readonly #next = { piece: 0, pause: 0, luck: 0 }
  #socket: Socket | undefined
  #input: Buffer = Buffer.alloc(0)
  #started = false
  #names = new Map<string, Text>()
  /** Of the last Parse without a name, while no other group has begun. */
  #unnamed: Text | undefined
  #portal: { text: Text; values: Values } | undefined
  #group: Group = emptyGroup()
  #skips = false
  #failsAtSync: string | undefined
  #output: Buffer = Buffer.alloc(0)
  #outputBytes = 0
  #sentBytes = 0
  #pumping = false
  #lost = false

  private constructor(manners: Manners) {
    this.#manners = manners
    this.#listener = createServer({ allowHalfOpen: true, noDelay: true }, (socket) => this.#accept(socket))
  }

  static async open(manners: Manners): Promise<ScriptedServer> {
    const server = new ScriptedServer(manners)
    server.#listener.listen(0, '127.0.0.1')
    await once(server.#listener, 'listening')
    return server
  }

  get port(): number {
    return (this.#listener.address() as AddressInfo).port
  }

  get lost(): boolean {
    return this.#lost
  }

  close(): void {
    this.#listener.close()
    this.#socket?.destroy()
  }

  #accept(socket: Socket): void {
    this.#socket = socket
    socket.on('error', () => socket.destroy())
    socket.on('end', () => socket.end())
    socket.on('data', (chunk) => this.#read(chunk))
  }

  #read(chunk: Buffer): void {
    this.#input = Buffer.concat([this.#input, chunk])
    for (;;) {
      const head = this.#started ? 1 : 0
      if (this.#input.length < head + 4) return
      const length = head + this.#input.readInt32BE(head)
      if (this.#input.length < length) return
      const message = this.#input.subarray(0, length)
      this.#input = this.#input.subarray(length)
      if (this.#started) this.#take(String.fromCharCode(message[0] ?? 0), new Fields(message.subarray(5)))
      else this.#start()
    }
  }

  #start(): void {
    this.#started = true
    this.#socket?.write(
      Buffer.concat([
        message('R', int32(0)),
        message('S', text('server_version'), text('18.0')),
        message('K', int32(1), int32(2)),
        message('Z', Buffer.from('I')),
      ]),
    )
  }

  #take(type: string, fields: Fields): void {
    if (type === 'S') return this.#sync()
    if (type === 'H') return
    if (type === 'P') return this.#parse(fields.text(), fields.text())
    if (type === 'B') return this.#bind(fields)
    if (this.#skips) return
    if (type === 'D') return this.#describe()
    if (type === 'E') return this.#execute()
    if (type !== 'X') this.faults.push(`a message of the type ${type}`)
  }

  #parse(name: string, words: string): void {
    if (this.#skips) return
    this.parsed.push(name)
    const [kind = '', id = '', columns = '0'] = words.split(' ')
    const parsed = { kind, id, columns: Number(columns) }
    if (name !== '' && this.#names.has(name)) return this.#refuse('42P05', `${name} exists already`)
    const { luck } = this.#manners
    const isUnlucky = kind === 'flaky' && luck[this.#next.luck++ % luck.length] === false
    if (kind === 'bad' || isUnlucky) return this.#fail('42601', `${id} does not parse`)
    if (name === '') this.#unnamed = parsed
    else this.#names.set(name, parsed)
    this.#answer(message('1'))
  }

  #bind(fields: Fields): void {
    fields.text()
    const name = fields.text()
    const values = fields.values() as Values
    const [token, , fails] = values
    this.#group.bound.push(token)
    if (this.#skips) return
    const found = name === '' ? this.#unnamed : this.#names.get(name)
    if (found === undefined) return this.#refuse('26000', `nothing is prepared as '${name}' for ${token}`)
    if (token.split('.')[2] !== found.id) return this.#refuse('XX000', `${token} is bound to ${found.id}`)
    if (fails === 'bind') return this.#fail('22P02', `${token} fails at its Bind`)
    this.#portal = { text: found, values }
    this.#answer(message('2'))
  }

  #describe(): void {
    if (this.#portal === undefined) return this.#refuse('34000', 'no portal to describe')
    const { id, columns } = this.#portal.text
    if (columns === 0) return this.#answer(message('n'))
    const all = Array.from({ length: columns }, (_, column) =>
      Buffer.concat([text(`${id}_${column}`), Buffer.alloc(6), int32(25), Buffer.alloc(8)]),
    )
    this.#answer(message('T', int16(columns), ...all))
  }

  #execute(): void {
    if (this.#portal === undefined) return this.#refuse('34000', 'no portal to execute')
    const { text: of, values } = this.#portal
    const [token, rows, fails] = values
    this.#portal = undefined
    for (let row = 0; row < Number(rows) && of.columns > 0; row += 1) {
      const cells = Array.from({ length: of.columns }, (_, column) => cell(`${token} ${row} ${column}`))
      this.#answer(message('D', int16(of.columns), ...cells))
      // What may come at any time and is no part of an answer.
      if (row === 1) this.#answer(message('N', Buffer.from('SNOTICE\0Mby the way\0\0')))
    }
    if (fails === 'execute') return this.#fail('22012', `${token} fails at its Execute`)
    if (fails === 'sync') this.#failsAtSync ??= token
    this.#group.executed.push(token)
    this.#answer(message('C', text(of.columns > 0 ? `SELECT ${rows}` : `INSERT 0 ${rows}`)))
  }

  #sync(): void {
    if (!this.#skips && this.#failsAtSync !== undefined)
      this.#fail('23503', `${this.#failsAtSync} fails at its Sync`)
    this.#answer(message('Z', Buffer.from('I')))
    if (this.#group.failure === undefined) this.#group.knownAtByte = this.#outputBytes
    this.groups.push(this.#group)
    this.#group = emptyGroup()
    this.#unnamed = undefined
    this.#portal = undefined
    this.#skips = false
    this.#failsAtSync = undefined
  }

  /** An error that only a client at fault can meet. */
  #refuse(code: string, words: string): void {
    this.faults.push(`${code} ${words}`)
    this.#fail(code, words)
  }

  #fail(code: string, words: string): void {
    this.#answer(message('E', text('SERROR'), text(`C${code}`), text(`M${words}`), Buffer.alloc(1)))
    this.#group.failure = words
    this.#group.knownAtByte = this.#outputBytes
    this.#skips = true
  }

  #answer(bytes: Buffer): void {
    this.#output = Buffer.concat([this.#output, bytes])
    this.#outputBytes += bytes.length
    void this.#pump()
  }

  async #pump(): Promise<void> {
    if (this.#pumping || this.#lost) return
    this.#pumping = true
    const { pieces, pauses, loss } = this.#manners
    while (this.#output.length > 0 && !this.#lost) {
      for (let turns = pauses[this.#next.pause++ % pauses.length] ?? 0; turns > 0; turns -= 1)
        await new Promise((resolve) => setImmediate(resolve))
      const left = (loss?.atByte ?? Infinity) - this.#sentBytes
      const piece = this.#output.subarray(0, Math.min(pieces[this.#next.piece++ % pieces.length] ?? 1, left))
      this.#output = this.#output.subarray(piece.length)
      this.#sentBytes += piece.length
      if (piece.length > 0) this.#socket?.write(piece)
      if (this.#sentBytes === loss?.atByte) this.#lose(loss.how)
    }
    this.#pumping = false
  }

  #lose(how: 'end' | 'reset'): void {
    this.#lost = true
    if (how === 'end') this.#socket?.end()
    else this.#socket?.resetAndDestroy()
  }
}

function emptyGroup(): Group {
  return { bound: [], executed: [], failure: undefined, knownAtByte: Infinity }
}

/** Reads a message's fields, one after the other. */
class Fields {
  readonly #bytes: Buffer
  #at = 0

  constructor(bytes: Buffer) {
    this.#bytes = bytes
  }

  text(): string {
    const end = this.#bytes.indexOf(0, this.#at)
    const found = this.#bytes.toString('utf8', this.#at, end)
    this.#at = end + 1
    return found
  }

  /** A Bind's parameters, behind their formats. */
  values(): string[] {
    this.#at += 2 + 2 * this.#bytes.readInt16BE(this.#at)
    const count = this.#bytes.readInt16BE(this.#at)
    this.#at += 2
    return Array.from({ length: count }, () => {
      const start = this.#at + 4
      this.#at = start + this.#bytes.readInt32BE(this.#at)
      return this.#bytes.toString('utf8', start, this.#at)
    })
  }
}

function message(type: string, ...parts: Buffer[]): Buffer {
  const body = Buffer.concat(parts)
  return Buffer.concat([Buffer.from(type), int32(body.length + 4), body])
}

function text(words: string): Buffer {
  return Buffer.from(`${words}\0`)
}

function cell(words: string): Buffer {
  return Buffer.concat([int32(Buffer.byteLength(words)), Buffer.from(words)])
}

function int16(value: number): Buffer {
  const bytes = Buffer.alloc(2)
  bytes.writeInt16BE(value)
  return bytes
}

function int32(value: number): Buffer {
  const bytes = Buffer.alloc(4)
  bytes.writeInt32BE(value)
  return bytes
}
