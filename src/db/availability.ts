import { setTimeout as sleep } from 'node:timers/promises'
import {
  type BreakerEvent,
  type BreakerOptions,
  type BreakerSnapshot,
  type CircuitBreaker,
  createCircuitBreaker,
} from '../resilience/circuit-breaker.js'
import { createReconnect, type Reconnect } from '../resilience/reconnect.js'
import { classifyConnect, type FailureClass, meaningOf, sqlState } from './pg-errors.js'

export interface AvailabilitySettings {
  breaker: BreakerOptions
  /** The longest wait between two looks at a database that is lost: what recovery takes at most. */
  reconnectCapMs: number
  /** The same where only an operator can help (a wrong password, no such database). */
  misconfiguredCapMs: number
  /** Looks from outside every pool; rejects with what stands in the way. */
  probe: (signal: AbortSignal) => Promise<void>
  onTransition: (event: BreakerEvent) => void
  onAttemptFailed: (error: unknown, attempt: number) => void
}

export interface AvailabilityHealth {
  breaker: BreakerSnapshot
  /** Until the reconnect loop looks again; null when it has no reason to. */
  nextProbeMs: number | null
  /** Milliseconds since the database last answered anything; null before the first answer. */
  sinceAnswerMs: number | null
  lastError: { class: FailureClass; sinceMs: number } | null
}

const FIRST_RECONNECT_MS = 250
const RECONNECT_BASE_MS = 100
/** With no answer for so long one is asked for, so that a quiet service knows its state too. */
const HEARTBEAT_MS = 4000

/**
 * Whether the database is there: one circuit breaker and one reconnect loop a process, shared by its pools.
 * While the circuit is open, the loop looks from outside the pools; its success lets probes through, and
 * their success the traffic.
 */
export class Availability {
  readonly breaker: CircuitBreaker
  readonly #settings: AvailabilitySettings
  readonly #reconnect: Reconnect
  readonly #stopping = new AbortController()
  #ping: () => Promise<void> = async () => {}
  #onLost: () => void = () => {}
  #heartbeat: NodeJS.Timeout | undefined
  #outside: Promise<boolean> | undefined
  #lastAnswerMs: number | null = null
  #lastError: { class: FailureClass; atMs: number } | null = null

  constructor(settings: AvailabilitySettings) {
    this.#settings = settings
    this.breaker = createCircuitBreaker(settings.breaker, {
      now: () => performance.now(),
      random: Math.random,
      onEvent: (event) => this.#changed(event),
    })
    this.#reconnect = createReconnect({
      attempt: (signal) => this.#attempt(signal),
      capMsOf: (error) => reconnectCapMs(error, settings),
      firstWithinMs: FIRST_RECONNECT_MS,
      baseMs: RECONNECT_BASE_MS,
      sleep: async (ms, signal) => await sleep(ms, undefined, { signal, ref: false }),
      random: Math.random,
      now: () => performance.now(),
      onAttemptFailed: settings.onAttemptFailed,
    })
  }

  /**
   * From now on a quiet database is asked for a sign of life. `ping` goes through the pool and the breaker;
   * `onLost` is called when the circuit opens upon lost connections: what lies idle beside them is not to be trusted.
   */
  watch(ping: () => Promise<void>, onLost: () => void): void {
    this.#ping = ping
    this.#onLost = onLost
    this.#heartbeat = setInterval(() => this.#beat(), HEARTBEAT_MS / 2).unref()
  }

  stop(): void {
    clearInterval(this.#heartbeat)
    this.#stopping.abort()
    this.#reconnect.stop()
  }

  answered(): void {
    this.#lastAnswerMs = performance.now()
  }

  /**
   * A flight that could only not write has read who asks: a call that succeeded. Or every change would be a failure
   * and nothing else, and a full disk would take the reads away that it leaves.
   */
  couldRead(): void {
    if (this.breaker.snapshot().state === 'closed') this.breaker.admit('no_probe').settle('success')
  }

  failed(name: FailureClass): void {
    this.#lastError = { class: name, atMs: performance.now() }
  }

  /** The database turned out not to be there: opens the circuit. True once it is back, false when stopped. */
  async recovered(): Promise<boolean> {
    this.breaker.trip()
    return await this.#reconnect.start()
  }

  /** Asked when the pool has nothing to give: does the database answer outside of it? One look at a time. */
  answersOutside(): Promise<boolean> {
    this.#outside ??= this.#settings
      .probe(this.#stopping.signal)
      .then(
        () => true,
        // With no file descriptor left the service cannot look, which is not the database's fault.
        (error: unknown) => classifyConnect(error) === 'own_side',
      )
      .finally(() => (this.#outside = undefined))
    return this.#outside
  }

  health(): AvailabilityHealth {
    const now = performance.now()
    return {
      breaker: this.breaker.snapshot(),
      nextProbeMs: this.#reconnect.nextAttemptInMs,
      sinceAnswerMs: this.#lastAnswerMs === null ? null : now - this.#lastAnswerMs,
      lastError:
        this.#lastError === null
          ? null
          : { class: this.#lastError.class, sinceMs: now - this.#lastError.atMs },
    }
  }

  async #attempt(signal: AbortSignal): Promise<void> {
    await this.#settings.probe(signal)
    this.breaker.databaseAnswers()
    // The probes are the service's own where traffic has not taken them: no caller is the first to try.
    for (let probe = 0; probe < this.#settings.breaker.probes; probe += 1) {
      if (signal.aborted || this.breaker.snapshot().state !== 'half_open') break
      await this.#ping()
    }
    const { state } = this.breaker.snapshot()
    if (state === 'open') throw new Error('the probes through the pool did not succeed')
  }

  #changed(event: BreakerEvent): void {
    // After stop() a late failure may still open it; nobody looks for the database any more.
    if (event.to === 'open' && !this.#stopping.signal.aborted) {
      // With no room for new connections, or none allowed, those that are there are the ones that work.
      if (this.#lastError !== null && LOSSES.has(this.#lastError.class)) this.#onLost()
      void this.#lookUntilBack()
    }
    if (event.to === 'forced_open' || event.to === 'forced_closed') this.#reconnect.stop()
    this.#settings.onTransition(event)
  }

  /** The circuit may open again in the moment in which the loop is done. */
  async #lookUntilBack(): Promise<void> {
    while (await this.#reconnect.start()) {
      if (this.breaker.snapshot().state !== 'open') return
    }
  }

  #beat(): void {
    const { breaker, sinceAnswerMs } = this.health()
    if (breaker.retryAfterMs !== null || (sinceAnswerMs ?? Infinity) < HEARTBEAT_MS) return
    // What the ping met is counted and told where it was met.
    this.#ping().catch(() => undefined)
  }
}

/** After these, what lies idle in a pool is not to be trusted either. */
const LOSSES = new Set<FailureClass>(['lost', 'restarting', 'client_timeout'])
/** SQLSTATEs of a database whose first migration has not run: nobody's mistake, and over in a moment. */
const UNMIGRATED = new Set<string | undefined>(['22023', '42501'])

function reconnectCapMs(error: unknown, settings: AvailabilitySettings): number {
  if (meaningOf(classifyConnect(error)).configuration !== true) return settings.reconnectCapMs
  return UNMIGRATED.has(sqlState(error)) ? 4 * settings.reconnectCapMs : settings.misconfiguredCapMs
}
