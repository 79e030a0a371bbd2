// A .cpuprofile told as a table: self time by function, and by package.
import { mkdir, readFile, readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { end } from './children.mjs'
import { measure, startLoad } from './measure.mjs'
import { startServer } from './servers.mjs'

const TOP = 30

/**
 * Each work on a process of its own, of which the second measurement counts.
 * @param {{ url: string, folder: string }} db @param {import('./works.mjs').Work[]} works
 * @param {string} name of the server @param {number} seconds @param {(line: string) => void} say
 * @returns {Promise<number>} requests that failed
 */
export async function printProfiles(db, works, name, seconds, say) {
  const meters = { load: startLoad(db.folder), postgresCpu: () => Number.NaN }
  let failed = 0
  for (const work of works) {
    const requests = work.requests[/** @type {import('./works.mjs').Reading} */ (name)]
    if (requests === undefined) continue
    const folder = join(db.folder, `profile-${work.id}`)
    await mkdir(folder)
    const server = await startServer(name, db, { nodeArgs: ['--cpu-prof', `--cpu-prof-dir=${folder}`] })
    await measure(meters, server, work, requests, seconds)
    const seen = await measure(meters, server, work, requests, seconds)
    await end(server.child)
    failed += seen.errors
    say(
      `\n${work.id} ${work.name}: ${seen.perSecond.toFixed(0)}/s, ${seen.cpu.toFixed(0)} us of CPU each, ${seen.errors} errors ${seen.firstError}`,
    )
    await printProfile(folder, seconds, say)
  }
  return failed
}

/**
 * @param {string} folder with one .cpuprofile @param {number} seconds of its end that count
 * @param {(line: string) => void} say
 */
async function printProfile(folder, seconds, say) {
  const name = (await readdir(folder)).find((file) => file.endsWith('.cpuprofile'))
  if (name === undefined) return say('  no profile was written')
  const { nodes, samples, timeDeltas, startTime, endTime } = JSON.parse(
    await readFile(join(folder, name), 'utf8'),
  )
  /** @type {Map<number, any>} */
  const byId = new Map(nodes.map((/** @type {any} */ node) => [node.id, node]))
  /** @type {Map<number, number>} */
  const parents = new Map()
  for (const { id, children = [] } of nodes) for (const child of children) parents.set(child, id)
  /** Node's own functions are told with the one that called into Node. @param {number | undefined} id */
  const caller = (id) => {
    for (let at = id; at !== undefined; at = parents.get(at)) {
      const { url, functionName } = byId.get(at).callFrame
      if (url !== '' && !url.startsWith('node:')) return ` < ${functionName || '(anonymous)'} ${place(url)}`
    }
    return ''
  }
  let now = startTime
  /** @type {Map<string, number>} */
  const byFunction = new Map()
  /** @type {Map<string, number>} */
  const byPackage = new Map()
  let busy = 0
  for (const [index, id] of samples.entries()) {
    now += timeDeltas[index]
    if (now < endTime - seconds * 1e6) continue
    const { functionName, url, lineNumber } = byId.get(id).callFrame
    if (functionName === '(idle)' || functionName === '(program)') continue
    const micros = timeDeltas[index]
    busy += micros
    const at = place(url)
    add(
      byFunction,
      `${functionName || '(anonymous)'}  ${at}:${lineNumber + 1}${/^(native|node:)/.test(at) ? caller(id) : ''}`,
      micros,
    )
    add(byPackage, packageOf(at), micros)
  }
  say(`  ${(busy / 1e6).toFixed(2)} s busy in JavaScript; by package:`)
  for (const [what, micros] of top(byPackage, 14)) say(`  ${share(micros, busy)}  ${what}`)
  say('  by function (self time):')
  for (const [what, micros] of top(byFunction, TOP)) say(`  ${share(micros, busy)}  ${what}`)
}

/** @param {Map<string, number>} map @param {string} key @param {number} value */
function add(map, key, value) {
  map.set(key, (map.get(key) ?? 0) + value)
}

/** @param {Map<string, number>} map @param {number} count */
function top(map, count) {
  return [...map].sort((a, b) => b[1] - a[1]).slice(0, count)
}

/** @param {number} part @param {number} whole */
function share(part, whole) {
  return `${((100 * part) / whole).toFixed(1)} %`.padStart(7)
}

/** @param {string} url */
function place(url) {
  return (
    url
      .replace(/^file:\/\//, '')
      .replace(/^.*\/node_modules\//, '')
      .replace(/^.*\/dist\//, 'dist/') || 'native'
  )
}

/** @param {string} at */
function packageOf(at) {
  if (at.startsWith('dist/')) return at.split('/').slice(0, 3).join('/')
  if (at.startsWith('node:')) return at
  return at
    .split('/')
    .slice(0, at.startsWith('@') ? 2 : 1)
    .join('/')
}
