import { Availability, type AvailabilitySettings } from './availability.js'
import { GuardedPool, type GuardedPoolOptions } from './guarded-pool.js'
import { type Budgets, type PoolSettings, clientConfig, createPool } from './pool.js'
import { probeDatabase } from './probe.js'

export interface PostgresSettings extends PoolSettings, Omit<AvailabilitySettings, 'probe'> {
  slowMs: number
  /** Connections for streams, beside those for requests. */
  streams: { size: number; budgets: Budgets }
}

/**
 * Two guarded pools under one availability: what one of them learns of the database, the other knows. They
 * connect on first use only, and on the heartbeat of a service that is quiet.
 */
export function createPostgresSources(settings: PostgresSettings): {
  requests: GuardedPool
  streams: GuardedPool
} {
  const probing = clientConfig({ ...settings, applicationName: `${settings.applicationName} probe` })
  const availability = new Availability({
    ...settings,
    probe: (signal) => probeDatabase(probing, settings.budgets.acquireMs, signal),
  })
  const requests = guard(settings, availability, 'requests')
  const streams = guard({ ...settings, ...settings.streams }, availability, 'streams')
  availability.watch(
    () => requests.ping(),
    () => {
      requests.evictIdle()
      streams.evictIdle()
    },
  )
  return { requests, streams }
}

function guard(
  settings: PostgresSettings,
  availability: Availability,
  use: GuardedPoolOptions['use'],
): GuardedPool {
  return new GuardedPool(createPool(settings), availability, {
    limit: settings.size,
    acquireMs: settings.budgets.acquireMs,
    slowMs: settings.slowMs,
    pooled: settings.pooled,
    use,
  })
}
