import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('../..', import.meta.url))

export interface Outcome {
  code: number | null
  stdout: string
  stderr: string
}

export interface Service {
  base: string
  /** SIGTERM; resolves to the exit code. */
  stop(): Promise<number | null>
}

type Variables = Record<string, string>

/** Runs a program of the repository to its end; only PATH and what is given are in its environment. */
export async function run(
  command: string,
  args: string[],
  env: Variables = {},
  input: string | null = null,
): Promise<Outcome> {
  const child = start(command, args, env, input)
  const output = { stdout: '', stderr: '' }
  child.stdout?.on('data', (chunk: string) => (output.stdout += chunk))
  child.stderr?.on('data', (chunk: string) => (output.stderr += chunk))
  const [code] = (await once(child, 'close')) as [number | null]
  return { code, ...output }
}

/** `node dist/main.js`, once it says that it is ready. */
export async function startService(args: string[], env: Variables): Promise<Service> {
  const child = start(process.execPath, ['dist/main.js', ...args], {
    HOST: '127.0.0.1',
    PORT: '0',
    BCRYPT_COST: '4',
    LOG_LEVEL: 'info',
    ...env,
  })
  const exited = once(child, 'exit').then(([code]) => code as number | null)
  const port = await readyPort(child)
  return {
    base: `http://127.0.0.1:${port}`,
    async stop() {
      child.kill('SIGTERM')
      const timer = setTimeout(() => child.kill('SIGKILL'), 20_000)
      const code = await exited
      clearTimeout(timer)
      return code
    },
  }
}

/** `serve` logs its port and then "ready"; `dev` prints its address once it is ready. */
function readyPort(child: ChildProcess): Promise<string> {
  return new Promise((resolve, reject) => {
    let output = ''
    const fail = (why: string): void => {
      child.kill('SIGKILL')
      reject(new Error(`The service ${why}:\n${output}`))
    }
    const timer = setTimeout(() => fail('was not ready in 60 s'), 60_000)
    const look = (chunk: string): void => {
      output += chunk
      const isReady = output.includes('"message":"ready"')
      const port =
        /listens on http:\/\/localhost:(\d+)/.exec(output)?.[1] ??
        (isReady ? /"port":(\d+)/.exec(output)?.[1] : undefined)
      if (port === undefined) return
      clearTimeout(timer)
      resolve(port)
    }
    child.stdout?.on('data', look)
    child.stderr?.on('data', look)
    child.once('exit', () => {
      clearTimeout(timer)
      fail('ended before it was ready')
    })
  })
}

function start(command: string, args: string[], env: Variables, input: string | null = null): ChildProcess {
  const child = spawn(command, args, {
    cwd: root,
    env: { PATH: process.env['PATH'], HOME: process.env['HOME'], ...env },
    stdio: [input === null ? 'ignore' : 'pipe', 'pipe', 'pipe'],
  })
  child.stdin?.end(input)
  child.stdout?.setEncoding('utf8')
  child.stderr?.setEncoding('utf8')
  return child
}
