import { readFileSync } from 'node:fs'
import { CompiledQuery } from 'kysely'

export interface Report {
  name: string
  title: string
  columns: readonly string[]
  /** Parameters in the order of the statement's $n; each is a day, made an instant in UTC. */
  parameters: readonly { name: string; title: string; daysAgo: number }[]
  sql: string
}

/** Rows a run may answer with; more are cut, and the answer says so. */
export const ROW_CAP = 100_000

export const REPORTS: readonly Report[] = [
  {
    name: 'logins-per-day',
    title: 'Sign-ins a day: succeeded, failed, and by how many users',
    columns: ['day', 'succeeded', 'failed', 'users'],
    parameters: [
      { name: 'from', title: 'First day (UTC), 30 days ago by default', daysAgo: 30 },
      { name: 'to', title: 'Day after the last one (UTC), tomorrow by default', daysAgo: -1 },
    ],
    sql: statement('logins-per-day'),
  },
]

/** The run of a report with its days bound; one row more than the cap, to know whether there are more. */
export function reportQuery(report: Report, days: readonly string[]): CompiledQuery<Record<string, unknown>> {
  const instants = days.map((day) => `${day}T00:00:00Z`)
  const query = CompiledQuery.raw(`${report.sql}\n LIMIT ${ROW_CAP + 1}`, instants)
  return query as CompiledQuery<Record<string, unknown>>
}

function statement(name: string): string {
  return readFileSync(new URL(`${name}.sql`, import.meta.url), 'utf8').trim()
}
