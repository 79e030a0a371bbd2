import fc from 'fast-check'
import {
  type BreakerEvent,
  type BreakerOptions,
  type BreakerSnapshot,
  createCircuitBreaker,
  type Outcome,
  type Permit,
} from '../../src/resilience/circuit-breaker.js'
import { AppError } from '../../src/errors.js'
import { createFakeClock } from './fake-clock.js'

const OUTCOMES: Outcome[] = [
  'success',
  'success',
  'success',
  'failure',
  'slow',
  'failure_and_slow',
  'ignored',
]

/** One thing that happens to a breaker; `size` and `outcome` mean what the step needs. */
export type Step = [step: (typeof STEPS)[number], size: number, outcome: Outcome]

const STEPS = [
  ...Array<'call'>(6).fill('call'),
  ...Array<'answer'>(14).fill('answer'),
  ...Array<'settle'>(8).fill('settle'),
  ...Array<'until_due'>(8).fill('until_due'),
  ...Array<'pass'>(4).fill('pass'),
  ...(['stream', 'idle', 'trip', 'trip', 'database_answers', 'database_answers'] as const),
  ...(['force_open', 'force_closed', 'force_auto', 'force_auto', 'force_auto'] as const),
]

/** `size: 'max'`: by default fast-check makes lists of five, in which hardly a breaker closes again. */
export const steps = fc.array(
  fc.tuple(fc.constantFrom(...STEPS), fc.nat(999), fc.constantFrom(...OUTCOMES)),
  { maxLength: 60, size: 'max' },
)

/** Steps that let no hand in: only calls and time move the breaker. */
export const unforcedSteps = steps.map((all) =>
  all.filter(([step]) => !step.startsWith('force') && step !== 'trip'),
)

export const options: fc.Arbitrary<BreakerOptions> = fc.record({
  failureRate: fc.constantFrom(0.1, 0.5, 0.7, 1),
  slowRate: fc.constantFrom(0.3, 0.8, 1),
  minCalls: fc.integer({ min: 1, max: 5 }),
  windowMs: fc.constantFrom(10_000, 700),
  buckets: fc.constantFrom(1, 3, 10),
  probes: fc.integer({ min: 1, max: 4 }),
  probeDeadlineMs: fc.constantFrom(500, 5_000),
  waitBaseMs: fc.constant(1_000),
  waitCapMs: fc.constantFrom(1_000, 30_000),
})

/** Eighths, so that the sums of times stay exact and a step can land on the very moment something is due. */
export const randoms = fc.array(
  fc.nat(7).map((n) => n / 8),
  { minLength: 1, maxLength: 5 },
)

/** The given numbers over and over. */
export function cycle(numbers: number[]): () => number {
  let next = 0
  return () => numbers[next++ % numbers.length] ?? 0
}

/** A breaker on a fake clock, with a list of what it told and of the permits it gave. */
export function createTestBreaker(options: BreakerOptions, random: () => number = () => 0.5) {
  const clock = createFakeClock()
  const events: BreakerEvent[] = []
  const breaker = createCircuitBreaker(options, {
    now: clock.now,
    random,
    onEvent: (event) => events.push(event),
  })
  return { ...breaker, clock, events }
}

export type TestBreaker = ReturnType<typeof createTestBreaker>

/** The permit, or the Retry-After of its refusal. */
export function tryAdmit(breaker: TestBreaker, kind: 'call' | 'no_probe' = 'call'): Permit | number {
  try {
    return breaker.admit(kind)
  } catch (error) {
    if (error instanceof AppError && error.code === 'unavailable' && error.retryAfterSeconds !== undefined) {
      return error.retryAfterSeconds
    }
    throw error
  }
}

/** One step with what stood before and after it. */
export interface Moment {
  step: Step
  before: BreakerSnapshot
  after: BreakerSnapshot
  /** Of a call, stream or answer: the permit or the Retry-After. */
  admitted: Permit | number | undefined
  /** Of a settle or an answer: which permit, and whether it was its first time. */
  settled: { permit: Permit; first: boolean } | undefined
  /** What happened in this step, and what time had brought before it. */
  events: BreakerEvent[]
}

/** How long a step of passing time takes; 'until_due' lands where a wait or a probe ends. */
export function lengthOf([step, size]: Step, snapshot: BreakerSnapshot, options: BreakerOptions): number {
  if (step === 'pass') return size
  if (step === 'idle') return size * 100
  if (step !== 'until_due') return 0
  return snapshot.state === 'open' ? (snapshot.retryAfterMs ?? 0) : options.probeDeadlineMs - (size % 2)
}

/** Plays the steps; `see` looks at each moment and may assert. */
export function play(
  breaker: TestBreaker,
  options: BreakerOptions,
  all: Step[],
  see: (moment: Moment) => void = () => {},
): { permits: Permit[]; unsettled: Set<Permit> } {
  const permits: Permit[] = []
  const unsettled = new Set<Permit>()
  for (const step of all) {
    const [name, size, outcome] = step
    let seen = breaker.events.length
    const before = breaker.snapshot()
    const moment: Moment = {
      step,
      before,
      after: before,
      admitted: undefined,
      settled: undefined,
      events: [],
    }
    breaker.clock.advance(lengthOf(step, before, options))
    if (name === 'call' || name === 'stream' || name === 'answer') {
      moment.admitted = tryAdmit(breaker, name === 'stream' ? 'no_probe' : 'call')
      if (typeof moment.admitted !== 'number') {
        permits.push(moment.admitted)
        unsettled.add(moment.admitted)
      }
    }
    // 'answer' is the call and its result at once; 'settle' is of any call so far, settled before or not.
    const permit = name === 'answer' ? moment.admitted : permits[size % permits.length]
    if ((name === 'answer' || name === 'settle') && typeof permit === 'object') {
      moment.settled = { permit, first: unsettled.delete(permit) }
      permit.settle(outcome)
    }
    if (name === 'trip') breaker.trip()
    if (name === 'database_answers') breaker.databaseAnswers()
    if (name === 'force_open') breaker.force('open')
    if (name === 'force_closed') breaker.force('closed')
    if (name === 'force_auto') breaker.force('auto')
    moment.after = breaker.snapshot()
    while (seen < breaker.events.length) {
      const event = breaker.events[seen++]
      if (event !== undefined) moment.events.push(event)
    }
    see(moment)
  }
  return { permits, unsettled }
}
