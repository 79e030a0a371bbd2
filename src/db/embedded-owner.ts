import { execFileSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { existsSync, readdirSync, readFileSync, readlinkSync } from 'node:fs'
import * as fs from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { type Account, type Log, writeOwned } from './embedded-place.js'

const hasProc = existsSync('/proc/self/stat')

/**
 * One process per folder: ours until the returned function is called or we die, by pid and start time.
 * Fails when a live process has it, naming folder and pid; a dead owner's lock is no obstacle.
 */
export async function lock(home: string, account: Account): Promise<() => Promise<void>> {
  const path = join(home, 'lock')
  const claim = `${path}-${process.pid}-${randomBytes(4).toString('hex')}`
  const mine = `${process.pid} ${startedAt(process.pid)}`
  await writeOwned(claim, mine, account)
  try {
    for (;;) {
      const taken = await fs.link(claim, path).then(() => true, unless('EEXIST'))
      if (taken) {
        // A slower one may be putting a lock aside that it took for stale, and another take its place: whoever
        // has it when all who compete have made up their minds, has it.
        await until(() => !othersCompete(home, claim), 2000)
        if ((await fs.readFile(path, 'utf8').catch(unless('ENOENT'))) === mine)
          return () => fs.rm(path, { force: true })
        continue
      }
      const held = await fs.readFile(path, 'utf8').catch(unless('ENOENT'))
      const [pid, started] = held?.split(' ') ?? []
      if (started !== undefined && startedAt(Number(pid)) === started)
        throw new Error(
          `The PostgreSQL data folder ${home} is in use by process ${pid}: stop that one first.`,
        )
      // Two may find the same lock stale; the slower must not remove what the faster put in its place.
      await fs.rename(path, `${claim}-stale`).catch(unless('ENOENT'))
      const moved = await fs.readFile(`${claim}-stale`, 'utf8').catch(unless('ENOENT'))
      if (moved !== undefined && moved !== held) await fs.link(`${claim}-stale`, path).catch(unless('EEXIST'))
    }
  } finally {
    await fs.rm(claim)
    await fs.rm(`${claim}-stale`, { force: true })
  }
}

/** Whoever wants the lock has a claim beside it until it has decided. */
function othersCompete(home: string, claim: string): boolean {
  return readdirSync(home).some((name) => {
    const pid = /^lock-(\d+)-[0-9a-f]{8}$/.exec(name)?.[1]
    return pid !== undefined && join(home, name) !== claim && startedAt(Number(pid)) !== undefined
  })
}

function kill(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal)
  } catch (error) {
    unless('ESRCH')(error as NodeJS.ErrnoException)
  }
}

/** When a process began, in the system's own terms; undefined when it is no more. */
function startedAt(pid: number): string | undefined {
  try {
    if (!hasProc) return process.kill(pid, 0) ? 'unknown' : undefined
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
    const [state, ...fields] = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
    return state === 'Z' ? undefined : fields[18]
  } catch {
    return undefined
  }
}

/** The processes of a PostgreSQL in this data folder: where /proc is, also those whose postmaster died. */
function serversIn(cluster: string): number[] {
  if (!hasProc)
    return execFileSync('ps', ['-axww', '-o', 'pid=,command='], { encoding: 'utf8' })
      .split('\n')
      .filter((line) => line.includes(`/postgres -D ${cluster} -p`))
      .map((line) => Number.parseInt(line, 10))
  const ours = (pid: string) => {
    try {
      const command = readFileSync(`/proc/${pid}/comm`, 'utf8')
      return command === 'postgres\n' && readlinkSync(`/proc/${pid}/cwd`) === cluster
    } catch {
      return false
    }
  }
  return readdirSync('/proc').filter(ours).map(Number)
}

/** Nobody lives in this data folder afterwards. Only for who holds its lock: whoever runs there is an orphan. */
export async function endOrphans(cluster: string, log: Log): Promise<void> {
  const pidFile = join(cluster, 'postmaster.pid')
  const orphans = serversIn(cluster)
  if (orphans.length > 0) {
    const postmaster = Number.parseInt(await fs.readFile(pidFile, 'utf8').catch(() => ''), 10)
    log(`ending an orphaned PostgreSQL in ${cluster} (${orphans.join(', ')})`)
    await end(
      (signal) => {
        for (const pid of serversIn(cluster))
          if (signal !== 'SIGINT' || pid === postmaster) kill(pid, signal)
          // A busy backend does not notice that its postmaster is dead, and nothing it does will commit.
          else if (!orphans.includes(postmaster)) kill(pid, 'SIGQUIT')
      },
      () => serversIn(cluster).length === 0,
    )
  }
  // Its pid may by now be another program's, and then PostgreSQL would refuse to start. Safe, because
  // just now nobody lived here, backends included; without /proc that is not known.
  if (hasProc) await fs.rm(pidFile, { force: true })
}

/** Fast shutdown, after 10 s an immediate one, after 5 s more by force. Fails when even that does not help. */
export async function end(send: (signal: NodeJS.Signals) => void, gone: () => boolean): Promise<void> {
  const steps = { SIGINT: 10_000, SIGQUIT: 5_000, SIGKILL: 5_000 }
  for (const [signal, patienceMs] of Object.entries(steps)) {
    if (gone()) return
    send(signal as NodeJS.Signals)
    if (await until(gone, patienceMs)) return
  }
  throw new Error('A PostgreSQL process does not end, not even by SIGKILL.')
}

/** Whether the condition came true in time; asked every 20 ms. */
export async function until(condition: () => boolean, timeoutMs: number): Promise<boolean> {
  const deadline = performance.now() + timeoutMs
  while (!condition()) {
    if (performance.now() > deadline) return false
    await delay(20)
  }
  return true
}

/** A handler for one expected error code, which becomes undefined; every other error is thrown on. */
export function unless(code: string): (error: NodeJS.ErrnoException) => undefined {
  return (error) => {
    if (error.code !== code) throw error
  }
}
