/** How a call ended. 'slow' did not fail; 'ignored' says nothing about the database and is never counted. */
export type Outcome = 'success' | 'failure' | 'slow' | 'failure_and_slow' | 'ignored'

/** `failures` and `slow` are of these `calls`; one call can be both. */
export interface WindowCounts {
  calls: number
  failures: number
  slow: number
}

/** `nowMs` is a monotonic clock's, at least 0 and never less than in an earlier call. */
export interface OutcomeWindow {
  /** Counts the outcome, in constant time and memory and without an allocation. */
  record(outcome: Outcome, nowMs: number): void
  /**
   * What was recorded in the last windowMs, to the bucket: an entry of t is in bucket floor(t / bucketMs), and
   * counted are the newest `buckets` of them, up to that of nowMs. The time since the last record does not matter.
   */
  counts(nowMs: number): WindowCounts
  clear(): void
}

/**
 * Outcomes of the last windowMs in a ring of `buckets`, each windowMs / buckets long.
 * Throws RangeError for a window of no length or of no buckets.
 */
export function createWindow({ windowMs, buckets }: { windowMs: number; buckets: number }): OutcomeWindow {
  if (!Number.isFinite(windowMs) || windowMs <= 0) throw new RangeError('windowMs must be more than 0')
  if (!Number.isSafeInteger(buckets) || buckets < 1) {
    throw new RangeError('buckets must be an integer of at least 1')
  }
  const bucketMs = windowMs / buckets
  const ring = Array.from({ length: buckets }, () => ({ number: -Infinity, calls: 0, failures: 0, slow: 0 }))

  return {
    record(outcome, nowMs) {
      if (outcome === 'ignored') return
      const number = Math.floor(nowMs / bucketMs)
      const bucket = ring[number % buckets]
      if (bucket === undefined) throw new RangeError('nowMs must be a number of at least 0')
      if (bucket.number !== number) {
        bucket.number = number
        bucket.calls = 0
        bucket.failures = 0
        bucket.slow = 0
      }
      bucket.calls += 1
      if (outcome !== 'success' && outcome !== 'slow') bucket.failures += 1
      if (outcome !== 'success' && outcome !== 'failure') bucket.slow += 1
    },
    counts(nowMs) {
      const newest = Math.floor(nowMs / bucketMs)
      const sum = { calls: 0, failures: 0, slow: 0 }
      for (const { number, calls, failures, slow } of ring) {
        // After idle time the ring still holds old buckets: their number tells, not their place.
        if (number <= newest - buckets) continue
        sum.calls += calls
        sum.failures += failures
        sum.slow += slow
      }
      return sum
    },
    clear() {
      for (const bucket of ring) bucket.number = -Infinity
    },
  }
}
