import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { createWindow, type Outcome } from '../../src/resilience/window.js'
import { RUNS, same } from './runs.js'

const OUTCOMES: Outcome[] = ['success', 'failure', 'slow', 'failure_and_slow', 'ignored']

/** The window as its definition reads, over a list that keeps everything. */
function naiveCounts(list: { outcome: Outcome; atMs: number }[], nowMs: number, bucketMs: number, n: number) {
  const bucketOf = (ms: number) => Math.floor(ms / bucketMs)
  const inside = list
    .filter(({ atMs }) => bucketOf(atMs) > bucketOf(nowMs) - n && bucketOf(atMs) <= bucketOf(nowMs))
    .map(({ outcome }) => outcome)
  return {
    calls: inside.filter((outcome) => outcome !== 'ignored').length,
    failures: inside.filter((outcome) => outcome.includes('failure')).length,
    slow: inside.filter((outcome) => outcome.includes('slow')).length,
  }
}

describe('the window', () => {
  test('counts at every instant what a plain list counts, idle gaps of any length included', () => {
    fc.assert(
      fc.property(
        fc.constantFrom(10_000, 1_000, 700, 1),
        fc.integer({ min: 1, max: 12 }),
        fc.array(
          fc.tuple(
            fc.constantFrom(
              ...Array<'record'>(9).fill('record'),
              ...Array<'pass'>(5).fill('pass'),
              ...(['idle', 'laps', 'clear'] as const),
            ),
            fc.nat(1_000),
            fc.constantFrom(...OUTCOMES),
          ),
          { maxLength: 40, size: 'max' },
        ),
        (windowMs, buckets, steps) => {
          const window = createWindow({ windowMs, buckets })
          let list: { outcome: Outcome; atMs: number }[] = []
          let nowMs = 0
          for (const [step, size, outcome] of steps) {
            if (step === 'record') {
              window.record(outcome, nowMs)
              list.push({ outcome, atMs: nowMs })
            } else if (step === 'clear') {
              window.clear()
              list = []
            } else if (step === 'pass') nowMs += (size * windowMs) / 5_000
            else if (step === 'idle') nowMs += windowMs + size * 1_000
            else nowMs += size * windowMs // whole laps: the ring stands where it stood

            same(window.counts(nowMs), naiveCounts(list, nowMs, windowMs / buckets, buckets))
          }
        },
      ),
      RUNS,
    )
  })

  test('stale buckets after idle time are not counted, wherever the ring stands', () => {
    for (const idleMs of [9_000, 10_000, 10_001, 20_000, 3_600_000]) {
      const window = createWindow({ windowMs: 10_000, buckets: 10 })
      for (let i = 0; i < 10; i += 1) window.record('failure', i * 1_000)
      window.record('success', 9_999 + idleMs)
      const failures = idleMs === 9_000 ? 1 : 0
      expect(window.counts(9_999 + idleMs)).toEqual({ calls: failures + 1, failures, slow: 0 })
    }
  })

  test('a call that failed and was slow moves both counters and is one call; an ignored one moves none', () => {
    const window = createWindow({ windowMs: 1_000, buckets: 2 })
    for (const outcome of OUTCOMES) window.record(outcome, 0)
    expect(window.counts(0)).toEqual({ calls: 4, failures: 2, slow: 2 })
  })

  test('a window of no length or no buckets is refused, and so is a time that is none', () => {
    for (const windowMs of [0, -1, Number.NaN, Number.POSITIVE_INFINITY]) {
      expect(() => createWindow({ windowMs, buckets: 1 })).toThrow(RangeError)
    }
    for (const buckets of [0, 1.5, Number.NaN, Number.POSITIVE_INFINITY]) {
      expect(() => createWindow({ windowMs: 1_000, buckets })).toThrow(RangeError)
    }
    for (const nowMs of [-1, Number.NaN]) {
      expect(() => createWindow({ windowMs: 1_000, buckets: 10 }).record('success', nowMs)).toThrow(
        RangeError,
      )
    }
  })
})
