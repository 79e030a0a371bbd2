import { readFileSync } from 'node:fs'
import { CompiledQuery } from 'kysely'
import pg from 'pg'

export interface Report {
  name: string
  title: string
  /** Of numbers, texts and days. */
  columns: readonly string[]
  /** Those of numbers and days; all others are guarded in CSV, see reportCsv. */
  plain: readonly string[]
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
    plain: ['day', 'succeeded', 'failed', 'users'],
    parameters: [
      { name: 'from', title: 'First day (UTC), 30 days ago by default', daysAgo: 30 },
      { name: 'to', title: 'Day after the last one (UTC), tomorrow by default', daysAgo: -1 },
    ],
    sql: statement('logins-per-day'),
  },
]

/** The run of a report with its days bound; one row more than the cap, to know whether there are more. */
export function reportQuery(report: Report, days: readonly string[]): CompiledQuery<Record<string, unknown>> {
  const query = CompiledQuery.raw(`${report.sql}\n LIMIT ${ROW_CAP + 1}`, days.map(instant))
  return query as CompiledQuery<Record<string, unknown>>
}

/**
 * The same as CSV made by PostgreSQL, which takes no parameters there: the days are literals. Text that a spreadsheet
 * would take for a formula gets an apostrophe (OWASP CSV Injection), unless `raw`.
 */
export function reportCsv(report: Report, days: readonly string[], raw: boolean): CompiledQuery<Uint8Array> {
  const text = report.sql.replaceAll(/\$(\d+)/g, (_, position: string) =>
    pg.escapeLiteral(instant(days[Number(position) - 1] ?? '')),
  )
  const columns = report.columns.map((column) =>
    raw || report.plain.includes(column) ? `"${column}"` : `${guarded(`"${column}"`)} AS "${column}"`,
  )
  const rows = `SELECT ${columns.join(', ')} FROM (${text}\n LIMIT ${ROW_CAP}) AS report`
  return CompiledQuery.raw(`${COPY_HEAD}${rows}${COPY_TAIL}`) as CompiledQuery<Uint8Array>
}

export const COPY_HEAD = 'copy ('
export const COPY_TAIL = ') to stdout with (format csv, header)'

/** What a spreadsheet takes for the beginning of a formula, the second four in full width. */
const FORMULA = ['=', '+', '-', '@', '\uFF1D', '\uFF0B', '\uFF0D', '\uFF20', '\t', '\r']
  .map((character) => `'${character}'`)
  .join(', ')

function guarded(column: string): string {
  const text = `CAST(${column} AS text)`
  return `CASE WHEN substring(${text}, 1, 1) IN (${FORMULA}) THEN '''' || ${text} ELSE ${text} END`
}

function instant(day: string): string {
  return `${day}T00:00:00Z`
}

function statement(name: string): string {
  return readFileSync(new URL(`${name}.sql`, import.meta.url), 'utf8').trim()
}
