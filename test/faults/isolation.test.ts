import { setTimeout as sleep } from 'node:timers/promises'
import type pg from 'pg'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { connectionConfig } from '../../src/db/connection.js'
import { type Db, createDatabase } from '../../src/db/database.js'
import { Deadline } from '../../src/db/deadline.js'
import { classify, sqlState } from '../../src/db/pg-errors.js'
import { type Budgets, budgetsFor } from '../../src/db/pool.js'
import { createPostgresSources } from '../../src/db/postgres-source.js'
import { AppError } from '../../src/errors.js'
import type { BreakerOptions } from '../../src/resilience/circuit-breaker.js'
import { Cluster } from './cluster.js'
import { type Kind, type Person, kindBy, settle } from './isolation-flights.js'
import { type Random, between, randomFrom } from './soak-faults.js'
import { superuser } from './superuser.js'

const SECONDS = Number(process.env['ISOLATION_SECONDS'] ?? 60)
/** Gives the choices again; how the flights meet is the machine's. */
const SEED = Number(process.env['ISOLATION_SEED'] ?? Math.floor(Math.random() * 2 ** 31))
const CALLERS = 64
/** So many of them are one person, whose reads may share what says so. */
const OF_ONE_PERSON = 4
const LANES = 4
const NAME = 'isolation'

/** A lane stops a statement after half a second, the pool after a whole one. */
const BUDGETS: Budgets = {
  ...budgetsFor(30_000),
  acquireMs: 10_000,
  statementMs: 1000,
  lockMs: 300,
  queryMs: 8000,
}

/** What fails here on purpose must not close the way for what follows. */
const BREAKER: BreakerOptions = {
  failureRate: 1,
  slowRate: 1,
  minCalls: 1_000_000_000,
  windowMs: 10_000,
  buckets: 10,
  probes: 3,
  probeDeadlineMs: 4000,
  waitBaseMs: 200,
  waitCapMs: 1000,
}

let cluster: Cluster

beforeAll(async () => (cluster = await Cluster.create()))
afterAll(async () => await cluster.destroy())

const ENDS = ['done', 'failed', 'stopped', 'lost', 'unknown'] as const

/**
 * What became of one flight. `stopped`: its time was up, or nobody waited any more, and nothing was changed; `lost`,
 * with its connection, and `unknown`, which was not waited for to its end, may have been done.
 */
interface Flown {
  person: Person
  kind: Kind
  end: (typeof ENDS)[number]
}

/** Of each flight that nobody waits long for. */
const IMPATIENT = 0.06

/** What all of them came to. */
class Log {
  readonly flown = new Map<string, Flown>()
  /** What should never have happened, in words. */
  readonly wrong: string[] = []
  foreignRows = 0
  /** Backends by which reads were answered, newest last. */
  readonly pids: number[] = []
  kills = 0

  count(end: Flown['end'], of?: string): number {
    let count = 0
    for (const flown of this.flown.values())
      if (flown.end === end && (of === undefined || flown.kind.name === of)) count += 1
    return count
  }

  /** Of the reads, what so many backends have answered. */
  shareOf(backends: number): number {
    const counts = new Map<number, number>()
    for (const pid of this.pids) counts.set(pid, (counts.get(pid) ?? 0) + 1)
    const most = [...counts.values()].toSorted((a, b) => b - a).slice(0, backends)
    return most.reduce((sum, count) => sum + count, 0) / this.pids.length
  }

  kinds(end: Flown['end']): string {
    const names = [...new Set([...this.flown.values()].map(({ kind }) => kind.name))].toSorted()
    return names
      .flatMap((name) => (this.count(end, name) > 0 ? [`${name} ${this.count(end, name)}`] : []))
      .join(', ')
  }
}

/** Lost under a flight: a read is asked once more and may still be refused, what writes may be done or not. */
function isLoss(error: unknown, kind: Kind): boolean {
  if (!(error instanceof AppError)) return false
  const name = classify(error)
  if (name !== 'lost' && name !== 'restarting') return false
  return error.code === 'unavailable' || (kind.writes && error.code === 'outcome_unknown')
}

/** What an error means for a flight that may have lost its connection, or of which the answer was not waited for. */
function endOf(error: unknown, kind: Kind, lanesDie: boolean, deadline: Deadline | undefined): Flown['end'] {
  if (lanesDie && isLoss(error, kind)) return 'lost'
  if (deadline?.ended === undefined || !(error instanceof AppError)) return 'failed'
  if (error.code === 'deadline_exceeded') return 'stopped'
  return error.code === 'outcome_unknown' && kind.writes ? 'unknown' : 'failed'
}

interface Order {
  person: Person
  kind: Kind
  token: string
  deadline: Deadline | undefined
}

async function fly(
  log: Log,
  db: Db,
  { person, kind, token, deadline }: Order,
  lanesDie: boolean,
): Promise<void> {
  const { caller, answer } = kind.make(db, person, token, deadline)
  const wrong = (what: string): void => void log.wrong.push(`${kind.name}, ${token}: ${what}`)
  let end: Flown['end'] = 'done'
  try {
    const rows = (await answer) as { pid?: number }[]
    if (kind.fails !== undefined) wrong(`is no failure: ${JSON.stringify(rows)}`)
    if (caller.claim?.isConfirmed === false) wrong('is done, and its claim is open')
    if (kind.rows !== undefined) {
      for (const row of rows) {
        if (row.pid !== undefined) log.pids.push(row.pid)
        delete row.pid
      }
      const expected = kind.rows(person, token)
      const own = new Set(expected.map((row) => JSON.stringify(row)))
      const foreign = rows.map((row) => JSON.stringify(row)).filter((row) => !own.has(row))
      log.foreignRows += foreign.length
      if (foreign.length > 0) wrong(`foreign: ${foreign.join()}`)
      if (rows.length !== expected.length) wrong(`${rows.length} rows`)
    }
  } catch (error) {
    end = endOf(error, kind, lanesDie, deadline)
    const state = sqlState(error)
    const cause = error instanceof Error && error.cause instanceof Error ? error.cause : error
    const words = JSON.stringify(cause, ['message', 'detail', 'code']) + String(cause)
    if (caller.claim?.isConfirmed === true) wrong('failed, and its claim is confirmed')
    if (end === 'failed' && state !== kind.fails?.state) wrong(`fails of ${state}: ${words}`)
    if (end === 'failed' && kind.fails?.inItsWords === true && !words.includes(token))
      wrong(`fails of another's: ${words}`)
  }
  log.flown.set(token, { person, kind, end })
}

/** Ends one of the backends that have answered the last reads: a lane's, mostly. */
async function killLane(admin: pg.Client, log: Log, random: Random): Promise<void> {
  const pids = log.pids.slice(-40)
  const { rowCount } = await admin.query(
    'select pg_terminate_backend(pid) from pg_stat_activity where pid = $1 and application_name = $2',
    [pids[Math.floor(random() * pids.length)] ?? 0, NAME],
  )
  log.kills += rowCount ?? 0
}

/** Every row, past every policy: whose it is, and by what token. */
async function stored(admin: pg.Client): Promise<{ place: string; token: string; identity: string }[]> {
  const { rows } = await admin.query<{ place: string; token: string; identity: string }>(`
    select 'proof' as place, token, concat_ws(' ', owner, actor, as_role) as identity from proof where token not like 'seed%'
    union all
    select 'entries', key, concat_ws(' ', owner, updated_by, value) from config_entries where key not like 'seed%'
    union all
    select 'events', event::json ->> 'token', concat_ws(' ', actor_id, actor_type || ':' || actor_id, 'gary_caller')
      from audit_events where source = 'client'`)
  return rows
}

/** What is there against what was told. */
function compare(log: Log, rows: Awaited<ReturnType<typeof stored>>): void {
  const found = new Set<string>()
  for (const { place, token, identity } of rows) {
    const flown = log.flown.get(token)
    const wrong = (what: string): void => void log.wrong.push(`${place} ${token} of ${identity}: ${what}`)
    if (flown === undefined) wrong('nobody wrote it')
    else {
      const { person, end, kind } = flown
      if (identity !== `${person.id} user:${person.id} gary_caller`) wrong(`${person.id} wrote it`)
      if (end === 'failed' || end === 'stopped' || kind.fails !== undefined) wrong('it was refused')
    }
    if (found.has(token)) wrong('it is there twice')
    found.add(token)
  }
  for (const [token, { end, kind }] of log.flown)
    if (end === 'done' && kind.writes && !found.has(token))
      log.wrong.push(`${kind.name} ${token}: done and not there`)
}

function open(database: string, lifetimeMs: number): ReturnType<typeof createPostgresSources> {
  return createPostgresSources({
    connection: connectionConfig({ url: cluster.url(database), ssl: 'disable', sslCa: undefined }),
    size: 12,
    lanes: LANES,
    prepare: true,
    streams: { size: 1, budgets: BUDGETS },
    budgets: BUDGETS,
    pooled: false,
    applicationName: NAME,
    lifetimeMs,
    slowMs: 5000,
    breaker: BREAKER,
    reconnectCapMs: 200,
    misconfiguredCapMs: 1000,
    onIdleError: () => {},
    onTransition: () => {},
    onAttemptFailed: () => {},
  })
}

async function run(seconds: number, lanesDie: boolean): Promise<void> {
  const random = randomFrom(SEED)
  const database = await cluster.database()
  const admin = await superuser(cluster, database)
  const people = await settle(admin, CALLERS / OF_ONE_PERSON)
  const holder = await superuser(cluster, database)
  await holder.query('begin; select from held for update')
  const { requests, streams } = open(database, lanesDie ? 20_000 : 3_600_000)
  const db = createDatabase(requests)
  const log = new Log()
  const endsAtMs = performance.now() + seconds * 1000
  let flights = 0
  const ask = async (person: Person): Promise<void> => {
    while (performance.now() < endsAtMs) {
      const token = `t${(flights += 1)}`
      const deadline = random() < IMPATIENT ? new Deadline() : undefined
      const end = random() < 0.5 ? 'expired' : 'client_gone'
      const patience = setTimeout(() => deadline?.end(end), between(random, 0, 60))
      await fly(log, db, { person, kind: kindBy(random), token, deadline }, lanesDie)
      clearTimeout(patience)
    }
  }
  const kill = async (): Promise<void> => {
    while (performance.now() < endsAtMs) {
      await sleep(between(random, 700, 1300))
      await killLane(admin, log, random)
    }
  }
  const callers = Array.from({ length: OF_ONE_PERSON }, () => people.map(ask)).flat()
  await Promise.all([...callers, lanesDie ? kill() : undefined])
  const ready = requests.health().lanes?.ready
  await Promise.all([requests.end(5000), streams.end(5000)])
  await holder.end()
  const rows = await stored(admin)
  await admin.end()
  compare(log, rows)

  process.stdout.write(
    `    seed ${SEED}: ${flights} flights in ${seconds} s, ${rows.length} rows written, foreign rows ${log.foreignRows}, ` +
      `${(100 * log.shareOf(LANES)).toFixed(1)} % of the reads by ${LANES} backends, ${log.kills} killed\n` +
      ENDS.map((end) => `    ${end} ${log.count(end)}: ${log.kinds(end) || 'none'}\n`).join(''),
  )
  expect(log.wrong.slice(0, 20), `of ${log.wrong.length}; ISOLATION_SEED=${SEED} plays it again`).toEqual([])
  expect(log.foreignRows).toBe(0)
  expect(log.flown.size).toBe(flights)
  expect(flights).toBeGreaterThan(20 * seconds)
  expect(log.count('failed') / flights).toBeGreaterThan(0.12)
  if (lanesDie) expect(log.kills, 'no lane was killed').toBeGreaterThan(seconds / 3)
  else {
    expect(ready).toBe(LANES)
    expect(log.shareOf(LANES), 'reads by the lanes').toBeGreaterThan(0.5)
  }
}

describe(`${CALLERS} callers on ${LANES} shared connections, of whose flights a fifth fails in every way`, () => {
  it(
    'get their own rows, write under their own names, and fail of their own errors',
    async () => {
      await run(SECONDS / 4, false)
    },
    SECONDS * 1000 + 60_000,
  )

  it(
    'also while the connections are killed under them: what is lost is told as lost, and nothing else',
    async () => {
      await run(SECONDS, true)
    },
    SECONDS * 1000 + 60_000,
  )
})
