import { createRoute, z } from '@hono/zod-openapi'
import type { Context } from 'hono'
import type { AppEnv } from './context.js'
import { json } from './schemas.js'
import { createRouter } from './validate.js'

/** What the process knows of its state: handed in, so that asking never costs a connection. */
export interface HealthState {
  status: 'ok' | 'starting' | 'unavailable' | 'draining'
  /** Seconds since the database last answered; null before the first answer. */
  database_answered_seconds_ago: number | null
}

export interface HealthDeps {
  /** Bounded: answers within a second also when the database does not. */
  health: () => Promise<HealthState>
}

const stateSchema = z.object({
  status: z.enum(['ok', 'starting', 'unavailable', 'draining']),
  database_answered_seconds_ago: z.number().nullable(),
})

/** Liveness of the process, and readiness with the database; no authentication. */
export function healthRoutes({ health }: HealthDeps) {
  const responses = {
    200: { description: 'Ready: the database answered within the last 10 s', ...json(stateSchema) },
    503: { description: 'Not ready: starting, draining, or the database is lost', ...json(stateSchema) },
  }
  const ready = async (c: Context<AppEnv>) => {
    const state = await health()
    if (state.status === 'ok') return c.json(state, 200)
    c.header('retry-after', '1')
    return c.json(state, 503)
  }
  const live = {
    responses: { 200: { description: 'The process runs', ...json(z.object({ status: z.literal('ok') })) } },
  }
  return createRouter()
    .openapi(createRoute({ method: 'get', path: '/health', summary: 'Readiness', responses }), ready)
    .openapi(createRoute({ method: 'get', path: '/ready', summary: 'Readiness', responses }), ready)
    .openapi(createRoute({ method: 'get', path: '/health/live', summary: 'Liveness', ...live }), (c) =>
      c.json({ status: 'ok' as const }, 200),
    )
    .openapi(createRoute({ method: 'get', path: '/healthz', summary: 'Liveness', ...live }), (c) =>
      c.json({ status: 'ok' as const }, 200),
    )
}
