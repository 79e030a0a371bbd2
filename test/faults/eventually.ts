import { setTimeout as sleep } from 'node:timers/promises'

/** What `look` finds, as soon as it finds something; looks every 10 ms. What it throws counts as nothing found. */
export async function eventually<T>(
  what: string,
  look: () => T | undefined | Promise<T | undefined>,
  timeoutMs = 20_000,
): Promise<T> {
  let reason: unknown
  for (const giveUpAt = performance.now() + timeoutMs; performance.now() < giveUpAt; await sleep(10)) {
    try {
      const found = await look()
      if (found !== undefined) return found
    } catch (error) {
      reason = error
    }
  }
  throw new Error(`within ${timeoutMs} ms it did not happen: ${what}`, { cause: reason })
}
