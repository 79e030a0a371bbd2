import { createHash, timingSafeEqual } from 'node:crypto'
import { createRoute, z } from '@hono/zod-openapi'
import type { Context, MiddlewareHandler } from 'hono'
import type { Correlation } from '../db/audit.js'
import type { SourceHealth } from '../db/source.js'
import { AppError, notFound } from '../errors.js'
import type { AppEnv } from './context.js'
import { json, problems } from './schemas.js'
import { createRouter, jsonBody } from './validate.js'

const seconds = z.number().nonnegative()
const databaseSchema = z.object({
  breaker: z
    .object({
      state: z.enum(['closed', 'open', 'half_open', 'forced_open', 'forced_closed']),
      since_seconds: seconds,
      calls: z.int(),
      failures: z.int(),
      slow: z.int(),
      openings: z.int(),
      probes_in_flight: z.int(),
      retry_after_seconds: seconds.nullable(),
    })
    .nullable()
    .openapi({ description: 'null in memory, where there is no server to lose' }),
  next_probe_seconds: seconds.nullable(),
  pool: z.object({ total: z.int(), idle: z.int(), waiting: z.int(), limit: z.int() }),
  lanes: z
    .object({ ready: z.int(), in_flight: z.int(), limit: z.int() })
    .nullable()
    .openapi({ description: 'Shared connections beside the pool; null where there are none' }),
  answered_seconds_ago: seconds.nullable(),
  last_error: z.object({ class: z.string(), seconds_ago: seconds }).nullable(),
})
const stateSchema = z.object({
  status: z.enum(['ok', 'starting', 'unavailable', 'draining']),
  database: databaseSchema,
})
const detailedSchema = stateSchema.extend({
  streams: databaseSchema,
  process: z.object({
    uptime_seconds: seconds,
    rss_bytes: z.int(),
    heap_used_bytes: z.int(),
    active_resources: z.record(z.string(), z.int()),
    node: z.string(),
  }),
})
const forceBody = z.strictObject({ state: z.enum(['open', 'closed', 'auto']) })

export type DatabaseState = z.output<typeof databaseSchema>
export type HealthState = z.output<typeof stateSchema>

export interface HealthDeps {
  /** From what is known: asking it costs no connection and no time. */
  health: () => HealthState
  streamHealth: () => DatabaseState
  /** Forces this replica's circuit; never needs the database. */
  forceCircuit: (to: 'open' | 'closed' | 'auto', correlation: Correlation) => void
  /** null: the operators' routes are not there (404). */
  operationsToken: string | null
}

/** Liveness of the process and readiness with the database, for anyone; more, and the circuit, for operators. */
export function healthRoutes({ health, streamHealth, forceCircuit, operationsToken }: HealthDeps) {
  const responses = {
    200: { description: 'Ready: the database answered within the last 10 s', ...json(stateSchema) },
    503: { description: 'Not ready: starting, draining, or the database is lost', ...json(stateSchema) },
  }
  const ready = (c: Context<AppEnv>) => {
    const state = health()
    if (state.status === 'ok') return c.json(state, 200)
    const wait = state.database.breaker?.retry_after_seconds ?? 0
    c.header('retry-after', String(Math.max(1, Math.ceil(wait))))
    return c.json(state, 503)
  }
  const live = {
    responses: { 200: { description: 'The process runs', ...json(z.object({ status: z.literal('ok') })) } },
  }
  const operators = requireOperator(operationsToken)
  return createRouter()
    .openapi(createRoute({ method: 'get', path: '/health', summary: 'Readiness', responses }), ready)
    .openapi(createRoute({ method: 'get', path: '/ready', summary: 'Readiness', responses }), ready)
    .openapi(createRoute({ method: 'get', path: '/health/live', summary: 'Liveness', ...live }), (c) =>
      c.json({ status: 'ok' as const }, 200),
    )
    .openapi(createRoute({ method: 'get', path: '/healthz', summary: 'Liveness', ...live }), (c) =>
      c.json({ status: 'ok' as const }, 200),
    )
    .openapi(
      createRoute({
        method: 'get',
        path: '/health/detailed',
        summary: 'State of both pools and of the process (OPERATIONS_TOKEN)',
        middleware: operators,
        responses: { 200: { description: 'Always 200', ...json(detailedSchema) }, ...problems },
      }),
      (c) => c.json({ ...health(), streams: streamHealth(), process: processState() }, 200),
    )
    .openapi(
      createRoute({
        method: 'post',
        path: '/health/circuit',
        summary: "Force this replica's circuit open or closed, or let it decide again (OPERATIONS_TOKEN)",
        middleware: [operators, jsonBody('strict')] as const,
        request: { body: { required: true, ...json(forceBody) } },
        responses: { 200: { description: 'The state now', ...json(stateSchema) }, ...problems },
      }),
      (c) => {
        forceCircuit(c.req.valid('json').state, c.get('correlation'))
        return c.json(health(), 200)
      },
    )
}

/** What a source tells of itself, in the words of the API. */
export function databaseState({
  breaker,
  pool,
  lanes,
  nextProbeMs,
  sinceAnswerMs,
  lastError,
}: SourceHealth): DatabaseState {
  return {
    breaker: breaker && {
      state: breaker.state,
      since_seconds: inSeconds(breaker.sinceMs),
      calls: breaker.calls,
      failures: breaker.failures,
      slow: breaker.slow,
      openings: breaker.openings,
      probes_in_flight: breaker.probesInFlight,
      retry_after_seconds: breaker.retryAfterMs === null ? null : inSeconds(breaker.retryAfterMs),
    },
    next_probe_seconds: nextProbeMs === null ? null : inSeconds(nextProbeMs),
    pool,
    lanes: lanes && { ready: lanes.ready, in_flight: lanes.inFlight, limit: lanes.limit },
    answered_seconds_ago: sinceAnswerMs === null ? null : inSeconds(sinceAnswerMs),
    last_error: lastError && { class: lastError.class, seconds_ago: inSeconds(lastError.sinceMs) },
  }
}

function inSeconds(ms: number): number {
  return Math.round(ms) / 1000
}

function processState(): z.output<typeof detailedSchema>['process'] {
  const { rss, heapUsed } = process.memoryUsage()
  const resources: Record<string, number> = {}
  for (const kind of process.getActiveResourcesInfo()) resources[kind] = (resources[kind] ?? 0) + 1
  return {
    uptime_seconds: Math.round(process.uptime()),
    rss_bytes: rss,
    heap_used_bytes: heapUsed,
    active_resources: resources,
    node: process.version,
  }
}

/** Compared by digest, so that the time taken says nothing of the token, nor of its length. */
function requireOperator(token: string | null): MiddlewareHandler<AppEnv> {
  const digest = (text: string): Buffer => createHash('sha256').update(text).digest()
  return async function requireOperator(c, next) {
    if (token === null) throw notFound('address')
    const given = /^bearer +(\S+)$/i.exec(c.req.header('authorization') ?? '')?.[1]
    if (given === undefined || !timingSafeEqual(digest(given), digest(token))) {
      throw new AppError('unauthenticated', 'This is for operators: send OPERATIONS_TOKEN as bearer.', {
        headers: { 'www-authenticate': 'Bearer realm="gary-operations"' },
      })
    }
    await next()
  }
}
