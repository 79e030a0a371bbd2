// What a run has measured, as tables.
import { median, medianRatio } from './statistics.mjs'
import { figure, table } from './table.mjs'

/** @typedef {import('./works.mjs').Reading} Reading */
/** @typedef {Map<Reading, import('./measure.mjs').Measured[]>} Seen */
/** @typedef {{ work: import('./works.mjs').Work, seen: Seen }} Result */
/** @typedef {{ name: string, startMs: number, idleMb: number, loadedMb: number }} Memory */

/** @type {Record<Reading, string>} */
const TITLES = {
  service: 'service',
  known: 'known caller',
  bare: 'bare',
  checked: 'bare + session',
  prisma: 'Hono + Prisma',
  fastify: 'Fastify + postgres.js',
}
const START_GOALS = { startMs: 450, idleMb: 85, loadedMb: 170 }

const RATES = `Rates are requests a second, of S8 rows. "service" is the whole service: it finds out who asks and runs under row-level
security. "known" is its data layer under row-level security for a caller who is known already. "bare" is node:http and
pg with named statements, a superuser's login, no framework and no session check; "checked" is bare with a session check
of its own ahead. Ratios are medians of those within a round; "goal" is the one that the work is judged by: to bare, of
the whole service where who asks is part of the work (S1, S2A, where bare checks and reads, and S8, where bare is COPY),
else of the known caller. The rest about signing in (S7) is in \`npm run bench:sign-in\`.`
const COSTS = `Microseconds of CPU a request (S8: a row): of the process with Node, of all of PostgreSQL, and round trips counted at
the wire (each Sync, each simple Query). PostgreSQL is "-" when it runs on another machine.`
const PEERS = `The peers have the same tables and indices, statements of their own and a superuser's login, so no row-level
security: Hono with Prisma's client as its documentation writes it, Fastify with postgres.js and its tagged templates.`

/**
 * @param {{ head: string[], results: Result[], trips: Map<Reading, Map<string, number>>, memory: Memory[] }} run
 * @param {(line: string) => void} say @returns {number} requests that failed
 */
export function printReport({ head, results, trips, memory }, say) {
  say(`\n${head.join('\n')}\n`)
  say(ratesTable(results))
  say(`\n${RATES}\n`)
  const own = /** @type {const} */ (['service', 'known', 'bare', 'checked'])
  say(costsTable(results, trips, own))
  say(`\n${COSTS}\n`)
  const peers = /** @type {const} */ (['prisma', 'fastify']).filter((peer) => trips.has(peer))
  if (peers.length > 0) {
    say(peersTable(results, peers))
    say(`\n${PEERS}\n`)
    say(`${costsTable(results, trips, peers)}\n`)
  }
  say(memoryTable(memory))
  return sayFailures(results, say)
}

/** @param {Result[]} results */
function ratesTable(results) {
  const rows = results.map(({ work, seen }) => {
    const rate = (/** @type {Reading} */ reading) => figure(of(seen, reading, 'perSecond'), 1)
    const p = (/** @type {'p50' | 'p99'} */ what) => figure(of(seen, 'service', what), 1)
    const judged = ratio(seen, work.judged, 'bare')
    return [
      `${work.id} ${work.name}`,
      rate('service'),
      work.isStream ? '-' : `${p('p50')} / ${p('p99')}`,
      rate('known'),
      rate('bare'),
      rate('checked'),
      figure(ratio(seen, 'service', 'bare'), 2),
      figure(ratio(seen, 'service', 'checked'), 2),
      figure(ratio(seen, 'known', 'bare'), 2),
      work.goal === undefined || Number.isNaN(judged)
        ? '-'
        : `${work.goal} ${judged >= work.goal ? 'met' : 'MISS'}`,
    ]
  })
  return table(
    [
      'work',
      'service',
      'p50 / p99 ms',
      'known',
      'bare',
      'checked',
      'service/bare',
      'service/checked',
      'known/bare',
      'goal',
    ],
    rows,
  )
}

/** @param {Result[]} results @param {Map<Reading, Map<string, number>>} trips @param {readonly Reading[]} readings */
function costsTable(results, trips, readings) {
  const rows = results.map(({ work, seen }) => [
    work.isStream ? `${work.id} a row` : `${work.id} ${work.name}`,
    ...readings.map((reading) => {
      if (!seen.has(reading)) return '-'
      const cpu = (/** @type {'cpu' | 'postgres'} */ what) => figure(of(seen, reading, what), 1)
      return [cpu('cpu'), cpu('postgres'), figure(trips.get(reading)?.get(work.id) ?? Number.NaN, 1)].join(
        ' · ',
      )
    }),
  ])
  return table(['us Node · us PostgreSQL · trips', ...readings.map((reading) => TITLES[reading])], rows)
}

/** @param {Result[]} results @param {readonly Reading[]} peers */
function peersTable(results, peers) {
  const rows = results
    .filter(({ seen }) => peers.some((peer) => seen.has(peer)))
    .map(({ work, seen }) =>
      [`${work.id} ${work.name}`].concat(
        peers.flatMap((peer) => [
          figure(of(seen, peer, 'perSecond'), 1),
          figure(ratio(seen, peer, 'bare'), 2),
          figure(ratio(seen, 'service', peer), 2),
          figure(ratio(seen, 'known', peer), 2),
        ]),
      ),
    )
  return table(
    ['work', ...peers.flatMap((peer) => [TITLES[peer], 'to bare', 'service/it', 'known/it'])],
    rows,
  )
}

/** @param {Memory[]} memory */
function memoryTable(memory) {
  const rows = memory.map(({ name, startMs, idleMb, loadedMb }) => [
    TITLES[/** @type {Reading} */ (name)],
    figure(startMs),
    figure(idleMb),
    figure(loadedMb),
  ])
  const { startMs, idleMb, loadedMb } = START_GOALS
  const goals = [`goal of the service`, String(startMs), String(idleMb), String(loadedMb)]
  return table(['S9', 'start to first 200, ms', 'idle, MB', 'after load, MB'], [...rows, goals])
}

/** @param {Result[]} results @param {(line: string) => void} say */
function sayFailures(results, say) {
  let failed = 0
  for (const { work, seen } of results)
    for (const [reading, all] of seen) {
      const errors = all.reduce((sum, one) => sum + one.errors, 0)
      const first = all.find(({ firstError }) => firstError !== '')
      if (errors > 0)
        say(`\n${work.id} ${TITLES[reading]}: ${errors} FAILED, the first: ${first?.firstError}`)
      failed += errors
    }
  if (failed > 0) say(`\n*** ${failed} requests FAILED: these numbers do not count ***`)
  return failed
}

/** @param {Seen} seen @param {Reading} reading @param {'perSecond' | 'p50' | 'p99' | 'cpu' | 'postgres'} what */
function of(seen, reading, what) {
  return median((seen.get(reading) ?? []).map((one) => one[what]))
}

/** @param {Seen} seen @param {Reading} ours @param {Reading} theirs */
function ratio(seen, ours, theirs) {
  const rates = (/** @type {Reading} */ reading) =>
    (seen.get(reading) ?? []).map(({ perSecond }) => perSecond)
  return medianRatio(rates(ours), rates(theirs))
}
