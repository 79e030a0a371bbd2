import fc from 'fast-check'
import { describe, expect, test, vi } from 'vitest'
import { createRetry } from '../../src/resilience/retry.js'
import { RUNS, same } from './runs.js'

const always = () => true

function failing(times: number, value = 'done') {
  let calls = 0
  return vi.fn(async () => {
    calls += 1
    if (calls <= times) throw new Error(`failure ${calls}`)
    return value
  })
}

describe('the retry', () => {
  test('spends at most burst + ratio * runs, never a run more than its attempts, under any load', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.constantFrom(0, 0.05, 0.1, 0.3, 1),
        fc.nat(4),
        fc.nat(3),
        fc.array(fc.nat(4), { maxLength: 30, size: 'max' }),
        async (ratio, burst, attempts, runs) => {
          const retry = createRetry({ ratio, burst, attempts })
          let [retries, tokens] = [0, burst]
          for (const [index, failures] of runs.entries()) {
            let calls = 0
            const result = await retry
              .run(async () => {
                calls += 1
                if (calls <= failures) throw new Error(`failure ${calls}`)
                return calls
              }, always)
              .catch((error: unknown) => (error as Error).message)
            // The budget once more, in whole twentieths of a token.
            tokens = Math.min(burst, Math.round((tokens + ratio) * 20) / 20)
            const wanted = Math.min(failures, attempts, Math.floor(tokens))
            tokens -= wanted
            retries += wanted
            same([calls - 1, result], [wanted, wanted === failures ? calls : `failure ${calls}`])
            const allowed = burst + ratio * (index + 1) + 1e-9
            if (retries > allowed) expect(retries).toBeLessThanOrEqual(allowed)
          }
        },
      ),
      RUNS,
    )
  })

  test('many failures at once share the budget: 100 runs that fail together are 10 retries', async () => {
    const retry = createRetry({ ratio: 0.1, burst: 10, attempts: 1 })
    const tasks = Array.from({ length: 100 }, () => failing(9))
    await Promise.allSettled(tasks.map((task) => retry.run(task, always)))
    expect(tasks.reduce((sum, task) => sum + task.mock.calls.length, 0) - 100).toBe(10)
  })

  test('ten runs at a tenth earn exactly one retry: the sum of tenths is not a little less than one', async () => {
    const retry = createRetry({ ratio: 0.1, burst: 1, attempts: 1 })
    await retry.run(failing(1), always)
    for (let i = 0; i < 9; i += 1) await retry.run(failing(0), always)
    await expect(retry.run(failing(1), always)).resolves.toBe('done')
    await expect(retry.run(failing(1), always)).rejects.toThrow('failure 1')
  })

  test('what is not retryable is thrown at once and takes nothing from the budget', async () => {
    const retry = createRetry({ ratio: 0, burst: 1, attempts: 3 })
    const task = failing(1)
    await expect(retry.run(task, () => false)).rejects.toThrow('failure 1')
    expect(task).toHaveBeenCalledTimes(1)
    await expect(retry.run(failing(1), always)).resolves.toBe('done')
  })

  test('the error thrown is the last one, which says what is true now', async () => {
    const retry = createRetry({ ratio: 0, burst: 9, attempts: 2 })
    await expect(retry.run(failing(9), always)).rejects.toThrow('failure 3')
    const onlyFirst = (error: unknown) => (error as Error).message === 'failure 1'
    await expect(retry.run(failing(9), onlyFirst)).rejects.toThrow('failure 2')
  })

  test('a task that throws before it returns a promise is an attempt like any other', async () => {
    const retry = createRetry({ ratio: 0, burst: 1, attempts: 1 })
    const task = vi.fn((): Promise<string> => {
      if (task.mock.calls.length === 1) throw new Error('synchronous')
      return Promise.resolve('done')
    })
    await expect(retry.run(task, always)).resolves.toBe('done')
  })

  test('options out of range are refused', () => {
    const good = { ratio: 0.1, burst: 10, attempts: 1 }
    for (const ratio of [-0.1, 1.1, Number.NaN])
      expect(() => createRetry({ ...good, ratio })).toThrow(RangeError)
    for (const count of [-1, 0.5, Number.NaN, Infinity]) {
      expect(() => createRetry({ ...good, burst: count })).toThrow(RangeError)
      expect(() => createRetry({ ...good, attempts: count })).toThrow(RangeError)
    }
  })
})
