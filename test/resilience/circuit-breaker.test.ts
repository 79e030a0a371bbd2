import fc from 'fast-check'
import { describe, expect, test, vi } from 'vitest'
import type { BreakerEvent, BreakerOptions, Permit } from '../../src/resilience/circuit-breaker.js'
import { createCircuitBreaker } from '../../src/resilience/circuit-breaker.js'
import {
  createTestBreaker,
  cycle,
  lengthOf,
  options,
  play,
  randoms,
  steps,
  tryAdmit,
  unforcedSteps,
} from './breaker-play.js'
import { createReferenceBreaker, type ReferenceCall } from './reference-breaker.js'
import { RUNS, same } from './runs.js'

const DEFAULTS: BreakerOptions = {
  failureRate: 0.5,
  slowRate: 0.8,
  minCalls: 10,
  windowMs: 10_000,
  buckets: 10,
  probes: 3,
  probeDeadlineMs: 5_000,
  waitBaseMs: 1_000,
  waitCapMs: 30_000,
}

describe('the circuit breaker, whatever happens to it', () => {
  test('is at every instant what a naive model with a list and eager timers is, looked at or not', () => {
    fc.assert(
      fc.property(options, randoms, steps, (options, randoms, steps) => {
        const reference = createReferenceBreaker(options, cycle(randoms))
        const watched = createTestBreaker(options, cycle(randoms))
        const unwatched = createTestBreaker(options, cycle(randoms))
        const calls: { reference: ReferenceCall; watched: Permit; unwatched: Permit }[] = []

        for (const step of steps) {
          const [name, size, outcome] = step
          const ms = lengthOf(step, watched.snapshot(), options)
          for (const clock of [reference, watched.clock, unwatched.clock]) clock.advance(ms)
          let call = name === 'settle' ? calls[size % calls.length] : undefined
          if (name === 'call' || name === 'stream' || name === 'answer') {
            const kind = name === 'stream' ? 'no_probe' : 'call'
            const admitted = {
              reference: reference.admit(kind),
              watched: tryAdmit(watched, kind),
              unwatched: tryAdmit(unwatched, kind),
            }
            const { reference: wanted, watched: first, unwatched: second } = admitted
            if (typeof wanted === 'number' || typeof first === 'number' || typeof second === 'number') {
              same([first, second], [wanted, wanted])
            } else {
              calls.push({ reference: wanted, watched: first, unwatched: second })
              if (name === 'answer') call = calls.at(-1)
            }
          }
          if (call !== undefined) {
            reference.settle(call.reference, outcome)
            call.watched.settle(outcome)
            call.unwatched.settle(outcome)
          }
          for (const breaker of [reference, watched, unwatched]) {
            if (name === 'trip') breaker.trip()
            if (name === 'database_answers') breaker.databaseAnswers()
            if (name === 'force_open') breaker.force('open')
            if (name === 'force_closed') breaker.force('closed')
            if (name === 'force_auto') breaker.force('auto')
          }
          reference.advance(0)
          same(watched.snapshot(), reference.snapshot())
        }
        same(unwatched.snapshot(), reference.snapshot())
        same([watched.events, unwatched.events], [reference.events, reference.events])
      }),
      RUNS,
    )
  })

  test('no call passes while it is open, and each refusal says how long: what is left, at least 1 s', () => {
    fc.assert(
      fc.property(options, randoms, steps, (options, randoms, steps) => {
        const breaker = createTestBreaker(options, cycle(randoms))
        play(breaker, options, steps, ({ before, admitted }) => {
          if (admitted === undefined || (before.state !== 'open' && before.state !== 'forced_open')) return
          same(admitted, Math.max(1, Math.ceil((before.retryAfterMs ?? NaN) / 1000)))
        })
      }),
      RUNS,
    )
  })

  test('probes in flight and successes together never exceed what is permitted, and a stream is never one', () => {
    fc.assert(
      fc.property(options, randoms, steps, (options, randoms, steps) => {
        const breaker = createTestBreaker(options, cycle(randoms))
        let [inFlight, succeeded] = [new Set<Permit>(), 0]
        play(breaker, options, steps, ({ step, before, after, admitted, settled, events }) => {
          if (before.state === 'half_open' && typeof admitted === 'object') {
            same(step[0] === 'stream', false)
            inFlight.add(admitted)
          }
          if (before.state === 'half_open' && settled !== undefined && inFlight.delete(settled.permit)) {
            if (step[2] === 'success') succeeded += 1
          }
          if (events.length > 0) [inFlight, succeeded] = [new Set(), 0]
          if (after.state !== 'half_open') return
          same(after.probesInFlight, inFlight.size)
          if (inFlight.size + succeeded > options.probes) {
            expect({ inFlight: inFlight.size, succeeded }).toBe(`at most ${options.probes}`)
          }
        })
      }),
      RUNS,
    )
  })

  test('every permit is returned exactly once: the second settle changes nothing, and in the end none is out', () => {
    fc.assert(
      fc.property(options, randoms, steps, (options, randoms, steps) => {
        const breaker = createTestBreaker(options, cycle(randoms))
        const { unsettled } = play(breaker, options, steps, ({ before, after, settled }) => {
          if (settled !== undefined && !settled.first) same(after, before)
        })
        for (const permit of unsettled) permit.settle('ignored')
        same(breaker.snapshot().probesInFlight, 0)
        // In a new half-open every place is free again, and not one more.
        breaker.force('closed')
        breaker.force('auto')
        breaker.trip()
        breaker.databaseAnswers()
        const places = Array.from({ length: options.probes + 2 }, () => tryAdmit(breaker))
        same(places.filter((admitted) => typeof admitted === 'object').length, options.probes)
      }),
      RUNS,
    )
  })

  test('below minCalls in the window it never opens by itself', () => {
    fc.assert(
      fc.property(options, unforcedSteps, (options, steps) => {
        const breaker = createTestBreaker(options)
        play(breaker, options, steps, ({ after, events }) => {
          const opened = events.some(({ reason }) => reason.endsWith('_rate'))
          if (opened && after.calls < options.minCalls) expect(after.calls).toBe(options.minCalls)
        })
        const calmBreaker = createTestBreaker({ ...options, minCalls: steps.length + 1 })
        play(calmBreaker, options, steps)
        same(calmBreaker.events, [])
      }),
      RUNS,
    )
  })

  test('a wait is within [0, min(cap, base * 2^(openings - 1))]', () => {
    fc.assert(
      fc.property(options, randoms, steps, (options, randoms, steps) => {
        const breaker = createTestBreaker(options, cycle(randoms))
        play(breaker, options, steps, ({ after }) => {
          if (after.state !== 'open') return
          const boundMs = Math.min(options.waitCapMs, options.waitBaseMs * 2 ** (after.openings - 1))
          const waitMs = (after.retryAfterMs ?? NaN) + after.sinceMs
          if (!(waitMs >= 0 && waitMs <= boundMs)) expect(waitMs).toBe(`within ${boundMs}`)
        })
      }),
      RUNS,
    )
  })

  test('a jump of the wall clock changes nothing: only the given clock is read', () => {
    const wallClock = vi.spyOn(Date, 'now')
    const processClock = vi.spyOn(performance, 'now')
    try {
      fc.assert(
        fc.property(options, randoms, steps, fc.array(fc.double()), (options, randoms, steps, jumps) => {
          const still = createTestBreaker(options, cycle(randoms))
          play(still, options, steps)
          const jumping = createTestBreaker(options, cycle(randoms))
          wallClock.mockClear().mockImplementation(cycle(jumps))
          processClock.mockClear().mockImplementation(cycle(jumps))
          play(jumping, options, steps)
          same([wallClock.mock.calls.length, processClock.mock.calls.length], [0, 0])
          same([jumping.snapshot(), jumping.events], [still.snapshot(), still.events])
        }),
        RUNS,
      )
    } finally {
      vi.restoreAllMocks()
    }
  })

  test('its events are a legal path: each begins where the last one ended, none is a loop, time never goes back', () => {
    const legal = new Set([
      ...['closed>open:failure_rate', 'closed>open:slow_rate', 'closed>open:tripped'],
      ...['open>half_open:wait_over', 'open>half_open:database_answers'],
      ...['half_open>open:probe_failed', 'half_open>open:probe_overdue', 'half_open>open:tripped'],
      'half_open>closed:probes_succeeded',
      ...['closed', 'open', 'half_open', 'forced_closed'].map((from) => `${from}>forced_open:forced`),
      ...['closed', 'open', 'half_open', 'forced_open'].map((from) => `${from}>forced_closed:forced`),
      ...['forced_open>closed:forced', 'forced_closed>closed:forced'],
    ])
    const met = new Set<string>()
    fc.assert(
      fc.property(options, randoms, steps, (options, randoms, steps) => {
        const breaker = createTestBreaker(options, cycle(randoms))
        play(breaker, options, steps)
        let last: Pick<BreakerEvent, 'to' | 'atMs'> = { to: 'closed', atMs: 0 }
        for (const event of breaker.events) {
          const edge = `${event.from}>${event.to}:${event.reason}`
          met.add(edge)
          if (!legal.has(edge)) expect(edge).toBe('legal')
          same(event.from, last.to)
          if (event.atMs < last.atMs) expect(event.atMs).toBeGreaterThanOrEqual(last.atMs)
          last = event
        }
        same(breaker.snapshot().state, last.to)
      }),
      RUNS,
    )
    expect([...met].sort()).toEqual([...legal].sort())
  })

  test('an observer that throws at every change leaves it as sound as a silent one', () => {
    fc.assert(
      fc.property(options, randoms, steps, (options, randoms, steps) => {
        const silent = createTestBreaker(options, cycle(randoms))
        const loud = createTestBreaker(options, cycle(randoms))
        loud.events.push = () => {
          throw new Error('observer')
        }
        const calm = <T>(look: () => T): T => {
          for (;;) {
            try {
              return look()
            } catch (error) {
              if (!(error instanceof Error) || error.message !== 'observer') throw error
            }
          }
        }
        // Looks first until time has nothing more to tell; then an act is done even if its own event throws.
        const act = (change: () => void) => {
          calm(() => loud.snapshot())
          try {
            change()
          } catch {}
        }
        const pairs: [Permit, Permit][] = []
        for (const step of steps) {
          const [name, size, outcome] = step
          const ms = lengthOf(step, silent.snapshot(), options)
          silent.clock.advance(ms)
          loud.clock.advance(ms)
          if (name === 'call' || name === 'answer') {
            const first = tryAdmit(silent)
            const second = calm(() => tryAdmit(loud))
            if (typeof first === 'object' && typeof second === 'object') pairs.push([first, second])
            else same(second, first)
          }
          const pair = name === 'answer' ? pairs.at(-1) : pairs[size % pairs.length]
          if ((name === 'settle' || name === 'answer') && pair !== undefined) {
            pair[0].settle(outcome)
            act(() => pair[1].settle(outcome))
          }
          if (name === 'trip') {
            silent.trip()
            act(() => loud.trip())
          }
          if (name === 'database_answers') {
            silent.databaseAnswers()
            act(() => loud.databaseAnswers())
          }
          if (name === 'force_open') {
            silent.force('open')
            act(() => loud.force('open'))
          }
          if (name === 'force_auto') {
            silent.force('auto')
            act(() => loud.force('auto'))
          }
          same(
            calm(() => loud.snapshot()),
            silent.snapshot(),
          )
        }
      }),
      RUNS,
    )
  })
})

describe('the circuit breaker, by its numbers', () => {
  function answer(
    breaker: ReturnType<typeof createTestBreaker>,
    ...outcomes: Parameters<Permit['settle']>[0][]
  ) {
    for (const outcome of outcomes) breaker.admit().settle(outcome)
  }

  test('opens at the tenth call with half of them failed, and not at the ninth', () => {
    const breaker = createTestBreaker(DEFAULTS)
    answer(breaker, ...Array<'failure'>(5).fill('failure'), ...Array<'success'>(4).fill('success'))
    expect(breaker.snapshot()).toMatchObject({ state: 'closed', calls: 9, failures: 5 })
    answer(breaker, 'success')
    expect(breaker.snapshot()).toMatchObject({ state: 'open', openings: 1, retryAfterMs: 500 })
    expect(breaker.events).toEqual([{ from: 'closed', to: 'open', atMs: 0, reason: 'failure_rate' }])
  })

  test('opens when eight of ten are slow, failed or not, and says why', () => {
    const breaker = createTestBreaker({ ...DEFAULTS, failureRate: 1 })
    answer(breaker, ...Array<'slow'>(7).fill('slow'), 'success', 'success')
    expect(breaker.snapshot().state).toBe('closed')
    answer(breaker, 'failure_and_slow')
    expect(breaker.events.map(({ reason }) => reason)).toEqual(['slow_rate'])
  })

  test('a share that is exactly the rate opens, where binary fractions are not exact: 7 of 25 are 0.28', () => {
    const breaker = createTestBreaker({ ...DEFAULTS, failureRate: 0.28, minCalls: 25 })
    answer(breaker, ...Array<'success'>(18).fill('success'), ...Array<'failure'>(7).fill('failure'))
    expect(breaker.snapshot().state).toBe('open')
  })

  test('one failed or slow probe opens it again, whatever the others were', () => {
    for (const outcome of ['failure', 'slow', 'failure_and_slow'] as const) {
      const breaker = createTestBreaker(DEFAULTS)
      breaker.trip()
      breaker.databaseAnswers()
      answer(breaker, 'success', 'success', outcome)
      expect(breaker.snapshot(), outcome).toMatchObject({ state: 'open', openings: 2 })
    }
  })

  test('waits 1, 2, 4, 8, 16, then 30 s while probes fail, and 1 s again after it was closed', () => {
    const breaker = createTestBreaker(DEFAULTS, () => 1)
    const waits: (number | null)[] = []
    breaker.trip()
    for (let i = 0; i < 8; i += 1) {
      const { retryAfterMs } = breaker.snapshot()
      waits.push(retryAfterMs)
      breaker.clock.advance(retryAfterMs ?? 0)
      answer(breaker, 'failure')
    }
    expect(waits).toEqual([1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000, 30_000])
    breaker.clock.advance(30_000)
    answer(breaker, 'success', 'success', 'success')
    expect(breaker.snapshot()).toMatchObject({ state: 'closed', calls: 0, openings: 0, retryAfterMs: null })
    breaker.trip()
    expect(breaker.snapshot().retryAfterMs).toBe(1_000)
  })

  test('refuses with 503 words and whole seconds rounded up', () => {
    const breaker = createTestBreaker(DEFAULTS, () => 1)
    breaker.trip()
    breaker.clock.advance(999)
    breaker.databaseAnswers()
    answer(breaker, 'failure')
    breaker.clock.advance(1)
    expect(() => breaker.admit()).toThrow(
      expect.objectContaining({
        code: 'unavailable',
        message: 'The database cannot be reached at the moment.',
        retryAfterSeconds: 2,
      }),
    )
  })

  test('evidence from outside opens and half-opens it at once; where it says nothing new, nothing happens', () => {
    const breaker = createTestBreaker(DEFAULTS)
    breaker.databaseAnswers()
    breaker.trip()
    breaker.trip()
    expect(tryAdmit(breaker)).toBe(1)
    breaker.databaseAnswers()
    breaker.databaseAnswers()
    answer(breaker, 'success', 'success', 'success')
    expect(breaker.events.map(({ to, reason }) => `${to}:${reason}`)).toEqual([
      'open:tripped',
      'half_open:database_answers',
      'closed:probes_succeeded',
    ])
  })

  test('forced states leave only by command, and auto starts closed with an empty window', () => {
    const breaker = createTestBreaker({ ...DEFAULTS, minCalls: 1 })
    breaker.force('open')
    breaker.databaseAnswers()
    breaker.clock.advance(86_400_000)
    expect(tryAdmit(breaker)).toBe(1)
    expect(breaker.snapshot()).toMatchObject({ state: 'forced_open', sinceMs: 86_400_000, retryAfterMs: 0 })
    breaker.force('closed')
    answer(breaker, 'failure', 'failure')
    breaker.trip()
    expect(breaker.snapshot()).toMatchObject({ state: 'forced_closed', failures: 2, retryAfterMs: null })
    breaker.force('closed')
    breaker.force('auto')
    breaker.force('auto')
    expect(breaker.snapshot()).toMatchObject({ state: 'closed', calls: 0 })
    expect(breaker.events.map(({ to }) => to)).toEqual(['forced_open', 'forced_closed', 'closed'])
  })

  test('a long stream passes when closed, and is refused where it would be a probe', () => {
    const breaker = createTestBreaker(DEFAULTS)
    expect(typeof tryAdmit(breaker, 'no_probe')).toBe('object')
    breaker.trip()
    breaker.databaseAnswers()
    expect(tryAdmit(breaker, 'no_probe')).toBe(1)
    expect(breaker.snapshot()).toMatchObject({ state: 'half_open', probesInFlight: 0 })
    breaker.force('closed')
    expect(typeof tryAdmit(breaker, 'no_probe')).toBe('object')
  })

  test('an observer may look at the breaker and use it: it finds the new state', () => {
    const seen: string[] = []
    const breaker = createCircuitBreaker(DEFAULTS, {
      now: () => 0,
      random: () => 0.5,
      onEvent: ({ to }) => {
        seen.push(`${to}=${breaker.snapshot().state}`)
        if (to === 'open') breaker.databaseAnswers()
      },
    })
    breaker.trip()
    expect(seen).toEqual(['open=open', 'half_open=half_open'])
  })

  test('options under which it could never open or never close are refused', () => {
    const bad: [keyof BreakerOptions, number[]][] = [
      ['failureRate', [0, -0.5, 1.1, Number.NaN]],
      ['slowRate', [0, -0.5, 1.1, Number.NaN]],
      ['minCalls', [0, 1.5, Number.NaN, Infinity]],
      ['windowMs', [0, -1, Number.NaN, Infinity]],
      ['buckets', [0, 1.5, Number.NaN, Infinity]],
      ['probes', [0, 1.5, Number.NaN, Infinity]],
      ['probeDeadlineMs', [0, -1, Number.NaN, Infinity]],
      ['waitBaseMs', [0, -1, Number.NaN, Infinity]],
      ['waitCapMs', [0, 999, Number.NaN, Infinity]],
    ]
    for (const [name, values] of bad) {
      for (const value of values) {
        expect(() => createTestBreaker({ ...DEFAULTS, [name]: value }), `${name} ${value}`).toThrow(
          RangeError,
        )
      }
    }
  })
})

/** What users of other breakers met, each once. */
describe('complaints about other breakers', () => {
  function halfOpen() {
    const breaker = createTestBreaker({ ...DEFAULTS, minCalls: 1, failureRate: 1 }, () => 0.5)
    const early = breaker.admit()
    breaker.trip()
    breaker.databaseAnswers()
    return { breaker, early }
  }

  test('stuck half-open: probes that never return are failures at their deadline, and others follow', () => {
    const { breaker } = halfOpen()
    for (let i = 0; i < 3; i += 1) breaker.admit()
    expect(tryAdmit(breaker)).toBe(1)
    breaker.clock.advance(4_999)
    expect(breaker.snapshot()).toMatchObject({ state: 'half_open', probesInFlight: 3 })
    breaker.clock.advance(1)
    expect(breaker.snapshot()).toMatchObject({ state: 'open', openings: 2, retryAfterMs: 1_000, sinceMs: 0 })
    breaker.clock.advance(1_000)
    for (let i = 0; i < 3; i += 1) breaker.admit().settle('success')
    expect(breaker.snapshot().state).toBe('closed')
  })

  test('stuck half-open: nobody needs to look in time, the wait counts from the deadline', () => {
    const { breaker } = halfOpen()
    breaker.admit()
    breaker.clock.advance(3_600_000)
    expect(typeof tryAdmit(breaker)).toBe('object')
    expect(breaker.events.slice(-2)).toEqual([
      { from: 'half_open', to: 'open', atMs: 5_000, reason: 'probe_overdue' },
      { from: 'open', to: 'half_open', atMs: 6_000, reason: 'wait_over' },
    ])
  })

  test('stuck half-open: a probe that is late says nothing more, its deadline has spoken', () => {
    const { breaker } = halfOpen()
    const probe = breaker.admit()
    breaker.clock.advance(5_000)
    probe.settle('success')
    expect(breaker.snapshot()).toMatchObject({ state: 'open', probesInFlight: 0 })
  })

  test('more probes than permitted: of a crowd at the end of the wait three pass', () => {
    const breaker = createTestBreaker(DEFAULTS)
    breaker.trip()
    breaker.clock.advance(500)
    const crowd = Array.from({ length: 100 }, () => tryAdmit(breaker))
    expect(crowd.filter((admitted) => typeof admitted === 'object')).toHaveLength(3)
    expect(breaker.events.filter(({ to }) => to === 'half_open')).toHaveLength(1)
  })

  test('more probes than permitted: a success keeps its place, so no fourth probe is let through', () => {
    const { breaker } = halfOpen()
    breaker.admit().settle('success')
    breaker.admit().settle('success')
    breaker.admit()
    expect(tryAdmit(breaker)).toBe(1)
  })

  test('a permit never returned: an ignored error and a settle said twice give exactly one place back', () => {
    const { breaker } = halfOpen()
    const [first] = [breaker.admit(), breaker.admit(), breaker.admit()]
    first.settle('ignored')
    first.settle('ignored')
    expect(breaker.snapshot().probesInFlight).toBe(2)
    breaker.admit()
    expect(tryAdmit(breaker)).toBe(1)
  })

  test('a late success closing the circuit: a call from before it opened neither closes it nor is a probe', () => {
    const { breaker, early } = halfOpen()
    breaker.admit().settle('success')
    breaker.admit().settle('success')
    breaker.admit()
    early.settle('success')
    expect(breaker.snapshot()).toMatchObject({ state: 'half_open', probesInFlight: 1 })
  })

  test('a late failure opening the circuit: neither half-open nor closed again does an old one count', () => {
    const { breaker, early } = halfOpen()
    const another = halfOpen()
    early.settle('failure')
    expect(breaker.snapshot()).toMatchObject({ state: 'half_open', openings: 1 })
    for (let i = 0; i < 3; i += 1) another.breaker.admit().settle('success')
    another.early.settle('failure')
    expect(another.breaker.snapshot()).toMatchObject({ state: 'closed', calls: 0 })
  })

  test('a probe of the last half-open is none of this one', () => {
    const { breaker } = halfOpen()
    const [ignored, failed] = [breaker.admit(), breaker.admit()]
    breaker.trip()
    breaker.databaseAnswers()
    for (let i = 0; i < 3; i += 1) breaker.admit()
    ignored.settle('ignored')
    failed.settle('failure')
    expect(breaker.snapshot()).toMatchObject({ state: 'half_open', probesInFlight: 3 })
    expect(tryAdmit(breaker)).toBe(1)
  })

  test('stale buckets after idle time: failures of an hour ago do not open it', () => {
    const breaker = createTestBreaker(DEFAULTS)
    for (let i = 0; i < 9; i += 1) {
      breaker.admit().settle('failure')
      breaker.clock.advance(500)
    }
    breaker.clock.advance(3_600_000)
    breaker.admit().settle('failure')
    expect(breaker.snapshot()).toMatchObject({ state: 'closed', calls: 1, failures: 1 })
  })

  test('NaN at high attempts: after a thousand openings and more the wait is still a wait', () => {
    const breaker = createTestBreaker(DEFAULTS, () => 1)
    breaker.trip()
    for (let i = 0; i < 1_100; i += 1) {
      breaker.clock.advance(30_000)
      breaker.admit().settle('failure')
    }
    expect(breaker.snapshot()).toMatchObject({ state: 'open', openings: 1_101, retryAfterMs: 30_000 })
  })

  test('a timer keeping the process alive: through all its states it starts none', () => {
    const timers = () =>
      process.getActiveResourcesInfo().filter((name) => /Timeout|Immediate/.test(name)).length
    const before = timers()
    const { breaker } = halfOpen()
    breaker.admit()
    breaker.clock.advance(60_000)
    breaker.snapshot()
    breaker.force('open')
    expect(timers()).toBe(before)
  })
})
