import { once } from 'node:events'
import fc from 'fast-check'
import pg, { type QueryResult } from 'pg'
import { type Statement, fly } from '../../src/db/flight.js'
import { type Failing, type Group, type Manners, ScriptedServer } from './scripted-server.js'

/** Those that fail are few, and some are met again and again: repeated names are what is to be shown. */
const TEXTS = [
  ...['select a 1', 'select b 2', 'select c 3', 'select d 1', 'select e 2', 'insert f', 'insert g'],
  ...['flaky h 1', 'flaky i 2', 'flaky j 3', 'bad k', 'bad l'],
]

export interface ScriptedStatement {
  text: string
  named: boolean
  rows: number
  fails: Failing
}

export interface ScriptedFlight {
  statements: ScriptedStatement[]
  /** Turns of the event loop before it leaves; 'landed': when all before it have landed. */
  after: number | 'landed'
}

const often = <T>(weight: number, value: T) => ({ weight, arbitrary: fc.constant(value) })

export const statement: fc.Arbitrary<ScriptedStatement> = fc.record({
  text: fc.oneof(
    { weight: 14, arbitrary: fc.constantFrom(...TEXTS.filter((text) => !text.startsWith('bad'))) },
    { weight: 1, arbitrary: fc.constantFrom(...TEXTS) },
  ),
  named: fc.oneof(often(4, true), often(1, false)),
  rows: fc.nat(4),
  fails: fc.oneof(
    often<Failing>(24, 'never'),
    often<Failing>(1, 'bind'),
    often<Failing>(1, 'execute'),
    often<Failing>(1, 'sync'),
  ),
})

/** `size: 'max'`: by default fast-check makes lists too short for anything to be under way beside them. */
export const flights: fc.Arbitrary<ScriptedFlight[]> = fc.array(
  fc.record({
    statements: fc.array(statement, { minLength: 1, maxLength: 4, size: 'max' }),
    after: fc.oneof(
      often<number | 'landed'>(6, 0),
      { weight: 2, arbitrary: fc.integer({ min: 1, max: 6 }) },
      often<number | 'landed'>(1, 'landed'),
    ),
  }),
  { minLength: 1, maxLength: 40, size: 'max' },
)

const mannersBy = (loss: fc.Arbitrary<Manners['loss']>): fc.Arbitrary<Manners> =>
  fc.record({
    pieces: fc.array(fc.oneof(fc.integer({ min: 1, max: 40 }), fc.constant(100_000)), {
      minLength: 1,
      maxLength: 8,
    }),
    pauses: fc.array(fc.nat(3), { minLength: 1, maxLength: 8 }),
    luck: fc.array(fc.boolean(), { minLength: 1, maxLength: 8 }),
    loss,
  })

export const manners = mannersBy(fc.constant(undefined))

export const mannersThatLose = mannersBy(
  fc.record({ atByte: fc.integer({ min: 1, max: 6000 }), how: fc.constantFrom('end', 'reset') }),
)

/** How one flight landed. */
export interface Landing {
  tokens: string[]
  answer: Pick<QueryResult, 'rows' | 'command' | 'rowCount'> | undefined
  failure: string | undefined
}

/** All that one connection saw, from both of its ends. */
export interface Play {
  landings: Landing[]
  /** How often the callback of each was called. */
  answers: readonly number[]
  groups: readonly Group[]
  faults: readonly string[]
  /** Names of Parse messages. */
  parsed: readonly string[]
  lost: boolean
}

/** A statement's token says which flight it is of, which place it has there, and of which text it is. */
function tokensOf({ statements }: ScriptedFlight, flight: number): string[] {
  return statements.map(({ text }, place) => `${flight}.${place}.${idOf(text)}`)
}

export function idOf(text: string): string {
  return text.split(' ')[1] ?? ''
}

/** Sends the flights through one client: in pipeline mode as they leave, else one behind the other. */
export async function play(
  all: readonly ScriptedFlight[],
  manners: Manners,
  pipeline: boolean,
): Promise<Play> {
  const server = await ScriptedServer.open(manners)
  // Typed nowhere: @types/pg is behind.
  const settings = { host: '127.0.0.1', port: server.port, user: 'u', database: 'd', ssl: false, pipeline }
  const client = new pg.Client(settings)
  client.on('error', () => undefined)
  await client.connect()
  const answers = countAnswers(client)
  const landings: Promise<Landing>[] = []
  for (const [index, flight] of all.entries()) {
    if (flight.after === 'landed' || !pipeline) await Promise.all(landings)
    else for (let turns = flight.after; turns > 0; turns -= 1) await turn()
    const tokens = tokensOf(flight, index)
    const landed = fly(
      client,
      flight.statements.map((one, place) => statementOf(one, tokens[place] ?? '')),
    )
    landings.push(
      landed.then(
        ({ rows, command, rowCount }) => ({
          tokens,
          answer: { rows, command, rowCount },
          failure: undefined,
        }),
        (error: Error) => ({ tokens, answer: undefined, failure: error.message }),
      ),
    )
  }
  const landed = await Promise.all(landings)
  // What a server says after it was left could be an answer too many.
  const ended = once(client, 'end')
  await client.end()
  if (!server.lost) await ended
  for (let turns = 3; turns > 0; turns -= 1) await turn()
  server.close()
  const { groups, faults, parsed, lost } = server
  return { landings: landed, answers, groups, faults, parsed, lost }
}

export function statementOf({ text, named, rows, fails }: ScriptedStatement, token: string): Statement {
  return { text, name: named ? `name_${idOf(text)}` : undefined, values: [token, String(rows), fails] }
}

/** In the order of flying. A promise hides a second answer; the callback does not. */
function countAnswers(client: pg.Client): number[] {
  const counts: number[] = []
  const query = client.query.bind(client) as unknown as (flight: unknown) => unknown
  const counted = (flight: { callback: (...answer: unknown[]) => void }): unknown => {
    const { callback } = flight
    const index = counts.push(0) - 1
    flight.callback = (...answer) => {
      counts[index] = (counts[index] ?? 0) + 1
      callback(...answer)
    }
    return query(flight)
  }
  Object.assign(client, { query: counted })
  return counts
}

export function turn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve))
}

/** The place of the first statement that its own script lets fail, however lucky it is; -1: none. */
export function firstFailing({ statements }: ScriptedFlight): number {
  return statements.findIndex(({ text, fails }) => text.startsWith('bad') || fails !== 'never')
}

export function rowsOf(token: string, { text, rows }: ScriptedStatement): object[] {
  const [, id = '', columns = '0'] = text.split(' ')
  if (Number(columns) === 0) return []
  return Array.from({ length: rows }, (_, row) =>
    Object.fromEntries(
      Array.from({ length: Number(columns) }, (_, column) => [
        `${id}_${column}`,
        `${token} ${row} ${column}`,
      ]),
    ),
  )
}
