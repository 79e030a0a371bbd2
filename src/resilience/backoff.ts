/** Past this power the bound is the cap for any base that matters, and 2 ** attempt is still finite (0 * Infinity is NaN). */
const LARGEST_POWER = 1023

/**
 * A wait in ms, evenly spread over [0, min(capMs, baseMs * 2^attempt)] so that callers who failed together do not
 * come back together (Brooker, "Exponential Backoff And Jitter": "full jitter"). `attempt` counts from 0 and may be
 * anything up to Infinity: the wait is always finite and within the cap. `random` gives [0, 1).
 * Throws RangeError for a negative or NaN argument and for a base or cap that is not finite.
 */
export function fullJitter(attempt: number, baseMs: number, capMs: number, random: () => number): number {
  if (!(attempt >= 0)) throw new RangeError('attempt must be a number of at least 0')
  if (!Number.isFinite(baseMs) || baseMs < 0) throw new RangeError('baseMs must be finite and at least 0')
  if (!Number.isFinite(capMs) || capMs < 0) throw new RangeError('capMs must be finite and at least 0')
  return random() * Math.min(capMs, baseMs * 2 ** Math.min(attempt, LARGEST_POWER))
}
