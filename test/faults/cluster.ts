import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import {
  appendFileSync,
  chownSync,
  existsSync,
  mkdtempSync,
  openSync,
  readFileSync,
  readdirSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { type AddressInfo, createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import pg from 'pg'
import { migrate } from '../../src/db/migrate.js'

const MIGRATIONS = fileURLToPath(new URL('../../prisma/migrations', import.meta.url))
const PASSWORD = 'superuser-canary'
const SETTINGS = [
  'listen_addresses=127.0.0.1',
  'shared_buffers=32MB',
  'max_connections=60',
  'wal_level=replica',
  'max_wal_senders=4',
]

export interface Options {
  /** Where the cluster's folder is made; another file system for a disk that fills up. */
  parent?: string
  /** The same for the write-ahead log alone. */
  walParent?: string
  /** Slows every commit, and makes them survive a crash of the machine: off unless durability is what is shown. */
  fsync?: boolean
  settings?: string[]
}

/** A PostgreSQL server of the test's own, from Debian's packages, to be stopped and hurt at will. */
export class Cluster {
  readonly #folder: string
  readonly #settings: string[]
  #walFolder: string | undefined
  #server: ChildProcess | undefined
  readonly port: number

  private constructor(folder: string, port: number, settings: string[]) {
    this.#folder = folder
    this.port = port
    this.#settings = settings
  }

  /** Made, started, and with a migrated template. */
  static async create({
    parent = tmpdir(),
    walParent,
    fsync = false,
    settings = [],
  }: Options = {}): Promise<Cluster> {
    const folder = ownedFolder(parent)
    const walFolder = walParent === undefined ? undefined : ownedFolder(walParent)
    const passwordFile = join(folder, 'password')
    writeFileSync(passwordFile, PASSWORD)
    run('initdb', [
      '-D',
      join(folder, 'data'),
      '-U',
      'postgres',
      '-A',
      'scram-sha-256',
      `--pwfile=${passwordFile}`,
      '--locale=C.UTF-8',
      ...(walFolder === undefined ? [] : [`--waldir=${walFolder}`]),
    ])
    appendFileSync(join(folder, 'data', 'pg_hba.conf'), 'host replication all 127.0.0.1/32 scram-sha-256\n')
    const cluster = new Cluster(folder, await freePort(), [
      ...SETTINGS,
      `fsync=${fsync ? 'on' : 'off'}`,
      ...settings,
    ])
    cluster.#walFolder = walFolder
    await cluster.start()
    await cluster.query('create database template_gary')
    await migrate({
      pgConfig: { connectionString: cluster.url('template_gary') },
      folder: MIGRATIONS,
      log: () => {},
      waitMs: 10_000,
    })
    return cluster
  }

  /** A superuser's URL. */
  url(database = 'postgres'): string {
    return `postgres://postgres:${PASSWORD}@127.0.0.1:${this.port}/${database}`
  }

  /** A migrated database of one's own; its name. */
  async database(): Promise<string> {
    const name = `gary_${randomBytes(4).toString('hex')}`
    await this.query(`create database ${name} template template_gary`)
    return name
  }

  /** As the superuser, past every proxy. */
  async query<R extends object>(text: string, database?: string): Promise<R[]> {
    const client = new pg.Client({ connectionString: this.url(database), connectionTimeoutMillis: 3000 })
    client.on('error', () => {})
    await client.connect()
    try {
      return (await client.query<R>(text)).rows
    } finally {
      await client.end()
    }
  }

  /** Resolves when it accepts: at that moment, by performance.now(). */
  async start(): Promise<number> {
    const log = openSync(join(this.#folder, 'log'), 'a')
    for (const giveUpAt = performance.now() + 30_000; performance.now() < giveUpAt; await sleep(50)) {
      if (this.#server === undefined || this.#server.exitCode !== null || this.#server.signalCode !== null) {
        const args = ['-D', join(this.#folder, 'data'), '-p', String(this.port), '-k', this.#folder]
        for (const setting of this.#settings) args.push('-c', setting)
        this.#server = spawn(binary('postgres'), args, { stdio: ['ignore', log, log], ...asServer() })
      }
      const accepts = await this.query('select 1').then(
        () => true,
        () => false,
      )
      if (accepts) return performance.now()
    }
    throw new Error(
      `the server did not start:\n${readFileSync(join(this.#folder, 'log'), 'utf8').slice(-2000)}`,
    )
  }

  /** By the signals of the manual, 19.5; kill leaves its backends to find out by themselves. */
  async stop(how: 'smart' | 'fast' | 'immediate' | 'kill'): Promise<void> {
    const server = this.#server
    if (server === undefined || server.exitCode !== null || server.signalCode !== null) return
    const signals = { smart: 'SIGTERM', fast: 'SIGINT', immediate: 'SIGQUIT', kill: 'SIGKILL' } as const
    server.kill(signals[how])
    await once(server, 'exit')
  }

  signalPostmaster(signal: 'SIGSTOP' | 'SIGCONT'): void {
    this.#server?.kill(signal)
  }

  /** Of the service's pools. */
  async backends(): Promise<number[]> {
    const rows = await this.query<{ pid: number }>(
      "select pid from pg_stat_activity where application_name = 'gary-zero-service'",
    )
    return rows.map(({ pid }) => pid)
  }

  /** A streaming standby of this cluster, caught up. */
  async standby(): Promise<Cluster> {
    const folder = ownedFolder(tmpdir())
    const port = await freePort()
    run('pg_basebackup', ['-d', this.url(), '-D', join(folder, 'data'), '-R', '-X', 'stream', '-c', 'fast'])
    const standby = new Cluster(folder, port, this.#settings)
    await standby.start()
    return standby
  }

  async promote(): Promise<void> {
    await this.query('select pg_promote(true, 30)')
  }

  async destroy(): Promise<void> {
    this.signalPostmaster('SIGCONT')
    await this.stop('immediate')
    for (const folder of [this.#folder, this.#walFolder])
      if (folder !== undefined) rmSync(folder, { recursive: true, force: true })
  }
}

export async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  server.close()
  return port
}

/** PostgreSQL refuses to run as root. */
export function asServer(): { uid?: number; gid?: number } {
  if (process.getuid?.() !== 0) return {}
  const id = (flag: string): number => Number(execFileSync('id', [flag, 'postgres'], { encoding: 'utf8' }))
  return { uid: id('-u'), gid: id('-g') }
}

/** Empty, and the server's own. */
export function ownedFolder(parent: string): string {
  const folder = mkdtempSync(join(parent, 'gary-faults-'))
  const { uid, gid } = asServer()
  if (uid !== undefined && gid !== undefined) chownSync(folder, uid, gid)
  return folder
}

function run(name: string, args: string[]): void {
  execFileSync(binary(name), args, { stdio: 'pipe', ...asServer() })
}

function binary(name: string): string {
  const root = '/usr/lib/postgresql'
  const versions = existsSync(root) ? readdirSync(root).sort((a, b) => Number(b) - Number(a)) : []
  const found = versions.map((version) => join(root, version, 'bin', name)).find((path) => existsSync(path))
  if (found === undefined) throw new Error(`the fault lane needs ${name} of Debian's package postgresql`)
  return found
}
