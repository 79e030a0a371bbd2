import { spawnSync } from 'node:child_process'
import {
  copyFileSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { stat } from 'node:fs/promises'
import { getPriority, tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { afterEach, describe, expect, test } from 'vitest'
import { verificationPlan } from '../../src/security/verification-plan.js'
import { type WorkerPool, createWorkerPool } from '../../src/security/worker-pool.js'

const ROOT = join(import.meta.dirname, '../..')
const NONE = { scrypt: false, pbkdf2: false }
const HASH = { kind: 'bcrypt', password: 'x', cost: 4 }
const pools: WorkerPool[] = []

function create(options: { threads: number; maxQueued: number }): WorkerPool {
  const script = new URL('../../src/security/hash-worker.mjs', import.meta.url)
  const pool = createWorkerPool({ script, idleMs: 60_000, ...options })
  pools.push(pool)
  return pool
}

afterEach(async () => void (await Promise.all(pools.splice(0).map((pool) => pool.close()))))

describe('the hash worker', () => {
  test('a check that does not decide is never the answer, even when the password is right', async () => {
    const pool = create({ threads: 1, maxQueued: 0 })
    const hash = await pool.run(HASH)
    const [stored, ...others] = verificationPlan({ kind: 'bcrypt', hash: String(hash), cost: 4 }, 5, NONE)
    const verify = async (...checks: unknown[]) => await pool.run({ kind: 'verify', password: 'x', checks })
    expect(await verify(stored, ...others)).toBe(true)
    expect(await verify({ ...stored, decides: false }, ...others)).toBe(false)
    expect(await verify(...others)).toBe(false)
  })

  test.runIf(process.platform === 'linux')(
    'its threads start with the first hash, at the lowest priority; the event loop keeps its own',
    async () => {
      const [priority, before] = [getPriority(), niceOfThreads()]
      const pool = create({ threads: 2, maxQueued: 0 })
      expect(niceOfThreads()).toHaveLength(before.length)
      await pool.run(HASH)
      const lowest = (nices: number[]) => nices.filter((nice) => nice === 19).length
      expect(lowest(niceOfThreads())).toBeGreaterThan(lowest(before))
      expect(getPriority()).toBe(priority)
    },
  )

  test("files do not wait behind hashes: none is in libuv's pool", async () => {
    const threads = 12
    const pool = create({ threads, maxQueued: 64 })
    const hash = (cost: number) => pool.run({ ...HASH, cost })
    await Promise.all(Array.from({ length: threads }, () => hash(4)))
    const order: string[] = []
    // Most are refused when the pool is closed after the test.
    void Promise.allSettled(Array.from({ length: 64 }, () => hash(12).then(() => order.push('hash'))))
    // Until they are at work: of libuv's 4 threads none would be free before 8 of the 12 are done.
    await sleep(100)
    await stat(ROOT).then(() => order.push('file'))
    expect(order).toEqual(['file'])
  })

  test('a process waits for the hash it asked for, and not for idle threads', () => {
    const folder = mkdtempSync(join(tmpdir(), 'threads-'))
    try {
      symlinkSync(join(ROOT, 'node_modules'), join(folder, 'node_modules'))
      writeFileSync(join(folder, 'package.json'), '{"type":"module"}')
      writeFileSync(
        join(folder, 'tsconfig.json'),
        JSON.stringify({
          extends: join(ROOT, 'tsconfig.build.json'),
          compilerOptions: {
            rootDir: join(ROOT, 'src'),
            outDir: folder,
            incremental: false,
            declaration: false,
          },
          include: [join(ROOT, 'src/security/passwords.ts')],
        }),
      )
      const built = spawnSync(join(ROOT, 'node_modules/.bin/tsc'), ['-p', folder], { encoding: 'utf8' })
      expect(built.stdout + built.stderr).toBe('')
      copyFileSync(join(ROOT, 'src/security/hash-worker.mjs'), join(folder, 'security/hash-worker.mjs'))
      const script = `
        import { createPasswords } from './security/passwords.js'
        const passwords = createPasswords({ cost: 10, threads: 2 })
        await passwords.assertAcceptable('correct horse battery')
        console.log(await passwords.verify('x', await passwords.hash('x')))`
      writeFileSync(join(folder, 'script.mjs'), script)
      const { status, signal, stdout } = spawnSync(process.execPath, [join(folder, 'script.mjs')], {
        encoding: 'utf8',
        timeout: 20_000,
      })
      expect({ status, signal, stdout }).toEqual({ status: 0, signal: null, stdout: 'true\n' })
    } finally {
      rmSync(folder, { recursive: true, force: true })
    }
  })
})

/** Field 19 of proc_pid_stat(5), a thread each. */
function niceOfThreads(): number[] {
  return readdirSync('/proc/self/task').map((id) => {
    const fields = readFileSync(`/proc/self/task/${id}/stat`, 'utf8').split(') ').at(-1)?.split(' ')
    return Number(fields?.[16])
  })
}
