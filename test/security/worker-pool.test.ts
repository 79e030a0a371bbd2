import { Worker } from 'node:worker_threads'
import { afterEach, describe, expect, test, vi } from 'vitest'
import { type WorkerPool, createWorkerPool } from '../../src/security/worker-pool.js'

const pools: WorkerPool[] = []

function create({ threads = 1, idleMs = 60_000 } = {}): WorkerPool {
  const script = new URL('crashing-worker.mjs', import.meta.url)
  const pool = createWorkerPool({ script, threads, maxQueued: 10, idleMs })
  pools.push(pool)
  return pool
}

afterEach(async () => void (await Promise.all(pools.splice(0).map((pool) => pool.close()))))

describe('threads', () => {
  test.each([
    ['throw', 'thrown in the thread'],
    ['reject', 'rejected in the thread'],
    ['exit', 'a worker thread ended with code 3'],
  ])(
    'one that ends by %s fails its own task, and those that waited get another one',
    async (how, message) => {
      const pool = create()
      const first = pool.run('who')
      const [crash, ...waited] = [how, 'who', how, 'who'].map((task) => pool.run(task))
      const failed = expect(crash).rejects.toThrow(message)
      const results = await Promise.allSettled([first, ...waited])
      await failed
      expect(results.map(({ status }) => status)).toEqual(['fulfilled', 'fulfilled', 'rejected', 'fulfilled'])
      expect(new Set(results.map((result) => result.status === 'fulfilled' && result.value)).size).toBe(4)
    },
  )

  test('one that ends while it has nothing to do is not given the next task', async () => {
    const pool = create({ idleMs: 20 })
    const first = await pool.run('who')
    expect(await pool.run('who')).toBe(first)
    await vi.waitFor(async () => expect(await pool.run('who')).not.toBe(first), { interval: 200 })
    // Nor is the one that is just being ended.
    let next: Promise<unknown> | undefined
    const { terminate } = Worker.prototype
    const ending = vi.spyOn(Worker.prototype, 'terminate').mockImplementation(function (this: Worker) {
      next ??= pool.run('who')
      return terminate.call(this)
    })
    await vi.waitFor(() => expect(ending).toHaveBeenCalled())
    ending.mockRestore()
    expect(await next).toEqual(expect.any(Number))
  })

  test('what cannot be sent fails, and costs no thread for good', async () => {
    const pool = create()
    const ended = vi.spyOn(Worker.prototype, 'terminate')
    await expect(pool.run(() => {})).rejects.toThrow('could not be cloned')
    expect(ended).toHaveBeenCalledOnce()
    ended.mockRestore()
    expect(await pool.run('who')).toEqual(expect.any(Number))
  })

  test('as many as are allowed, and the last one to become idle works first', async () => {
    const pool = create({ threads: 2 })
    const numbers = await Promise.all(Array.from({ length: 6 }, () => pool.run('who')))
    expect(new Set(numbers).size).toBe(2)
    const last = await pool.run('who')
    for (let run = 0; run < 5; run += 1) expect(await pool.run('who')).toBe(last)
  })

  test('closing fails what runs, what waits and what comes later, and leaves no thread', async () => {
    const pool = create()
    const results = Promise.allSettled([pool.run('hang'), pool.run('who')])
    await pool.close()
    for (const result of await results)
      expect(result).toMatchObject({ status: 'rejected', reason: { code: 'unavailable' } })
    await expect(pool.run('who')).rejects.toMatchObject({ code: 'unavailable', retryAfterSeconds: 1 })
  })
})
