import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { openSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createLogin } from '../../src/db/create-login.js'
import { type Cluster, asServer, freePort, ownedFolder } from './cluster.js'
import { eventually } from './eventually.js'

/** Fewer than the service's pool has, so that its connections share the server's. */
export const SERVER_CONNECTIONS = 4
/** Debian's folder of it is in no PATH but root's. */
const PATH = `${process.env['PATH'] ?? ''}:/usr/sbin`

/** PgBouncer in transaction mode in front of a cluster, for a login that `create-login` made. */
export class PgBouncer {
  readonly #folder: string
  readonly #port: number
  readonly #login: { name: string; password: string }
  #process: ChildProcess | undefined

  private constructor(folder: string, port: number, login: { name: string; password: string }) {
    this.#folder = folder
    this.#port = port
    this.#login = login
  }

  /** `timeoutMs`: of the limits that the login carries, as create-login takes it. */
  static async start(cluster: Cluster, timeoutMs: number): Promise<PgBouncer> {
    assertInstalled()
    const name = `pooled_${randomBytes(4).toString('hex')}`
    const { password } = await createLogin({ connectionString: cluster.url() }, name, timeoutMs)
    const folder = ownedFolder(tmpdir())
    const port = await freePort()
    const config = [
      '[databases]',
      `* = host=127.0.0.1 port=${cluster.port}`,
      '[pgbouncer]',
      'listen_addr = 127.0.0.1',
      `listen_port = ${port}`,
      'unix_socket_dir =',
      'auth_type = scram-sha-256',
      `auth_file = ${folder}/users`,
      'pool_mode = transaction',
      `default_pool_size = ${SERVER_CONNECTIONS}`,
      // Else a database that was away is tried again only after 15 s.
      'server_login_retry = 1',
    ]
    writeFileSync(join(folder, 'pgbouncer.ini'), config.join('\n'))
    writeFileSync(join(folder, 'users'), `"${name}" "${password}"\n`)
    const pooler = new PgBouncer(folder, port, { name, password })
    await pooler.start()
    return pooler
  }

  /** Of a database behind it. */
  url(database: string): string {
    const { name, password } = this.#login
    return `postgres://${name}:${password}@127.0.0.1:${this.#port}/${database}`
  }

  /** Resolves when it accepts: at that moment, by performance.now(). */
  async start(): Promise<number> {
    const log = openSync(join(this.#folder, 'log'), 'a')
    const started = spawn('pgbouncer', [join(this.#folder, 'pgbouncer.ini')], {
      stdio: ['ignore', log, log],
      env: { PATH },
      ...asServer(),
    })
    this.#process = started
    return await eventually('PgBouncer accepts', async () => {
      if (started.exitCode !== null)
        throw new Error(`PgBouncer ended:\n${readFileSync(join(this.#folder, 'log'), 'utf8').slice(-2000)}`)
      return (await accepts(this.#port)) ? performance.now() : undefined
    })
  }

  /** At once, with every connection on both of its sides; the meaning of its other signals changes with its version. */
  async stop(): Promise<void> {
    const running = this.#process
    if (running === undefined || running.exitCode !== null || running.signalCode !== null) return
    running.kill('SIGKILL')
    await once(running, 'exit')
  }

  async destroy(): Promise<void> {
    await this.stop()
    rmSync(this.#folder, { recursive: true, force: true })
  }
}

function assertInstalled(): void {
  try {
    execFileSync('pgbouncer', ['--version'], { env: { PATH }, stdio: 'pipe' })
  } catch (error) {
    throw new Error("the fault lane needs pgbouncer of Debian's package pgbouncer", { cause: error })
  }
}

async function accepts(port: number): Promise<boolean> {
  const socket = connect(port, '127.0.0.1')
  try {
    await once(socket, 'connect')
    return true
  } catch {
    return false
  } finally {
    socket.destroy()
  }
}
