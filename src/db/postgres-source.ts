import { Availability, type AvailabilitySettings } from './availability.js'
import { GuardedPool, type GuardedPoolOptions } from './guarded-pool.js'
import { Lanes } from './lanes.js'
import {
  type Budgets,
  type PoolSettings,
  clientConfig,
  connectLane,
  createPool,
  laneBudgets,
} from './pool.js'
import { probeDatabase } from './probe.js'

export interface PostgresSettings extends PoolSettings, Omit<AvailabilitySettings, 'probe'> {
  slowMs: number
  /** Shared connections beside the pool's, for short statements that stand alone; 0: the pool takes them all. */
  lanes: number
  /** Statements are prepared once a connection; not behind a pooler that hands out another each time. */
  prepare: boolean
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
  const lanes = settings.lanes > 0 ? createLanes(settings, availability) : undefined
  const requests = guard(settings, availability, 'requests', lanes)
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
  lanes?: Lanes,
): GuardedPool {
  const options = {
    limit: settings.size,
    acquireMs: settings.budgets.acquireMs,
    slowMs: settings.slowMs,
    prepare: settings.prepare,
    use,
  }
  return new GuardedPool(createPool(settings), availability, options, lanes)
}

function createLanes(settings: PostgresSettings, availability: Availability): Lanes {
  return new Lanes(
    {
      count: settings.lanes,
      connect: () => connectLane(settings),
      statementMs: laneBudgets(settings.budgets).statementMs,
      slowMs: settings.slowMs,
      prepare: settings.prepare,
      reconnectCapMs: settings.reconnectCapMs,
      misconfiguredCapMs: settings.misconfiguredCapMs,
    },
    availability,
  )
}
