import { AppError } from '../errors.js'

/**
 * Calls back once after `ms` unless the function it returns was called before. Whether the timer keeps the process
 * alive is the caller's to say: nothing here needs it to, so unref it.
 */
export type SetTimer = (callback: () => void, ms: number) => () => void

export type BulkheadOptions = {
  maxConcurrent: number
  /** Callers that may wait for a permit; 0 refuses whatever cannot start at once. */
  maxQueued: number
} & (
  | {
      /** How long one may wait; without it a place in the queue is kept until its turn. */
      maxWaitMs: number
      setTimer: SetTimer
    }
  | { maxWaitMs?: never; setTimer?: never }
)

export interface Bulkhead {
  /**
   * Runs the task when a permit is free, first come first served, and settles as the task does.
   * Rejects with `too_many_requests` (Retry-After 1) at once when the queue is full, or when maxWaitMs ran out;
   * the task was then never called.
   */
  run<T>(task: () => Promise<T>): Promise<T>
  /** What run() would reject with at once; undefined where it would not. Takes no permit. */
  refusal(): AppError | undefined
  readonly active: number
  readonly queued: number
}

interface Waiter {
  start: () => void
}

/**
 * At most maxConcurrent tasks at once and at most maxQueued waiting (Nygard, Release It!, "Bulkheads").
 * Throws RangeError for bounds that would never let a task through.
 */
export function createBulkhead({ maxConcurrent, maxQueued, maxWaitMs, setTimer }: BulkheadOptions): Bulkhead {
  if (!Number.isSafeInteger(maxConcurrent) || maxConcurrent < 1) {
    throw new RangeError('maxConcurrent must be an integer of at least 1')
  }
  if (!Number.isSafeInteger(maxQueued) || maxQueued < 0) {
    throw new RangeError('maxQueued must be an integer of at least 0')
  }
  let active = 0
  const waiting = new Set<Waiter>()

  function refusal(): AppError | undefined {
    return active >= maxConcurrent && waiting.size >= maxQueued ? TOO_MANY : undefined
  }

  function permit(): Promise<void> | undefined {
    const refused = refusal()
    if (refused !== undefined) throw refused
    if (active < maxConcurrent) {
      active += 1
      return undefined
    }
    return new Promise((resolve, reject) => {
      const stopTimer = maxWaitMs === undefined ? undefined : setTimer(giveUp, maxWaitMs)
      const waiter: Waiter = {
        start() {
          stopTimer?.()
          resolve()
        },
      }
      waiting.add(waiter)

      function giveUp() {
        waiting.delete(waiter)
        reject(TOO_MANY)
      }
    })
  }

  // A permit passes straight to the next waiter: a newcomer between the two could otherwise overtake or exceed.
  function release(): void {
    const [next] = waiting
    if (next === undefined) {
      active -= 1
      return
    }
    waiting.delete(next)
    next.start()
  }

  return {
    async run(task) {
      await permit()
      try {
        return await task()
      } finally {
        release()
      }
    },
    refusal,
    get active() {
      return active
    },
    get queued() {
      return waiting.size
    },
  }
}

// One for all: under a flood the stack of each would be a good part of what its refusal costs, and says nothing.
const TOO_MANY = new AppError(
  'too_many_requests',
  'Too many requests of this kind are running; try again shortly.',
  { retryAfterSeconds: 1 },
)
