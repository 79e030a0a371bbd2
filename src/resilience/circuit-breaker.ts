import { AppError } from '../errors.js'
import { fullJitter } from './backoff.js'
import { createWindow, type Outcome } from './window.js'

export type { Outcome } from './window.js'

interface Probe {
  readonly dueAtMs: number
}

/** The state with its data; a state's data does not exist outside it. Each entry into a state makes a new object. */
export type BreakerState =
  | { readonly is: 'closed' }
  | { readonly is: 'open'; readonly openings: number; readonly retryAtMs: number }
  | {
      readonly is: 'half_open'
      readonly openings: number
      succeeded: number
      /** In the order of admission, so the first is the first to be due. */
      readonly inFlight: Set<Probe>
    }
  | { readonly is: 'forced_open' }
  | { readonly is: 'forced_closed' }

export interface BreakerOptions {
  /** Opens at this share of failed calls in the window; more than 0, at most 1. */
  failureRate: number
  /** Opens at this share of slow calls in the window; more than 0, at most 1. What is slow, the caller says. */
  slowRate: number
  /** With fewer calls in the window no rate opens; at least 1. */
  minCalls: number
  windowMs: number
  buckets: number
  /** Successes that close a half-open breaker, and so the most it lets through; at least 1. */
  probes: number
  /** A probe not settled this long after its admission has failed. */
  probeDeadlineMs: number
  /** The nth opening in a row waits at most waitBaseMs * 2^(n - 1), and never more than waitCapMs. */
  waitBaseMs: number
  waitCapMs: number
}

export interface BreakerDeps {
  /** Monotonic ms, at least 0. The wall clock would open or heal the breaker when it is set. */
  now: () => number
  /** [0, 1), for the jitter of the waits. */
  random: () => number
  /**
   * Called after the breaker has wholly changed, so it may look at it. What it throws reaches whoever made the
   * breaker look; the breaker itself stays sound, and an admission then took no permit.
   */
  onEvent?: (event: BreakerEvent) => void
}

export interface BreakerEvent {
  from: BreakerState['is']
  to: BreakerState['is']
  /** When it happened by `now`; earlier than when it was found if the clock did it and nobody looked. */
  atMs: number
  reason:
    | 'failure_rate'
    | 'slow_rate'
    | 'tripped'
    | 'wait_over'
    | 'database_answers'
    | 'probe_failed'
    | 'probe_overdue'
    | 'probes_succeeded'
    | 'forced'
}

export interface Permit {
  /** Says how the call ended. The first call counts, later ones do nothing, and none does after the state changed. */
  settle(outcome: Outcome): void
}

export interface BreakerSnapshot {
  state: BreakerState['is']
  /** How long it has been in this state. */
  sinceMs: number
  /**
   * The window: calls admitted in closed or forced_closed, counted since that was entered. While open or half-open
   * it shows what is left of the calls before, and no probes.
   */
  calls: number
  failures: number
  slow: number
  /** Openings in a row; 0 in closed and in the forced states. */
  openings: number
  probesInFlight: number
  /** What is left of the wait when open; 0 when calls are refused with no wait known; null when they may pass. */
  retryAfterMs: number | null
}

/** Every method first does what time has done meanwhile, as of when it was due: looking late changes nothing. */
export interface CircuitBreaker {
  /**
   * A permit for one call; settle it whatever happens. 'no_probe' is for long streams: refused where a call would
   * be a probe. Throws `unavailable` when refused; Retry-After is what is left of the wait, at least 1 s.
   */
  admit(kind?: 'call' | 'no_probe'): Permit
  /** Evidence from outside the calls that the database is not there: closed or half-open opens. */
  trip(): void
  /** Evidence from outside that it is there again: open becomes half-open at once, so probes decide. */
  databaseAnswers(): void
  /** Holds the breaker open or closed until the next force; 'auto' lets it go, to closed with an empty window. */
  force(to: 'open' | 'closed' | 'auto'): void
  snapshot(): BreakerSnapshot
}

/**
 * A circuit breaker (Nygard, Release It!) without timers: time is read when somebody looks. The rates are judged
 * whenever a call of the closed state is recorded. Half-open lets `probes` calls through in all: that many successes
 * close it, one failed, slow or overdue probe opens it again, and an ignored one frees its place.
 * Throws RangeError for options under which it could never open or never close.
 */
export function createCircuitBreaker(options: BreakerOptions, deps: BreakerDeps): CircuitBreaker {
  assertSound(options)
  const { failureRate, slowRate, minCalls, probes, probeDeadlineMs, waitBaseMs, waitCapMs } = options
  const window = createWindow(options)
  let state: BreakerState = { is: 'closed' }
  let enteredAtMs = deps.now()

  function enter(next: BreakerState, atMs: number, reason: BreakerEvent['reason']): void {
    const from = state.is
    state = next
    enteredAtMs = atMs
    if (next.is === 'closed' || next.is === 'forced_closed') window.clear()
    deps.onEvent?.({ from, to: next.is, atMs, reason })
  }

  function open(atMs: number, reason: BreakerEvent['reason']): void {
    const before = openingsOf(state)
    const retryAtMs = atMs + fullJitter(before, waitBaseMs, waitCapMs, deps.random)
    enter({ is: 'open', openings: before + 1, retryAtMs }, atMs, reason)
  }

  function halfOpen(atMs: number, reason: BreakerEvent['reason']): void {
    enter({ is: 'half_open', openings: openingsOf(state), succeeded: 0, inFlight: new Set() }, atMs, reason)
  }

  /** Does what the clock has done since somebody last looked, each at its own time; gives the time now. */
  function catchUp(): number {
    const nowMs = deps.now()
    for (;;) {
      const dueAtMs = nextChangeAtMs(state)
      if (dueAtMs > nowMs) return nowMs
      if (state.is === 'open') halfOpen(dueAtMs, 'wait_over')
      else open(dueAtMs, 'probe_overdue')
    }
  }

  function settleCall(outcome: Outcome, nowMs: number): void {
    window.record(outcome, nowMs)
    if (state.is !== 'closed' || outcome === 'ignored') return
    const { calls, failures, slow } = window.counts(nowMs)
    if (calls < minCalls) return
    // Divided, not multiplied: 7 / 25 is the number 0.28, but 0.28 * 25 is more than 7.
    if (failures / calls >= failureRate) open(nowMs, 'failure_rate')
    else if (slow / calls >= slowRate) open(nowMs, 'slow_rate')
  }

  return {
    admit(kind = 'call') {
      const nowMs = catchUp()
      if (!passes(state, kind, probes)) throw refusal(state, nowMs)
      const admittedIn = state
      const probe = { dueAtMs: nowMs + probeDeadlineMs }
      if (admittedIn.is === 'half_open') admittedIn.inFlight.add(probe)
      let settled = false
      return {
        settle(outcome) {
          if (settled) return
          settled = true
          const nowMs = catchUp()
          // A result of an older state is no news of this one: it may be minutes old.
          if (state !== admittedIn) return
          if (state.is !== 'half_open') {
            settleCall(outcome, nowMs)
            return
          }
          state.inFlight.delete(probe)
          if (outcome === 'ignored') return
          if (outcome !== 'success') {
            open(nowMs, 'probe_failed')
            return
          }
          state.succeeded += 1
          if (state.succeeded >= probes) enter({ is: 'closed' }, nowMs, 'probes_succeeded')
        },
      }
    },
    trip() {
      const nowMs = catchUp()
      if (state.is === 'closed' || state.is === 'half_open') open(nowMs, 'tripped')
    },
    databaseAnswers() {
      const nowMs = catchUp()
      if (state.is === 'open') halfOpen(nowMs, 'database_answers')
    },
    force(to) {
      const nowMs = catchUp()
      const isForced = state.is === 'forced_open' || state.is === 'forced_closed'
      if (to === 'auto') {
        if (isForced) enter({ is: 'closed' }, nowMs, 'forced')
      } else if (state.is !== `forced_${to}`) {
        enter({ is: `forced_${to}` }, nowMs, 'forced')
      }
    },
    snapshot() {
      const nowMs = catchUp()
      return {
        state: state.is,
        sinceMs: nowMs - enteredAtMs,
        ...window.counts(nowMs),
        openings: openingsOf(state),
        probesInFlight: state.is === 'half_open' ? state.inFlight.size : 0,
        retryAfterMs: passes(state, 'call', probes) ? null : waitLeftMs(state, nowMs),
      }
    },
  }
}

function openingsOf(state: BreakerState): number {
  return state.is === 'open' || state.is === 'half_open' ? state.openings : 0
}

function passes(state: BreakerState, kind: 'call' | 'no_probe', probes: number): boolean {
  if (state.is === 'closed' || state.is === 'forced_closed') return true
  // Successes hold their place: a probe more than it takes to close would only be load on a weak database.
  return state.is === 'half_open' && kind === 'call' && state.succeeded + state.inFlight.size < probes
}

/** When the clock alone will change the state. */
function nextChangeAtMs(state: BreakerState): number {
  if (state.is === 'open') return state.retryAtMs
  if (state.is !== 'half_open') return Infinity
  const [oldest] = state.inFlight
  return oldest?.dueAtMs ?? Infinity
}

function waitLeftMs(state: BreakerState, nowMs: number): number {
  return state.is === 'open' ? state.retryAtMs - nowMs : 0
}

function refusal(state: BreakerState, nowMs: number): AppError {
  return new AppError('unavailable', 'The database cannot be reached at the moment.', {
    retryAfterSeconds: Math.max(1, Math.ceil(waitLeftMs(state, nowMs) / 1000)),
  })
}

function assertSound(options: BreakerOptions): void {
  for (const name of ['failureRate', 'slowRate'] as const) {
    // 0 would open on successes.
    if (!(options[name] > 0 && options[name] <= 1)) throw new RangeError(`${name} must be in (0, 1]`)
  }
  for (const name of ['minCalls', 'probes'] as const) {
    if (!Number.isSafeInteger(options[name]) || options[name] < 1) {
      throw new RangeError(`${name} must be an integer of at least 1`)
    }
  }
  for (const name of ['probeDeadlineMs', 'waitBaseMs'] as const) {
    if (!(options[name] > 0 && Number.isFinite(options[name]))) {
      throw new RangeError(`${name} must be finite and more than 0`)
    }
  }
  if (!(options.waitCapMs >= options.waitBaseMs && Number.isFinite(options.waitCapMs))) {
    throw new RangeError('waitCapMs must be finite and at least waitBaseMs')
  }
}
