import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { RUNS } from '../resilience/runs.js'
import {
  type Play,
  type ScriptedFlight,
  firstFailing,
  flights,
  idOf,
  manners,
  mannersThatLose,
  play,
  rowsOf,
} from './flight-play.js'
import type { Manners } from './scripted-server.js'

/** A failure prints its seed; FC_SEED=<seed> plays it again. FLIGHT_RUNS: how many connections a property sees. */
const RUN = { ...RUNS, numRuns: Number(process.env['FLIGHT_RUNS'] ?? 150), timeout: 5000 }

type Look = (found: Play, all: ScriptedFlight[], how: Manners) => void

/** Each by a client in pipeline mode, and by an ordinary one. */
async function always(look: Look, by = manners): Promise<void> {
  for (const pipeline of [true, false]) {
    const property = fc.asyncProperty(flights, by, async (all, how) =>
      look(await play(all, how, pipeline), all, how),
    )
    await fc.assert(property, RUN)
  }
}

const PLAIN: Manners = { pieces: [100], pauses: [0], luck: [true], loss: undefined }

function flight(after: ScriptedFlight['after'], ...texts: string[]): ScriptedFlight {
  return { after, statements: texts.map((text) => ({ text, named: true, rows: 1, fails: 'never' })) }
}

/** What its last statement answers. */
function answerOf({ statements }: ScriptedFlight, tokens: readonly string[]) {
  const last = statements.at(-1)
  if (last === undefined) throw new Error('a flight without a statement')
  return {
    rows: rowsOf(tokens.at(-1) ?? '', last),
    command: last.text.startsWith('insert') ? 'INSERT' : 'SELECT',
    rowCount: last.rows,
  }
}

describe('flights on one connection, whatever fails among them and however the answers come', () => {
  it('are answered once each, with what their own last statement answers or their own failure', async () => {
    await always(({ landings, answers, groups }, all) => {
      for (const [index, flight] of all.entries()) {
        const { tokens, answer, failure } = landings[index] ?? {}
        expect(answers[index]).toBe(1)
        expect(failure).toBe(groups[index]?.failure)
        if (failure === undefined) expect(answer).toEqual(answerOf(flight, tokens ?? []))
      }
    })
  })

  it('are failed by no neighbour: no name is missing or there twice, and who fails has a statement that does', async () => {
    await always(({ landings, faults }, all) => {
      expect(faults).toEqual([])
      for (const [index, flight] of all.entries()) {
        const { tokens = [], failure } = landings[index] ?? {}
        const mayBeUnlucky = flight.statements.some(({ text }) => text.startsWith('flaky'))
        if (!mayBeUnlucky) expect(failure === undefined).toBe(firstFailing(flight) === -1)
        if (failure === undefined) continue
        const texts = flight.statements.map(({ text }) => idOf(text))
        expect([...tokens, ...texts]).toContain(failure.split(' ')[0])
      }
    })
  })

  it('run nothing behind what failed, each under one Sync of its own', async () => {
    await always(({ landings, groups }, all) => {
      expect(groups).toHaveLength(all.length)
      for (const [index, { bound, executed, failure }] of groups.entries()) {
        const flight = all[index] ?? { statements: [], after: 0 }
        expect(bound).toEqual(landings[index]?.tokens)
        expect(executed).toEqual(bound.slice(0, executed.length))
        const place = firstFailing(flight)
        if (failure === undefined || flight.statements[place]?.fails === 'sync') continue
        expect(executed.length).toBeLessThanOrEqual(place === -1 ? bound.length - 1 : place)
      }
    })
  })

  it('may use a name that a neighbour is preparing who fails of something else', async () => {
    const { landings, faults } = await play(
      [flight(0, 'bad k', 'select a 1'), flight(0, 'select a 1'), flight('landed', 'select a 1')],
      PLAIN,
      true,
    )
    expect(landings.map(({ failure }) => failure)).toEqual(['k does not parse', undefined, undefined])
    expect(faults).toEqual([])
  })

  it('prepare a text once it is taken, and parse it no more', async () => {
    for (const pipeline of [true, false]) {
      const all = [1, 2, 3, 4].map(() => flight('landed', 'flaky h 1', 'insert f'))
      const { parsed } = await play(all, { ...PLAIN, luck: [false, true] }, pipeline)
      expect(parsed).toEqual(['name_h', 'name_h', 'name_f'])
    }
  })
})

describe('flights on a connection that is lost', () => {
  it('fail, but for those whose answer had come; each is answered once', async () => {
    await always(({ landings, answers, groups, lost }, all, { loss }) => {
      const endsAtByte = lost ? (loss?.atByte ?? 0) : Infinity
      for (const [index, flight] of all.entries()) {
        const { tokens, answer, failure } = landings[index] ?? {}
        const group = groups[index]
        expect(answers[index]).toBe(1)
        const isLost = /^(Connection terminated|Client has|read ECONN|write E)/.test(failure ?? '')
        // What was sent ahead of a reset may not have arrived.
        if (group === undefined || group.knownAtByte > endsAtByte) expect(isLost).toBe(true)
        else if (!lost || loss?.how === 'end') expect(isLost).toBe(false)
        if (isLost) continue
        expect(failure).toBe(group?.failure)
        if (failure === undefined) expect(answer).toEqual(answerOf(flight, tokens ?? []))
      }
    }, mannersThatLose)
  })

  it('were sent at most once, and ran nothing behind what failed', async () => {
    await always(({ landings, groups, faults }) => {
      expect(faults).toEqual([])
      for (const [index, { bound, executed }] of groups.entries()) {
        expect(bound).toEqual(landings[index]?.tokens)
        expect(executed).toEqual(bound.slice(0, executed.length))
      }
    }, mannersThatLose)
  })
})
