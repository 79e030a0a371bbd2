const CANCEL_REQUEST = 80_877_102
const SSL_REQUEST = 80_877_103

/** Reads what a client sends (PostgreSQL manual, 55.7) and tells where changes become final. */
export class FrontendReader {
  #rest: Buffer = Buffer.alloc(0)
  #started = false
  #inTransaction = false
  readonly #texts = new Map<string, string>()

  /** In this chunk: requests to cancel, and messages that the server answers by a commit. */
  read(chunk: Buffer): { cancels: number; commits: number } {
    this.#rest = this.#rest.length === 0 ? chunk : Buffer.concat([this.#rest, chunk])
    let cancels = 0
    let commits = 0
    for (;;) {
      const headerBytes = this.#started ? 5 : 4
      if (this.#rest.length < headerBytes + (this.#started ? 0 : 4)) return { cancels, commits }
      const length = this.#rest.readInt32BE(headerBytes - 4) + headerBytes - 4
      if (this.#rest.length < length) return { cancels, commits }
      const message = this.#rest.subarray(0, length)
      this.#rest = this.#rest.subarray(length)
      if (this.#started)
        commits += this.#commits(String.fromCharCode(message[0] ?? 0), message.subarray(5)) ? 1 : 0
      else {
        const code = message.readInt32BE(4)
        if (code === CANCEL_REQUEST) cancels += 1
        else if (code !== SSL_REQUEST) this.#started = true
      }
    }
  }

  /** Statements are known by the name they were parsed under; '' is the last one without. */
  #commits(type: string, body: Buffer): boolean {
    if (type === 'Q') return this.#finishes(textAt(body, 0))
    if (type === 'P') {
      const name = textAt(body, 0)
      this.#texts.set(name, textAt(body, Buffer.byteLength(name) + 1))
    }
    if (type !== 'B') return false
    const portal = textAt(body, 0)
    return this.#finishes(this.#texts.get(textAt(body, Buffer.byteLength(portal) + 1)) ?? '')
  }

  #finishes(text: string): boolean {
    if (/^\s*begin/i.test(text)) this.#inTransaction = true
    if (/^\s*rollback/i.test(text)) this.#inTransaction = false
    if (/^\s*commit/i.test(text)) {
      this.#inTransaction = false
      return true
    }
    return !this.#inTransaction && /\b(insert into|update|delete from)\b/i.test(text)
  }
}

/** True when the server's messages end with ReadyForQuery: all that was asked is done. */
export function answersComplete(answers: Buffer): boolean {
  let type = 0
  let at = 0
  while (at + 5 <= answers.length) {
    type = answers[at] ?? 0
    at += 1 + answers.readInt32BE(at + 1)
  }
  return at === answers.length && type === 'Z'.charCodeAt(0)
}

function textAt(body: Buffer, start: number): string {
  return body.toString('utf8', start, body.indexOf(0, start))
}
