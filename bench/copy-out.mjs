// COPY ... TO STDOUT into a response, as fast as it goes: pg makes an event of each row, so its parser is put aside
// while the rows come. Protocol: PostgreSQL manual, 55.7 Message Formats.
const COPY_DATA = 'd'.charCodeAt(0)
const COPY_DONE = 'c'.charCodeAt(0)
const ERROR = 'E'.charCodeAt(0)
const HEAD = 5

/** @param {import('pg').Pool} pool @param {string} text @param {import('node:http').ServerResponse} response */
export async function copyTo(pool, text, response) {
  const client = await pool.connect()
  const failed = await new Promise((resolve) => {
    const copy = new CopyOut(text, response, resolve)
    client.query(/** @type {any} */ (copy))
  })
  client.release(failed !== undefined)
  if (failed === undefined) response.end()
  else response.destroy(failed)
}

/** What pg takes for a query of its own. */
class CopyOut {
  /** @param {string} text @param {import('node:http').ServerResponse} response @param {(failed?: Error) => void} done */
  constructor(text, response, done) {
    this.text = text
    this.response = response
    this.done = done
  }

  /** @param {any} connection */
  submit(connection) {
    const { stream } = connection
    const parsers = stream.listeners('data')
    stream.removeAllListeners('data')
    connection.query(this.text)
    let held = Buffer.alloc(0)
    const onData = (/** @type {Buffer} */ data) => {
      held = held.length === 0 ? data : Buffer.concat([held, data])
      /** @type {Buffer[]} */
      const rows = []
      let at = 0
      let isOver = false
      while (!isOver && held.length >= at + HEAD) {
        const end = at + 1 + held.readUInt32BE(at + 1)
        const type = held[at]
        isOver = type === COPY_DONE || type === ERROR
        if (isOver || held.length < end) break
        if (type === COPY_DATA) rows.push(held.subarray(at + HEAD, end))
        at = end
      }
      held = held.subarray(at)
      if (rows.length > 0 && !this.response.write(Buffer.concat(rows))) {
        stream.pause()
        this.response.once('drain', () => stream.resume())
      }
      if (!isOver) return
      stream.off('data', onData)
      for (const parser of parsers) {
        stream.on('data', parser)
        parser(held)
      }
    }
    stream.on('data', onData)
  }

  handleCommandComplete() {}

  handleReadyForQuery() {
    this.done()
  }

  /** @param {Error} error */
  handleError(error) {
    this.done(error)
  }
}
