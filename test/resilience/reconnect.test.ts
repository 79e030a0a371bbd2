import { getEventListeners } from 'node:events'
import fc from 'fast-check'
import { describe, expect, test, vi } from 'vitest'
import { createReconnect, type ReconnectOptions } from '../../src/resilience/reconnect.js'
import { createFakeClock } from './fake-clock.js'
import { RUNS, same } from './runs.js'

interface Attempt {
  signal: AbortSignal
  succeed: () => void
  fail: (error: unknown) => void
}

/** A loop on a fake clock whose attempts the test ends. They ignore their signal. */
function createTestReconnect(options: Partial<ReconnectOptions> = {}) {
  const clock = createFakeClock(5_000)
  const attempts: Attempt[] = []
  const waits: number[] = []
  const signals = new Set<AbortSignal>()
  const failures: [error: unknown, attempt: number][] = []
  const reconnect = createReconnect({
    attempt: (signal) =>
      new Promise((resolve, reject) => {
        attempts.push({ signal, succeed: resolve, fail: reject })
      }),
    capMsOf: () => 30_000,
    firstWithinMs: 250,
    baseMs: 1_000,
    sleep: (ms, signal) => {
      waits.push(ms)
      signals.add(signal)
      return clock.sleep(ms, signal)
    },
    random: () => 0.5,
    now: clock.now,
    onAttemptFailed: (error, attempt) => failures.push([error, attempt]),
    ...options,
  })
  return { reconnect, clock, attempts, waits, signals, failures }
}

async function ticks(): Promise<void> {
  for (let i = 0; i < 8; i += 1) await Promise.resolve()
}

/** Lets the loop's wait pass, so that an attempt is in flight. */
async function nextAttempt({ reconnect, clock, attempts }: ReturnType<typeof createTestReconnect>) {
  await ticks()
  clock.advance(reconnect.nextAttemptInMs ?? NaN)
  await ticks()
  return attempts.at(-1)
}

describe('the reconnect loop, whatever happens to it', () => {
  test('one run at a time, every promise settles with the truth, every wait is in bounds, no listener stays', async () => {
    const step = fc.tuple(
      fc.constantFrom(
        'start',
        'start',
        'stop',
        'pass',
        'due',
        'due',
        'due',
        'succeed',
        'fail',
        'fail',
        'late',
      ),
      fc.nat(3_000),
    )
    await fc.assert(
      fc.asyncProperty(
        fc.array(step, { maxLength: 25, size: 'max' }),
        fc.array(
          fc.nat(7).map((n) => n / 8),
          { minLength: 1, maxLength: 4 },
        ),
        async (steps, randoms) => {
          let [draws, failedInARow, wantedWaits] = [0, 0, 0]
          const capMsOf = (error: unknown) => (error === 'slow' ? 60_000 : 3_000)
          const loop = createTestReconnect({ capMsOf, random: () => randoms[draws++ % randoms.length] ?? 0 })
          const { reconnect, clock, attempts, waits, signals } = loop
          const runs: { promise: Promise<boolean>; wanted: boolean | undefined; got: boolean | undefined }[] =
            []
          let capMs = 250

          for (const [name, size] of steps) {
            const current = runs.at(-1)?.wanted === undefined ? runs.at(-1) : undefined
            const inFlight = attempts.findLast(({ signal }) => !signal.aborted)
            const isInFlight = current !== undefined && reconnect.nextAttemptInMs === null
            if (name === 'start') {
              const promise = reconnect.start()
              if (current === undefined) {
                const run = { promise, wanted: undefined, got: undefined as boolean | undefined }
                runs.push(run)
                void promise.then((connected) => (run.got = connected))
                ;[failedInARow, capMs] = [0, 250]
                wantedWaits += 1
              } else same(promise === current.promise, true)
            } else if (name === 'stop') {
              reconnect.stop()
              if (current !== undefined) current.wanted = false
            } else if (name === 'pass') clock.advance(size)
            else if (name === 'due') clock.advance(reconnect.nextAttemptInMs ?? 0)
            else if (name === 'succeed' && isInFlight && current !== undefined) {
              inFlight?.succeed()
              current.wanted = true
            } else if (name === 'fail' && isInFlight) {
              const error = size % 2 === 0 ? 'slow' : 'quick'
              inFlight?.fail(error)
              capMs = Math.min(capMsOf(error), 1_000 * 2 ** failedInARow)
              failedInARow += 1
              wantedWaits += 1
            } else if (name === 'late') {
              // Attempts of runs that were stopped end when they like.
              const old = attempts.filter(({ signal }) => signal.aborted)[size % 4]
              if (size % 2 === 0) old?.succeed()
              else old?.fail(new Error('late'))
            }
            await ticks()
            const wait = waits.at(-1) ?? 0
            same([waits.length, wait >= 0 && wait <= capMs], [wantedWaits, true])
            same(
              runs.map(({ got }) => got),
              runs.map(({ wanted }) => wanted),
            )
            same(reconnect.running, runs.length > 0 && runs.at(-1)?.wanted === undefined)
          }
          reconnect.stop()
          await ticks()
          same(
            await Promise.all(runs.map(({ promise }) => promise)),
            runs.map(({ wanted }) => wanted ?? false),
          )
          same(clock.timers, 0)
          for (const signal of signals) same(getEventListeners(signal, 'abort').length, 0)
        },
      ),
      RUNS,
    )
  })
})

describe('the reconnect loop', () => {
  test('tries first within firstWithinMs, then after doubling waits, and tells of each failure', async () => {
    const loop = createTestReconnect({ random: () => 1 })
    const connected = loop.reconnect.start()
    expect(loop.reconnect.nextAttemptInMs).toBe(250)
    for (let i = 0; i < 6; i += 1) (await nextAttempt(loop))?.fail(`error ${i}`)
    ;(await nextAttempt(loop))?.succeed()
    expect(await connected).toBe(true)
    expect(loop.waits).toEqual([250, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000])
    expect(loop.failures.map(([, attempt]) => attempt)).toEqual([1, 2, 3, 4, 5, 6])
    expect(loop.failures[5]?.[0]).toBe('error 5')
  })

  test('the last error says how slow to be: a wrong password waits longer than a refused connection', async () => {
    const loop = createTestReconnect({
      random: () => 1,
      capMsOf: (error) => (error === 'refused' ? 1_500 : 60_000),
    })
    void loop.reconnect.start()
    for (const error of ['refused', 'refused', 'refused', 'password', 'password', 'refused']) {
      ;(await nextAttempt(loop))?.fail(error)
    }
    await ticks()
    expect(loop.waits.slice(1)).toEqual([1_000, 1_500, 1_500, 8_000, 16_000, 1_500])
  })

  test('single flight: a second start is the same run, in its wait and in its attempt', async () => {
    const loop = createTestReconnect()
    const first = loop.reconnect.start()
    expect(loop.reconnect.start()).toBe(first)
    await nextAttempt(loop)
    expect(loop.reconnect.start()).toBe(first)
    expect([loop.attempts.length, loop.waits.length]).toEqual([1, 1])
  })

  test('stop settles at once though the attempt ignores its signal, whose late result changes nothing', async () => {
    const loop = createTestReconnect()
    const first = loop.reconnect.start()
    const ignoring = await nextAttempt(loop)
    loop.reconnect.stop()
    expect(ignoring?.signal.aborted).toBe(true)
    expect([loop.reconnect.running, loop.reconnect.nextAttemptInMs]).toEqual([false, null])
    expect(await first).toBe(false)
    const second = loop.reconnect.start()
    expect(second).not.toBe(first)
    ignoring?.succeed()
    await ticks()
    expect(loop.reconnect.running).toBe(true)
    ;(await nextAttempt(loop))?.succeed()
    expect(await second).toBe(true)
  })

  test('what fails after stop is told to nobody: most often it is the abort itself', async () => {
    const loop = createTestReconnect()
    void loop.reconnect.start()
    const attempt = await nextAttempt(loop)
    loop.reconnect.stop()
    attempt?.fail(new Error('aborted'))
    await ticks()
    expect([loop.failures, loop.waits.length]).toEqual([[], 1])
  })

  test('stop ends the wait and leaves no timer, whether sleep rejects, resolves or does nothing', async () => {
    const never = () => new Promise<void>(() => {})
    const resolves = (_ms: number, signal: AbortSignal) =>
      new Promise<void>((resolve) => signal.addEventListener('abort', () => resolve(), { once: true }))
    for (const sleep of [undefined, never, resolves]) {
      const loop = createTestReconnect(sleep === undefined ? {} : { sleep })
      const connected = loop.reconnect.start()
      loop.reconnect.stop()
      expect(await connected).toBe(false)
      await ticks()
      expect([loop.clock.timers, loop.attempts.length, loop.failures.length]).toEqual([0, 0, 0])
    }
  })

  test('says what is left of the wait, never less than nothing, and null during an attempt', async () => {
    const loop = createTestReconnect()
    void loop.reconnect.start()
    loop.clock.advance(100)
    expect(loop.reconnect.nextAttemptInMs).toBe(25)
    loop.clock.advance(1_000)
    expect(loop.reconnect.nextAttemptInMs).toBe(0)
    await ticks()
    expect([loop.attempts.length, loop.reconnect.nextAttemptInMs]).toEqual([1, null])
  })

  test('stop when nothing runs does nothing, and may be called by who is told of a failure', async () => {
    const loop = createTestReconnect({ onAttemptFailed: () => loop.reconnect.stop() })
    loop.reconnect.stop()
    const connected = loop.reconnect.start()
    ;(await nextAttempt(loop))?.fail('error')
    expect(await connected).toBe(false)
    expect(loop.clock.timers).toBe(0)
  })

  test('whoever hears of the success finds the loop ended, and can start it again', async () => {
    const loop = createTestReconnect()
    const first = loop.reconnect.start()
    ;(await nextAttempt(loop))?.succeed()
    await first
    expect(loop.reconnect.running).toBe(false)
    expect(loop.reconnect.start()).not.toBe(first)
  })

  test('a throwing onAttemptFailed does not end the loop', async () => {
    const onAttemptFailed = vi.fn(() => {
      throw new Error('log is full')
    })
    const loop = createTestReconnect({ onAttemptFailed })
    const connected = loop.reconnect.start()
    ;(await nextAttempt(loop))?.fail('error')
    ;(await nextAttempt(loop))?.succeed()
    expect(await connected).toBe(true)
    expect(onAttemptFailed).toHaveBeenCalledTimes(1)
  })

  test('a capMsOf that throws, or gives no time, is told of, and the pace is the slow one', async () => {
    for (const capMsOf of [
      () => Number.NaN,
      () => Infinity,
      () => -1,
      vi.fn().mockRejectedValue(0),
      thrower,
    ]) {
      const loop = createTestReconnect({ capMsOf: capMsOf as () => number, random: () => 1 })
      const connected = loop.reconnect.start()
      for (let i = 0; i < 6; i += 1) (await nextAttempt(loop))?.fail('error')
      ;(await nextAttempt(loop))?.succeed()
      expect(await connected).toBe(true)
      expect(loop.waits.at(-1)).toBe(30_000)
      expect(loop.failures.slice(0, 2)).toEqual([
        ['error', 1],
        [expect.any(Error), 1],
      ])
    }

    function thrower(): number {
      throw new Error('broken')
    }
  })

  test('an attempt that throws before it returns a promise is a failed one', async () => {
    const attempt = vi.fn<ReconnectOptions['attempt']>().mockImplementationOnce(() => {
      throw new Error('synchronous')
    })
    const loop = createTestReconnect({ attempt })
    const connected = loop.reconnect.start()
    await nextAttempt(loop)
    await nextAttempt(loop)
    expect(await connected).toBe(true)
    expect(loop.failures).toHaveLength(1)
  })

  test('a sleep that fails unasked ends the loop, told of, rather than let it spin', async () => {
    const loop = createTestReconnect({ sleep: () => Promise.reject(new Error('no timers here')) })
    expect(await loop.reconnect.start()).toBe(false)
    expect(loop.failures).toEqual([[new Error('no timers here'), 1]])
    expect([loop.attempts.length, loop.reconnect.running]).toEqual([0, false])
  })

  test('waits that are no finite times are refused', () => {
    for (const firstWithinMs of [-1, Number.NaN, Infinity]) {
      expect(() => createTestReconnect({ firstWithinMs })).toThrow(RangeError)
    }
    for (const baseMs of [0, -1, Number.NaN, Infinity]) {
      expect(() => createTestReconnect({ baseMs })).toThrow(RangeError)
    }
  })
})
