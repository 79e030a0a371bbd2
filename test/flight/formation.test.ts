import fc from 'fast-check'
import pg from 'pg'
import { describe, expect, it } from 'vitest'
import { Formation, Skipped } from '../../src/db/formation.js'
import { RUNS } from '../resilience/runs.js'
import {
  type ScriptedStatement,
  manners,
  mannersThatLose,
  rowsOf,
  statement,
  statementOf,
  turn,
} from './flight-play.js'
import { type Group, type Manners, ScriptedServer } from './scripted-server.js'

const RUN = { ...RUNS, numRuns: Number(process.env['FLIGHT_RUNS'] ?? 150), timeout: 5000 }

/** Reads that share what is ahead of them, and a Sync; `after` so many turns of the event loop. */
interface ScriptedFormation {
  ahead: ScriptedStatement[]
  reads: ScriptedStatement[]
  after: number
}

/** What fails at its Sync, or changes data, is no read. */
const read: fc.Arbitrary<ScriptedStatement> = statement.map(({ text, named, rows, fails }) => ({
  text: text.startsWith('insert') ? 'select m 1' : text,
  named,
  rows,
  fails: fails === 'sync' ? 'never' : fails,
}))
const formations: fc.Arbitrary<ScriptedFormation[]> = fc.array(
  fc.record({
    ahead: fc.array(read, { maxLength: 2 }),
    reads: fc.array(read, { minLength: 1, maxLength: 8, size: 'max' }),
    after: fc.nat(3),
  }),
  { minLength: 1, maxLength: 12, size: 'max' },
)

/** How one read ended. */
interface Ending {
  rows: object[] | undefined
  failure: Error | undefined
}

interface Play {
  endings: Ending[][]
  groups: readonly Group[]
  faults: readonly string[]
  lost: boolean
}

async function play(all: readonly ScriptedFormation[], how: Manners): Promise<Play> {
  const server = await ScriptedServer.open(how)
  const settings = {
    host: '127.0.0.1',
    port: server.port,
    user: 'u',
    database: 'd',
    ssl: false,
    pipeline: true,
  }
  const client = new pg.Client(settings)
  client.on('error', () => undefined)
  await client.connect()
  const waits: Promise<void>[] = []
  const endings: Ending[][] = []
  for (const [index, { ahead, reads, after }] of all.entries()) {
    for (let turns = after; turns > 0; turns -= 1) await turn()
    const first = ahead.map((one, place) => statementOf(one, tokenOf(index, `a${place}`, one)))
    const own: Ending[] = reads.map(() => ({ rows: undefined, failure: undefined }))
    endings.push(own)
    const statements = reads.map((one, place) => first.concat(statementOf(one, tokenOf(index, place, one))))
    const formation = new Formation(statements[0] ?? [])
    for (const [place, each] of statements.entries()) {
      expect(formation.takes(each)).toBe(true)
      const ending = own[place] as Ending
      waits.push(
        formation.join(each).then(
          ({ rows }) => void (ending.rows = rows),
          (error: Error) => void (ending.failure = error),
        ),
      )
    }
    client.query(formation as unknown as pg.Submittable)
  }
  await Promise.all(waits)
  for (let turns = 5; turns > 0; turns -= 1) await turn()
  await client.end().catch(() => undefined)
  server.close()
  return { endings, groups: server.groups, faults: server.faults, lost: server.lost }
}

const tokenOf = (index: number, place: number | string, { text }: ScriptedStatement) =>
  `${index}.${place}.${text.split(' ')[1] ?? ''}`
const tokensOf = ({ ahead, reads }: ScriptedFormation, index: number) => [
  ...ahead.map((one, place) => tokenOf(index, `a${place}`, one)),
  ...reads.map((one, place) => tokenOf(index, place, one)),
]

async function always(look: (found: Play, all: ScriptedFormation[]) => void, by = manners): Promise<void> {
  const property = fc.asyncProperty(formations, by, async (all, how) => look(await play(all, how), all))
  await fc.assert(property, RUN)
}

describe('reads that share a Sync', () => {
  it('are told once each: their own rows, their own failure, or that they were skipped behind another', async () => {
    await always(({ endings, groups, faults }, all) => {
      expect(faults).toEqual([])
      expect(groups).toHaveLength(all.length)
      for (const [index, formation] of all.entries()) {
        const { ahead, reads } = formation
        const { bound, executed, failure } = groups[index] as Group
        expect(bound).toEqual(tokensOf(formation, index))
        expect(executed).toEqual(bound.slice(0, executed.length))
        const done = executed.length - ahead.length
        for (const [place, { rows, failure: own }] of (endings[index] ?? []).entries()) {
          const token = tokenOf(index, place, reads[place] as ScriptedStatement)
          if (place < done) expect(rows).toEqual(rowsOf(token, reads[place] as ScriptedStatement))
          else if (done < 0 || place === done) expect(own?.message).toBe(failure)
          else expect(own).toBeInstanceOf(Skipped)
        }
      }
    })
  })

  it('on a connection that is lost: what is answered is the own answer, and nobody waits for ever', async () => {
    await always(({ endings, groups }, all) => {
      for (const [index, { ahead, reads }] of all.entries())
        for (const [place, { rows }] of (endings[index] ?? []).entries()) {
          if (rows === undefined) continue
          const token = tokenOf(index, place, reads[place] as ScriptedStatement)
          expect(rows).toEqual(rowsOf(token, reads[place] as ScriptedStatement))
          expect(groups[index]?.executed[ahead.length + place] ?? token).toBe(token)
        }
    }, mannersThatLose)
  })
})
