/** Why an answer is no longer waited for. */
export type DeadlineEnd = 'expired' | 'client_gone'

/**
 * How long a request's answer is waited for. It keeps no time itself: whoever made it calls `end`, once the
 * time is up or the client has gone, and all who listen are told, once. In place of an AbortSignal, which
 * costs every request 7 us where this costs 0.1 (Node 20).
 */
export class Deadline {
  #ended: DeadlineEnd | undefined
  #listeners: Set<(end: DeadlineEnd) => void> | undefined

  get ended(): DeadlineEnd | undefined {
    return this.#ended
  }

  /** The first call counts. */
  end(reason: DeadlineEnd): void {
    if (this.#ended !== undefined) return
    this.#ended = reason
    const listeners = this.#listeners ?? []
    this.#listeners = undefined
    for (const listener of listeners) listener(reason)
  }

  /** Tells the listener when the end comes, never after `forget`; what has ended already tells nobody. */
  listen(listener: (end: DeadlineEnd) => void): void {
    if (this.#ended === undefined) (this.#listeners ??= new Set()).add(listener)
  }

  forget(listener: (end: DeadlineEnd) => void): void {
    this.#listeners?.delete(listener)
  }
}
