/** Tokens are kept in millionths, as integers: ten deposits of 0.1 would otherwise be a little less than one. */
const TOKEN = 1_000_000

export interface RetryOptions {
  /** What a run adds to the budget, in tokens; 0.1 allows one retry for ten runs. 0 to 1, to six digits. */
  ratio: number
  /** The most tokens it holds, and holds at first; an integer, 0 for no retries at all. */
  burst: number
  /** Retries of one run at most, beyond its first attempt. */
  attempts: number
}

export interface Retry {
  /**
   * Runs the task, and again at once after an error that isRetryable accepts, as long as the run has attempts left
   * and the budget a token. Waiting between attempts is the task's own. Rejects with the error of the last attempt.
   */
  run<T>(task: () => Promise<T>, isRetryable: (error: unknown) => boolean): Promise<T>
}

/**
 * Retries under a budget that all runs share, so that many failures at once do not double the load: over any n runs
 * at most burst + ratio * n retries (Finagle's RetryBudget, but without a clock: only traffic earns retries).
 * Throws RangeError for options out of range.
 */
export function createRetry({ ratio, burst, attempts }: RetryOptions): Retry {
  if (!(ratio >= 0 && ratio <= 1)) throw new RangeError('ratio must be in [0, 1]')
  if (!Number.isSafeInteger(burst * TOKEN) || !Number.isSafeInteger(burst) || burst < 0) {
    throw new RangeError('burst must be an integer of at least 0')
  }
  if (!Number.isSafeInteger(attempts) || attempts < 0) {
    throw new RangeError('attempts must be an integer of at least 0')
  }
  const deposit = Math.round(ratio * TOKEN)
  let budget = burst * TOKEN

  return {
    async run(task, isRetryable) {
      budget = Math.min(burst * TOKEN, budget + deposit)
      for (let retries = 0; ; retries += 1) {
        try {
          return await task()
        } catch (error) {
          // The last error, not the first: it says what is true now (a conflict solved, then the database gone),
          // and the caller's answer and Retry-After follow from it.
          if (retries >= attempts || !isRetryable(error) || budget < TOKEN) throw error
          budget -= TOKEN
        }
      }
    },
  }
}
