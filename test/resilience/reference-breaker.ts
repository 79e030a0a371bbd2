import type {
  BreakerEvent,
  BreakerOptions,
  BreakerSnapshot,
  BreakerState,
  Outcome,
} from '../../src/resilience/circuit-breaker.js'

/** A call as the reference sees it: of which era (stay in one state) it is, and when it came. */
export interface ReferenceCall {
  era: number
  atMs: number
  outcome: Outcome | undefined
}

/**
 * The breaker's rules written down once more, as plainly as possible and with another machinery: a list of all
 * outcomes instead of a ring, numbered eras instead of state objects, and time that is stepped through from one due
 * moment to the next as timers would, instead of looked up late.
 */
export function createReferenceBreaker(options: BreakerOptions, random: () => number) {
  const bucketMs = options.windowMs / options.buckets
  const events: BreakerEvent[] = []
  let nowMs = 0
  let era = 0
  let enteredAtMs = 0
  let is: BreakerState['is'] = 'closed'
  let openings = 0
  let retryAtMs = 0
  let counted: { atMs: number; outcome: Outcome }[] = []
  let probes: ReferenceCall[] = []

  function go(to: BreakerState['is'], reason: BreakerEvent['reason']): void {
    events.push({ from: is, to, atMs: nowMs, reason })
    is = to
    era += 1
    enteredAtMs = nowMs
    probes = []
    if (to === 'open') {
      retryAtMs = nowMs + random() * Math.min(options.waitCapMs, options.waitBaseMs * 2 ** openings)
      openings += 1
    }
    if (to !== 'open' && to !== 'half_open') openings = 0
    if (to === 'closed' || to === 'forced_closed') counted = []
  }

  function inWindow(): Outcome[] {
    const newest = Math.floor(nowMs / bucketMs)
    return counted
      .filter(({ atMs }) => Math.floor(atMs / bucketMs) > newest - options.buckets)
      .map(({ outcome }) => outcome)
  }

  const count = (word: string) => inWindow().filter((outcome) => outcome.includes(word)).length
  const inFlight = () => probes.filter(({ outcome }) => outcome === undefined)
  const succeeded = () => probes.filter(({ outcome }) => outcome === 'success').length
  const hasRoom = () => is === 'half_open' && inFlight().length + succeeded() < options.probes

  return {
    events,
    advance(ms: number): void {
      const untilMs = nowMs + ms
      for (;;) {
        const dues = inFlight().map(({ atMs }) => atMs + options.probeDeadlineMs)
        const dueMs = is === 'open' ? retryAtMs : Math.min(...dues)
        if (dueMs > untilMs) break
        nowMs = dueMs
        if (is === 'open') go('half_open', 'wait_over')
        else go('open', 'probe_overdue')
      }
      nowMs = untilMs
    },
    /** The call, or the Retry-After of its refusal. */
    admit(kind: 'call' | 'no_probe'): ReferenceCall | number {
      const call = { era, atMs: nowMs, outcome: undefined }
      if (is === 'closed' || is === 'forced_closed') return call
      if (kind === 'call' && hasRoom()) {
        probes.push(call)
        return call
      }
      return is === 'open' ? Math.max(1, Math.ceil((retryAtMs - nowMs) / 1000)) : 1
    },
    settle(call: ReferenceCall, outcome: Outcome): void {
      if (call.outcome !== undefined) return
      call.outcome = outcome
      if (call.era !== era || outcome === 'ignored') return
      if (is === 'half_open') {
        if (outcome !== 'success') go('open', 'probe_failed')
        else if (succeeded() === options.probes) go('closed', 'probes_succeeded')
        return
      }
      counted.push({ atMs: nowMs, outcome })
      const calls = inWindow().length
      if (is !== 'closed' || calls < options.minCalls) return
      if (count('failure') / calls >= options.failureRate) go('open', 'failure_rate')
      else if (count('slow') / calls >= options.slowRate) go('open', 'slow_rate')
    },
    trip(): void {
      if (is === 'closed' || is === 'half_open') go('open', 'tripped')
    },
    databaseAnswers(): void {
      if (is === 'open') go('half_open', 'database_answers')
    },
    force(to: 'open' | 'closed' | 'auto'): void {
      const target = to === 'auto' ? 'closed' : (`forced_${to}` as const)
      if (target === is || (to === 'auto' && !is.startsWith('forced'))) return
      go(target, 'forced')
    },
    snapshot(): BreakerSnapshot {
      const passes = is === 'closed' || is === 'forced_closed' || hasRoom()
      return {
        state: is,
        sinceMs: nowMs - enteredAtMs,
        calls: inWindow().length,
        failures: count('failure'),
        slow: count('slow'),
        openings,
        probesInFlight: inFlight().length,
        retryAfterMs: passes ? null : is === 'open' ? retryAtMs - nowMs : 0,
      }
    },
  }
}
