import { fullJitter } from './backoff.js'

/** The cap when capMsOf itself fails: as slow as the breaker's longest wait, never a hammer. */
const FALLBACK_CAP_MS = 30_000

export interface ReconnectOptions {
  /** One attempt; resolves when the database is there. After stop() its signal is aborted and its result unused. */
  attempt: (signal: AbortSignal) => Promise<void>
  /** The longest wait after this error, in ms: a wrong password deserves a slower pace than a restart. */
  capMsOf: (error: unknown) => number
  /** The first attempt comes within this time. */
  firstWithinMs: number
  /** The nth failed attempt is followed by a wait of at most baseMs * 2^(n - 1), within capMsOf. */
  baseMs: number
  /** Resolves after ms; may resolve or reject when the signal is aborted. */
  sleep: (ms: number, signal: AbortSignal) => Promise<void>
  /** [0, 1), for the jitter. */
  random: () => number
  /** Monotonic ms. */
  now: () => number
  /**
   * Told of each failed attempt; `attempt` counts from 1 at each start. What it throws is dropped: a broken log
   * must not leave the service without its database. It is also told what capMsOf throws (which then counts as
   * 30 s), and what sleep throws unasked, the one thing that ends the loop: without waits it would only spin.
   */
  onAttemptFailed?: (error: unknown, attempt: number) => void
}

export interface Reconnect {
  /**
   * Attempts until one succeeds: then true. While it runs, every start() gets the same promise. False after stop(),
   * or when `sleep` is broken. Never rejects.
   */
  start(): Promise<boolean>
  /**
   * Ends the run at once: its promise is false even if the attempt in flight ignores its signal. That attempt may
   * then overlap with the first one of the next start().
   */
  stop(): void
  readonly running: boolean
  /** What is left of the wait; null during an attempt and when not running. */
  readonly nextAttemptInMs: number | null
}

interface Run {
  readonly abort: AbortController
  readonly done: Promise<boolean>
  resolve: (connected: boolean) => void
  nextAttemptAtMs: number | null
}

/**
 * One loop that tries to reach something until it answers, with exponential waits and full jitter.
 * Throws RangeError for waits that are no finite times.
 */
export function createReconnect(options: ReconnectOptions): Reconnect {
  const { attempt, capMsOf, firstWithinMs, baseMs, sleep, random, now, onAttemptFailed } = options
  if (!(firstWithinMs >= 0 && Number.isFinite(firstWithinMs))) {
    throw new RangeError('firstWithinMs must be finite and at least 0')
  }
  if (!(baseMs > 0 && Number.isFinite(baseMs))) throw new RangeError('baseMs must be finite and more than 0')
  let current: Run | undefined

  function report(error: unknown, failed: number): void {
    try {
      onAttemptFailed?.(error, failed)
    } catch {
      // As promised above.
    }
  }

  function waitAfter(error: unknown, failed: number): number {
    try {
      return fullJitter(failed - 1, baseMs, capMsOf(error), random)
    } catch (fault) {
      report(fault, failed)
      return fullJitter(failed - 1, baseMs, FALLBACK_CAP_MS, random)
    }
  }

  async function loop(run: Run): Promise<void> {
    const { signal } = run.abort
    let waitMs = random() * firstWithinMs
    // Who is told of a failure may have stopped the run.
    for (let count = 1; !signal.aborted; count += 1) {
      run.nextAttemptAtMs = now() + waitMs
      try {
        await sleep(waitMs, signal)
      } catch (error) {
        if (signal.aborted) return
        report(error, count)
        end(run, false)
        return
      }
      if (signal.aborted) return
      run.nextAttemptAtMs = null
      try {
        await attempt(signal)
        end(run, true)
        return
      } catch (error) {
        // After stop() nobody waits for this result, and it may be the abort itself.
        if (signal.aborted) return
        report(error, count)
        waitMs = waitAfter(error, count)
      }
    }
  }

  function end(run: Run, connected: boolean): void {
    // An attempt that ignored its signal ends when another run may be going on.
    if (current === run) current = undefined
    run.resolve(connected)
  }

  return {
    start() {
      if (current !== undefined) return current.done
      const { promise, resolve } = withResolver()
      const run: Run = { abort: new AbortController(), done: promise, resolve, nextAttemptAtMs: null }
      current = run
      void loop(run)
      return promise
    },
    stop() {
      if (current === undefined) return
      const run = current
      end(run, false)
      run.abort.abort()
    },
    get running() {
      return current !== undefined
    },
    get nextAttemptInMs() {
      const atMs = current?.nextAttemptAtMs ?? null
      return atMs === null ? null : Math.max(0, atMs - now())
    },
  }
}

/** Promise.withResolvers, which Node 20 does not have. */
function withResolver(): { promise: Promise<boolean>; resolve: (connected: boolean) => void } {
  let resolve = (_connected: boolean): void => undefined
  const promise = new Promise<boolean>((settle) => {
    resolve = settle
  })
  return { promise, resolve }
}
