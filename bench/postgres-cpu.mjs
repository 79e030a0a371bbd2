// CPU time of a whole PostgreSQL server: its backends come and go, so it is that of the postmaster with all its
// children, those that have ended among them.
import { readFileSync, readdirSync } from 'node:fs'
import pg from 'pg'

const TICK_MICROS = 10_000

/**
 * Answers with a function that tells the microseconds so far, to 10 ms; NaN when the server is on another machine,
 * or without /proc.
 * @param {string} url @returns {Promise<() => number>}
 */
export async function watchPostgres(url) {
  const client = new pg.Client({ connectionString: url, ssl: false })
  await client.connect()
  try {
    const { rows } = await client.query('select pg_backend_pid() as pid, current_database() as name')
    const { pid, name } = rows[0]
    // A process of that number may be another one on this machine: a backend's title names its database.
    const title = readFileSync(`/proc/${pid}/cmdline`, 'utf8')
    const postmaster = title.startsWith('postgres') && title.includes(name) ? statOf(pid)?.parent : undefined
    return postmaster === undefined ? () => Number.NaN : () => cpuOf(postmaster)
  } catch {
    return () => Number.NaN
  } finally {
    await client.end()
  }
}

/** @param {number} postmaster */
function cpuOf(postmaster) {
  const stats = readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map((name) => statOf(Number(name)))
  const ticks = stats.map((stat) => {
    if (stat?.pid === postmaster) return stat.own + stat.ended
    return stat?.parent === postmaster ? stat.own : 0
  })
  return ticks.reduce((sum, value) => sum + value, 0) * TICK_MICROS
}

/** See proc(5), /proc/pid/stat. @param {number} pid */
function statOf(pid) {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, 'utf8')
    const fields = text
      .slice(text.lastIndexOf(')') + 2)
      .split(' ')
      .map(Number)
    const [parent = 0, own = 0, system = 0, ended = 0, endedSystem = 0] = [1, 11, 12, 13, 14].map(
      (index) => fields[index],
    )
    return { pid, parent, own: own + system, ended: ended + endedSystem }
  } catch {
    return undefined
  }
}
