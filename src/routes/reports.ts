import { createRoute, z } from '@hono/zod-openapi'
import { asCaller, type Caller } from '../db/as-caller.js'
import { recordEvent } from '../db/audit.js'
import type { Db } from '../db/database.js'
import { REPORTS, ROW_CAP, type Report, reportCsv, reportQuery } from '../db/reports/catalog.js'
import { streamAsCaller } from '../db/transaction.js'
import { AppError, notFound } from '../errors.js'
import { type CallerDeps, guard } from './caller.js'
import { json, problems } from './schemas.js'
import { streamed } from './streamed.js'
import { createRouter } from './validate.js'

export interface ReportDeps extends CallerDeps {
  /** A pool of its own: a slow reader holds a connection as long as it reads. */
  streams: Db
}

const query = z
  .object({
    format: z.enum(['json', 'ndjson', 'csv']).default('json'),
    raw: z.enum(['true', 'false']).default('false'),
  })
  .catchall(z.string())

/** The catalogue, and one report: bound parameters, as gary_analyst, streamed, each run audited. */
export function reportRoutes(deps: ReportDeps) {
  const { db, streams } = deps
  return createRouter()
    .openapi(
      createRoute({
        method: 'get',
        path: '/v1/reports',
        summary: 'The reports there are, with their parameters',
        ...guard(deps, 'reports.read'),
        request: { query: z.strictObject({}) },
        responses: {
          200: {
            description: 'The catalogue',
            ...json(
              z.object({
                items: z.array(
                  z.object({
                    name: z.string(),
                    title: z.string(),
                    columns: z.array(z.string()),
                    parameters: z.array(z.object({ name: z.string(), title: z.string() })),
                  }),
                ),
              }),
            ),
          },
          ...problems,
        },
      }),
      (c) => {
        const items = REPORTS.map(({ name, title, columns, parameters }) => ({
          name,
          title,
          columns: [...columns],
          parameters: parameters.map((parameter) => ({ name: parameter.name, title: parameter.title })),
        }))
        return c.json({ items }, 200)
      },
    )
    .openapi(
      createRoute({
        method: 'get',
        path: '/v1/reports/{name}',
        summary: 'Run a report; X-Row-Limit tells how many rows it may have',
        ...guard(deps, 'reports.read'),
        request: { params: z.object({ name: z.string() }), query },
        responses: {
          200: {
            description: 'The rows, streamed',
            content: {
              'application/json': {
                schema: z.object({ columns: z.array(z.string()), rows: z.array(z.looseObject({})) }),
              },
              'application/x-ndjson': { schema: z.string() },
              'text/csv': { schema: z.string() },
            },
          },
          ...problems,
        },
      }),
      async (c) => {
        const report = REPORTS.find(({ name }) => name === c.req.valid('param').name)
        if (report === undefined) throw notFound('report')
        const { format, raw, ...given } = c.req.valid('query')
        const days = daysOf(report, given)
        const caller = c.get('caller')
        const correlation = c.get('correlation')
        c.header('content-type', CONTENT_TYPES[format])
        c.header('x-row-limit', String(ROW_CAP))
        // Answered as a GET would be, of which nothing but the head is sent: no rows, and nothing to audit.
        if (c.req.method === 'HEAD') return c.body(null) as never
        c.get('deadlineTimer').stop()
        await asCaller(
          db,
          caller,
          recordEvent(db, {
            caller,
            correlation,
            eventType: 'user_action',
            level: 'info',
            action: 'report.run',
            target: `reports/${report.name}`,
            message: `Report ${report.name} run`,
            metadata: { format, parameters: days },
          }),
        )
        const analyst: Caller = { ...caller, databaseRole: 'gary_analyst' }
        // The first batch decides the status: what fails here is still a problem document.
        if (format === 'csv') {
          const csv = streamAsCaller(streams, analyst, reportCsv(report, days, raw === 'true'))
          return streamed(c, all(await csv.next(), csv), () => csv.return(undefined)) as never
        }
        const rows = streamAsCaller(streams, analyst, reportQuery(report, days))
        return streamed(c, encode(report, format, await rows.next(), rows), () =>
          rows.return(undefined),
        ) as never
      },
    )
}

const CONTENT_TYPES = {
  json: 'application/json',
  ndjson: 'application/x-ndjson',
  csv: 'text/csv; charset=utf-8; header=present',
}

type Row = Record<string, unknown>

/** The parameters as given or by default; unknown names and what is no day are refused (400). */
function daysOf(report: Report, given: Record<string, string>): string[] {
  const unknown = Object.keys(given).find(
    (name) => !report.parameters.some((parameter) => parameter.name === name),
  )
  if (unknown !== undefined)
    throw new AppError('invalid_request', `${unknown}: is not a parameter of this report.`)
  return report.parameters.map(({ name, daysAgo }) => {
    const day = given[name] ?? new Date(Date.now() - daysAgo * 86_400_000).toISOString().slice(0, 10)
    if (!z.iso.date().safeParse(day).success)
      throw new AppError('invalid_request', `${name}: must be a day as 2026-01-31.`)
    return day
  })
}

/** The first batch and the others, piece by piece. */
async function* all(
  first: IteratorResult<Uint8Array[]>,
  rest: AsyncGenerator<Uint8Array[]>,
): AsyncGenerator<Uint8Array> {
  for (let batch = first; batch.done !== true; batch = await rest.next()) yield* batch.value
}

async function* encode(
  report: Report,
  format: 'json' | 'ndjson',
  first: IteratorResult<Row[]>,
  rest: AsyncGenerator<Row[]>,
): AsyncGenerator<string> {
  let count = 0
  if (format === 'json')
    yield `{"report":${JSON.stringify(report.name)},"columns":${JSON.stringify(report.columns)},"rows":[`
  for (let batch = first; batch.done !== true && count < ROW_CAP; batch = await rest.next()) {
    const rows = batch.value.slice(0, ROW_CAP - count)
    if (format === 'json')
      yield `${count === 0 || rows.length === 0 ? '' : ','}${rows.map((row) => JSON.stringify(row)).join(',')}`
    else yield rows.map((row) => `${JSON.stringify(row)}\n`).join('')
    count += rows.length
    if (batch.value.length > rows.length) break
  }
  if (format === 'json') yield `],"row_count":${count}}`
}
