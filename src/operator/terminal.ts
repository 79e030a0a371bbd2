import { createInterface } from 'node:readline'
import { Writable } from 'node:stream'
import { AppError } from '../errors.js'

export interface Questions {
  /** The line that is typed. */
  ask(question: string): Promise<string>
  /** The same without echo. */
  askSecret(question: string): Promise<string>
}

export interface Terminal {
  /**
   * Asks one question or several; the line is the operator's own again afterwards. Rejects with `invalid_request` when
   * the operator gives up (Ctrl-C, Ctrl-D).
   */
  converse<T>(talk: (questions: Questions) => Promise<T>): Promise<T>
}

type Stream<T> = T & { isTTY?: boolean }

/** null unless both are a terminal: questions go to `output`, which is not where answers of the command go. */
export function terminalOf(
  input: Stream<NodeJS.ReadableStream>,
  output: Stream<NodeJS.WritableStream>,
): Terminal | null {
  if (input.isTTY !== true || output.isTTY !== true) return null
  return { converse: (talk) => converse(input, output, talk) }
}

async function converse<T>(
  input: NodeJS.ReadableStream,
  output: NodeJS.WritableStream,
  talk: (questions: Questions) => Promise<T>,
): Promise<T> {
  // From line to question nothing is echoed either: what is pasted ahead may be the password.
  let muted = true
  const echo = new Writable({
    write(chunk, _, done) {
      if (!muted) output.write(chunk)
      done()
    },
  })
  const lines: string[] = []
  let waiting: { resolve: (line: string) => void; reject: (error: Error) => void } | undefined
  let hasGivenUp = false
  // As a terminal, it takes the keys one by one and the terminal itself echoes none of them.
  const reading = createInterface({ input, output: echo, terminal: true, historySize: 0 })
  reading.on('line', (line) => {
    muted = true
    if (waiting === undefined) lines.push(line)
    else waiting.resolve(line)
    waiting = undefined
  })
  // Ctrl-C and Ctrl-D close it.
  const giveUp = (): void => {
    hasGivenUp = true
    if (waiting === undefined) return
    output.write('\n')
    waiting.reject(givenUp())
    waiting = undefined
  }
  reading.on('close', giveUp)

  const next = async (): Promise<string> => {
    const early = lines.shift()
    if (early !== undefined) {
      output.write('\n')
      return early
    }
    if (hasGivenUp) throw givenUp()
    return await new Promise((resolve, reject) => (waiting = { resolve, reject }))
  }
  try {
    return await talk({
      async ask(question) {
        muted = lines.length > 0
        reading.setPrompt(question)
        if (muted) output.write(question)
        else reading.prompt()
        return await next()
      },
      async askSecret(question) {
        const isEarly = lines.length > 0
        output.write(question)
        const line = await next()
        if (!isEarly) output.write('\n')
        return line
      },
    })
  } finally {
    reading.off('close', giveUp)
    reading.close()
  }
}

function givenUp(): AppError {
  return new AppError('invalid_request', 'Given up; nothing was changed.')
}
