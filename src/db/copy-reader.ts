import type { ClientBase, Submittable } from 'pg'

const PIECE_BYTES = 64 * 1024
/** So many pieces wait for a reader; then the server does. */
const MAX_WAITING = 2

interface Wire {
  stream: { pause(): void; resume(): void }
  query(text: string): void
}

/**
 * One `COPY ... TO STDOUT` in CSV, in pieces, as fast as they are taken. A message is a row (PostgreSQL manual, 55.2.6)
 * and ends with LF, which RFC 4180 wants to be CRLF.
 */
export class CopyReader implements Submittable {
  /** Set by pg, whose own timer it stops. */
  callback: ((error: Error | null) => void) | undefined
  readonly #text: string
  #wire: Wire | undefined
  #pieces: Buffer[] = []
  #piece = Buffer.allocUnsafe(PIECE_BYTES)
  #filled = 0
  #over = false
  #error: Error | undefined
  #wake: () => void = () => {}

  constructor(text: string) {
    this.#text = text
  }

  /** Nothing more of it will come. */
  get isOver(): boolean {
    return this.#over
  }

  /** What has come since, waiting for something; empty at the end. */
  async read(): Promise<Buffer[]> {
    while (this.#pieces.length === 0 && !this.#over)
      await new Promise<void>((resolve) => (this.#wake = resolve))
    if (this.#error !== undefined) throw this.#error
    const pieces = this.#pieces
    this.#pieces = []
    this.#wire?.stream.resume()
    return pieces
  }

  submit(connection: unknown): void {
    this.#wire = connection as Wire
    this.#wire.query(this.#text)
  }

  handleCopyData({ chunk }: { chunk: Buffer }): void {
    if (this.#filled + chunk.length + 1 > this.#piece.length) this.#flush(chunk.length + 1)
    chunk.copy(this.#piece, this.#filled)
    this.#filled += chunk.length + 1
    this.#piece.write('\r\n', this.#filled - 2, 'latin1')
  }

  #flush(next = 0): void {
    if (this.#filled > 0) this.#pieces.push(this.#piece.subarray(0, this.#filled))
    this.#piece = Buffer.allocUnsafe(Math.max(next, PIECE_BYTES))
    this.#filled = 0
    if (this.#pieces.length >= MAX_WAITING) this.#wire?.stream.pause()
    this.#wake()
  }

  handleCommandComplete(): void {
    this.#flush()
  }

  handleError(error: Error): void {
    this.#error ??= error
    this.#end(error)
  }

  handleReadyForQuery(): void {
    this.#end(null)
  }

  #end(error: Error | null): void {
    this.#over = true
    this.#wire?.stream.resume()
    this.#wake()
    this.callback?.(error)
  }
}

export function startCopy(client: ClientBase, text: string): CopyReader {
  return client.query(new CopyReader(text))
}

/** The one statement that answers with text in place of rows. */
export function isCopy(text: string): boolean {
  return text.startsWith('copy ')
}
