import fc from 'fast-check'
import { describe, expect, test, vi } from 'vitest'
import { AppError } from '../../src/errors.js'
import { createBulkhead } from '../../src/resilience/bulkhead.js'
import { createFakeClock } from './fake-clock.js'

const REFUSED = expect.objectContaining({ code: 'too_many_requests', retryAfterSeconds: 1 })

function deferred() {
  let settle = (_failed: boolean): void => undefined
  const promise = new Promise<string>((resolve, reject) => {
    settle = (failed) => (failed ? reject(new Error('task failed')) : resolve('done'))
  })
  return { promise, settle }
}

async function ticks(count = 10): Promise<void> {
  for (let i = 0; i < count; i += 1) await Promise.resolve()
}

describe('the bulkhead', () => {
  test('tells beforehand whether there is room, and keeps no place', async () => {
    const bulkhead = createBulkhead({ maxConcurrent: 1, maxQueued: 1 })
    const works = [deferred(), deferred()]
    const tasks = works.map(async (work) => {
      expect([bulkhead.refusal(), bulkhead.refusal()]).toEqual([undefined, undefined])
      return await bulkhead.run(() => work.promise)
    })
    expect(bulkhead.refusal()).toEqual(REFUSED)
    for (const work of works) work.settle(false)
    expect(await Promise.all(tasks)).toEqual(['done', 'done'])
    expect(bulkhead.refusal()).toBeUndefined()
  })

  test('runs at most maxConcurrent, queues at most maxQueued, settles every task: under any load', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.integer({ min: 1, max: 4 }),
        fc.integer({ min: 0, max: 4 }),
        fc.array(
          fc.record({
            action: fc.constantFrom('start', 'finish', 'finish', 'start'),
            failure: fc.constantFrom('none', 'rejects', 'throws at once'),
            pick: fc.nat(),
          }),
          { maxLength: 60, size: 'max' },
        ),
        async (maxConcurrent, maxQueued, steps) => {
          const bulkhead = createBulkhead({ maxConcurrent, maxQueued })
          const running: ReturnType<typeof deferred>[] = []
          const outcomes: Promise<string>[] = []
          let [calls, inFlight, worst] = [0, 0, 0]

          for (const { action, failure, pick } of steps) {
            if (action === 'finish') {
              running.splice(pick % Math.max(1, running.length), 1)[0]?.settle(failure === 'rejects')
            } else {
              const task = (): Promise<string> => {
                calls += 1
                if (failure === 'throws at once') throw new Error('task failed')
                inFlight += 1
                worst = Math.max(worst, inFlight)
                const work = deferred()
                running.push(work)
                return work.promise.finally(() => (inFlight -= 1))
              }
              outcomes.push(
                bulkhead.run(task).catch((error: unknown) => {
                  return error instanceof AppError ? 'refused' : 'failed'
                }),
              )
            }
            expect(bulkhead.queued).toBeLessThanOrEqual(maxQueued)
            expect(bulkhead.active).toBeLessThanOrEqual(maxConcurrent)
            if (pick % 2 === 0) await ticks()
          }
          while (bulkhead.active + bulkhead.queued > 0) {
            running.splice(0).forEach((work) => work.settle(false))
            await ticks()
          }
          const settled = await Promise.all(outcomes)
          expect(worst).toBeLessThanOrEqual(maxConcurrent)
          expect(settled.filter((outcome) => outcome !== 'refused')).toHaveLength(calls)
          expect({ active: bulkhead.active, queued: bulkhead.queued }).toEqual({ active: 0, queued: 0 })

          // Every permit came back exactly once: as many start again as at first, and no more.
          const again = Array.from({ length: maxConcurrent + maxQueued + 1 }, () => deferred())
          const results = again.map((work) => bulkhead.run(() => work.promise).catch(() => 'refused'))
          expect([bulkhead.active, bulkhead.queued]).toEqual([maxConcurrent, maxQueued])
          again.forEach((work) => work.settle(false))
          expect((await Promise.all(results)).filter((result) => result === 'refused')).toHaveLength(1)
        },
      ),
      { numRuns: 300 },
    )
  })

  test('serves in the order of arrival, and a newcomer does not overtake when a permit is passed on', async () => {
    const bulkhead = createBulkhead({ maxConcurrent: 1, maxQueued: 10 })
    const order: string[] = []
    const first = deferred()
    const task = (name: string) => () => Promise.resolve(order.push(name))
    const all = [bulkhead.run(() => first.promise), bulkhead.run(task('a')), bulkhead.run(task('b'))]
    first.settle(false)
    await all[0]
    all.push(bulkhead.run(task('newcomer')))
    await Promise.all(all)
    expect(order).toEqual(['a', 'b', 'newcomer'])
  })

  test('refuses at once when the queue is full, and never calls that task', async () => {
    const bulkhead = createBulkhead({ maxConcurrent: 1, maxQueued: 0 })
    const first = deferred()
    const running = bulkhead.run(() => first.promise)
    const task = vi.fn(() => Promise.resolve('never'))
    await expect(bulkhead.run(task)).rejects.toEqual(REFUSED)
    expect(task).not.toHaveBeenCalled()
    first.settle(false)
    await running
  })

  test('gives the permit back when a task throws before it returns a promise', async () => {
    const bulkhead = createBulkhead({ maxConcurrent: 1, maxQueued: 0 })
    const thrower = (): Promise<never> => {
      throw new Error('synchronous')
    }
    await expect(bulkhead.run(thrower)).rejects.toThrow('synchronous')
    await expect(bulkhead.run(() => Promise.resolve('next'))).resolves.toBe('next')
  })

  test('whoever waited longer than maxWaitMs is refused, leaves the queue and is never called', async () => {
    const clock = createFakeClock()
    const bulkhead = createBulkhead({
      maxConcurrent: 1,
      maxQueued: 5,
      maxWaitMs: 1_000,
      setTimer: clock.setTimer,
    })
    const first = deferred()
    const running = bulkhead.run(() => first.promise)
    const late = vi.fn(() => Promise.resolve('late'))
    const refused = expect(bulkhead.run(late)).rejects.toEqual(REFUSED)
    clock.advance(999)
    expect(bulkhead.queued).toBe(1)
    clock.advance(1)
    await refused
    expect(bulkhead.queued).toBe(0)
    first.settle(false)
    await running
    expect(late).not.toHaveBeenCalled()
    expect(bulkhead.active).toBe(0)
  })

  test('a waiter whose turn came in time is not refused later, and its timer is gone', async () => {
    const clock = createFakeClock()
    const bulkhead = createBulkhead({
      maxConcurrent: 1,
      maxQueued: 5,
      maxWaitMs: 1_000,
      setTimer: clock.setTimer,
    })
    const [first, second] = [deferred(), deferred()]
    const running = bulkhead.run(() => first.promise)
    const waiting = bulkhead.run(() => second.promise)
    first.settle(false)
    await running
    expect(clock.timers).toBe(0)
    clock.advance(5_000)
    second.settle(false)
    await expect(waiting).resolves.toBe('done')
  })

  test('bounds that would let nothing or everything through are refused', () => {
    for (const maxConcurrent of [0, -1, 1.5, Number.NaN, Number.POSITIVE_INFINITY]) {
      expect(() => createBulkhead({ maxConcurrent, maxQueued: 1 })).toThrow(RangeError)
    }
    for (const maxQueued of [-1, 0.5, Number.NaN, Number.POSITIVE_INFINITY]) {
      expect(() => createBulkhead({ maxConcurrent: 1, maxQueued })).toThrow(RangeError)
    }
  })
})
