import type { Caller } from '../db/as-caller.js'
import type { Claim } from '../db/claims.js'

/** A caller as the last look found it, and what has to hold for that still to be true. */
export interface RecentCaller {
  caller: Omit<Caller, 'deadline' | 'claim'>
  claim: Claim
}

/** Callers remembered at most: about 3 MB. */
const MAX_CALLERS = 5000
/** A session that is used is looked up, and its use written down, often enough for every idle limit. */
const MAX_AGE_MS = 30_000

/**
 * Who asked in the last half minute, by the hash of the credential. Never taken for true: what is found here is
 * confirmed by the database before anything is done or told in its name, and only saves asking beforehand.
 */
export class RecentCallers {
  readonly #callers = new Map<string, RecentCaller & { atMs: number }>()

  get(key: string): RecentCaller | undefined {
    const found = this.#callers.get(key)
    return found !== undefined && performance.now() - found.atMs < MAX_AGE_MS ? found : undefined
  }

  /** In the order of looking, so that the first is the oldest. */
  set(key: string, recent: RecentCaller): void {
    this.#callers.delete(key)
    if (this.#callers.size >= MAX_CALLERS) {
      const [oldest] = this.#callers.keys()
      if (oldest !== undefined) this.#callers.delete(oldest)
    }
    this.#callers.set(key, { ...recent, atMs: performance.now() })
  }

  delete(key: string): void {
    this.#callers.delete(key)
  }
}
