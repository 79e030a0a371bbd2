import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { fullJitter } from '../../src/resilience/backoff.js'
import { RUNS } from './runs.js'

describe('full jitter', () => {
  test('a wait is finite and within [0, cap] at any attempt, base and cap', () => {
    const ms = fc.double({ min: 0, max: Number.MAX_VALUE, noNaN: true })
    const attempt = fc.oneof(
      fc.nat(40),
      fc.nat(),
      fc.constantFrom(1_023, 1_024, 1e6, Number.MAX_VALUE, Infinity),
    )
    const random = fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true })
    fc.assert(
      fc.property(attempt, ms, ms, random, (attempt, baseMs, capMs, random) => {
        const waitMs = fullJitter(attempt, baseMs, capMs, () => random)
        expect(Number.isFinite(waitMs) && waitMs >= 0 && waitMs <= capMs).toBe(true)
      }),
      RUNS,
    )
  })

  test('the bounds double up to the cap: 1, 2, 4, 8, 16, then 30 s', () => {
    const bounds = [0, 1, 2, 3, 4, 5, 6, 1e6, Infinity].map((n) => fullJitter(n, 1_000, 30_000, () => 1))
    expect(bounds).toEqual([1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000, 30_000, 30_000])
  })

  test('no NaN at high attempts, where 2 ** attempt is Infinity and the base may be 0', () => {
    expect(fullJitter(1e6, 0, 30_000, () => 0.5)).toBe(0)
    expect(fullJitter(Infinity, 0, 30_000, () => 0)).toBe(0)
    expect(fullJitter(Infinity, 1_000, 30_000, () => 0)).toBe(0)
    expect(fullJitter(5_000, 1_000, 0, () => 0.5)).toBe(0)
  })

  test('arguments that are no times are refused instead of becoming NaN', () => {
    for (const bad of [-1, Number.NaN]) {
      expect(() => fullJitter(bad, 1, 1, () => 0)).toThrow(RangeError)
      expect(() => fullJitter(0, bad, 1, () => 0)).toThrow(RangeError)
      expect(() => fullJitter(0, 1, bad, () => 0)).toThrow(RangeError)
    }
    expect(() => fullJitter(0, Infinity, 1, () => 0)).toThrow(RangeError)
    expect(() => fullJitter(0, 1, Infinity, () => 0)).toThrow(RangeError)
  })
})
