import { PassThrough, Readable, Writable } from 'node:stream'
import { readEnv } from '../src/env.js'
import { type Process, runOperator } from '../src/operator/run.js'

export interface Ran {
  code: number
  stdout: string
  stderr: string
  /** Of --json: the one line of standard output. */
  // Tests read answers of many shapes; a wrong one fails the assertion on it.
  json: any
}

/** An operator's command without a terminal; `env` as the service's. */
export async function operate(
  args: readonly string[],
  env: Record<string, string>,
  stdin: string | Buffer | Readable = '',
): Promise<Ran> {
  const given = stdin instanceof Readable ? stdin : new PassThrough().end(stdin)
  const [stdout, stderr] = [capture(), capture()]
  const code = await runOperator(args, { stdin: given, stdout, stderr }, () => environment(env))
  return ran(code, stdout.text(), stderr.text())
}

/** The same on a terminal: whenever the screen shows the first of `dialogue`, the second is typed. */
export async function operateOnTerminal(
  args: readonly string[],
  env: Record<string, string>,
  dialogue: [shown: string, typed: string][],
): Promise<Ran & { screen: string }> {
  const steps = [...dialogue]
  const screen = Object.assign(capture(), { isTTY: true })
  let isRaw = false
  let read = 0
  const stdin = Object.assign(new PassThrough(), {
    isTTY: true,
    setRawMode: (raw: boolean) => void (isRaw = raw),
  })
  // A terminal shows what is typed unless it was told not to.
  const type = (text: string): void => {
    if (!isRaw) screen.write(text)
    stdin.write(text)
  }
  const look = setInterval(() => {
    const [step] = steps
    if (step === undefined || !screen.text().slice(read).includes(step[0])) return
    read = screen.text().length
    steps.shift()
    type(step[1])
  }, 5)
  const stdout = capture()
  const process: Process = { stdin, stdout, stderr: screen }
  try {
    const code = await runOperator(args, process, () => environment(env))
    if (isRaw) throw new Error('the terminal was left without echo')
    return { ...ran(code, stdout.text(), screen.text()), screen: screen.text() + stdout.text() }
  } finally {
    clearInterval(look)
  }
}

function environment(env: Record<string, string>) {
  return readEnv({ BCRYPT_COST: '4', DATABASE_TIMEOUT: '12', ...env })
}

function ran(code: number, stdout: string, stderr: string): Ran {
  const isJson = /^[[{].*\n$/.test(stdout)
  return { code, stdout, stderr, json: isJson ? JSON.parse(stdout) : undefined }
}

function capture(): Writable & { text(): string } {
  let text = ''
  const stream = new Writable({
    write(chunk, _, done) {
      text += String(chunk)
      done()
    },
  })
  return Object.assign(stream, { text: () => text })
}
