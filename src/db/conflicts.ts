import { setTimeout as sleep } from 'node:timers/promises'
import { classify } from './pg-errors.js'

/** Serialization failures and deadlocks are the database's request to try again: so often at most. */
const MAX_ATTEMPTS = 3

/** Runs work that is one transaction, and again after a short random wait when the database asks for it (40001, 40P01). */
export async function retryingConflicts<T>(work: () => Promise<T>): Promise<T> {
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await work()
    } catch (error) {
      if (classify(error) !== 'serialization' || attempt === MAX_ATTEMPTS) throw error
      await sleep(Math.random() * 50 * attempt)
    }
  }
}
