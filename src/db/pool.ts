import pg, { type Client, type ClientBase, type ClientConfig, type Pool } from 'pg'

/** Milliseconds. The first three and the request's deadline are each strictly below the next: the innermost speaks first. */
export interface Budgets {
  /** Waiting for a client, and connecting a new one. */
  acquireMs: number
  /** statement_timeout: the server stops the statement. */
  statementMs: number
  /** The client's own timer, for a server that no longer answers (a half-open connection). */
  queryMs: number
  /** lock_timeout. */
  lockMs: number
  /** idle_in_transaction_session_timeout. */
  idleInTransactionMs: number
}

export interface PoolSettings {
  connection: ClientConfig
  size: number
  budgets: Budgets
  /**
   * Behind a pooler no startup parameter is sent: the login itself carries role and limits
   * (ALTER ROLE ... SET, command create-login).
   */
  pooled: boolean
  applicationName: string
  /** A client's end of life, give or take a tenth, so that they do not all reconnect at once. */
  lifetimeMs: number
  /** An idle client's error has no caller: it is told here and the client is dropped. */
  onIdleError: (error: Error) => void
}

/** The role every connection has before it is known who asks. */
export const BASE_ROLE = 'gary_app'

/** When a client is to be replaced, by the monotonic clock. */
const endOfLife = new WeakMap<ClientBase, number>()

/** What was first told of a client that ran nothing at the time; its next statement only hears that it is lost. */
const endings = new WeakMap<ClientBase, Error>()

export function endingOf(client: ClientBase): Error | undefined {
  return endings.get(client)
}

/** The inner limits for an outer bound of `timeoutMs` (30 s: 5, 10 and 12 s; locks 3 s, idle 15 s). */
export function budgetsFor(timeoutMs: number): Budgets {
  return {
    acquireMs: Math.round(timeoutMs / 6),
    statementMs: Math.round(timeoutMs / 3),
    queryMs: Math.round(timeoutMs * 0.4),
    lockMs: Math.round(timeoutMs / 10),
    idleInTransactionMs: Math.round(timeoutMs / 2),
  }
}

/** How a client of the service introduces itself: the pool's, and the one that only looks (probe.ts). */
export function clientConfig(
  settings: Omit<PoolSettings, 'size' | 'lifetimeMs' | 'onIdleError'>,
): ClientConfig {
  const { budgets } = settings
  const options = [
    `role=${BASE_ROLE}`,
    `statement_timeout=${budgets.statementMs}`,
    `lock_timeout=${budgets.lockMs}`,
    `idle_in_transaction_session_timeout=${budgets.idleInTransactionMs}`,
    'TimeZone=UTC',
  ]
  return {
    ...settings.connection,
    application_name: settings.applicationName,
    ...(settings.pooled ? {} : { options: options.map((option) => `-c ${option}`).join(' ') }),
  }
}

/** True when the client has lived long enough; the one who releases it lets it end then. */
export function isExpired(client: ClientBase): boolean {
  return performance.now() >= (endOfLife.get(client) ?? Infinity)
}

/** A pg.Pool whose clients start as gary_app with the limits above. Connects on first use only. */
export function createPool(settings: PoolSettings): Pool {
  const { budgets } = settings
  const pool = new pg.Pool({
    ...clientConfig(settings),
    max: settings.size,
    connectionTimeoutMillis: budgets.acquireMs,
    query_timeout: budgets.queryMs,
    idleTimeoutMillis: 60_000,
    keepAlive: true,
    keepAliveInitialDelayMillis: 10_000,
    types: { getTypeParser },
    // Typed as void, awaited by pg-pool: a client that is not who it should be never enters the pool.
    onConnect: (client) => checkIdentity(client, settings) as unknown as undefined,
  })
  pool.on('error', settings.onIdleError)
  return pool
}

/** Many wait behind whoever waits on a lane. */
const LANE_LOCK_MS = 100

/** A lane's limits: it must not hold up the many behind it, and what it stops is done once more on the pool. */
export function laneBudgets(budgets: Budgets): Budgets {
  return {
    ...budgets,
    statementMs: Math.ceil(budgets.statementMs / 2),
    lockMs: Math.min(budgets.lockMs, LANE_LOCK_MS),
  }
}

/** A connected client in pipeline mode, gary_app as the pool's are. */
export async function connectLane(settings: PoolSettings): Promise<Client> {
  const budgets = laneBudgets(settings.budgets)
  const client = new pg.Client({
    ...clientConfig({ ...settings, budgets }),
    connectionTimeoutMillis: budgets.acquireMs,
    keepAlive: true,
    keepAliveInitialDelayMillis: 10_000,
    types: { getTypeParser },
    // It would cut the neighbours of a slow statement.
    query_timeout: 0,
    // Typed nowhere: @types/pg is behind.
    ...{ pipeline: true },
  })
  // Before it connects: a server that goes down may say so in the moment in which it lets us in.
  client.on('error', () => undefined)
  try {
    await client.connect()
    await checkIdentity(client, settings)
    return client
  } catch (error) {
    void client.end().catch(() => undefined)
    throw error
  }
}

async function checkIdentity(client: ClientBase, settings: PoolSettings): Promise<void> {
  // pg-pool takes its own listener off while a client is checked out; an error event without a
  // listener ends the process.
  client.on('error', (error) => {
    // Its end is told a second time, without the server's words.
    if (!endings.has(client)) endings.set(client, error)
    settings.onIdleError(error)
  })
  endOfLife.set(client, performance.now() + settings.lifetimeMs * (0.9 + Math.random() * 0.2))
  const query = { text: 'select current_user as name', query_timeout: settings.budgets.acquireMs }
  const { rows } = await client.query<{ name: string }>(query)
  if (rows[0]?.name !== BASE_ROLE) {
    throw Object.assign(new Error(`the connection is ${String(rows[0]?.name)}, not ${BASE_ROLE}`), {
      code: '42501',
    })
  }
}

const INT8 = 20
const TIMESTAMPTZ = 1184
const DATE = 1082

/** Text parsers that keep what travels: revisions as numbers, timestamps with their microseconds. */
function getTypeParser(oid: number, format?: 'text' | 'binary'): (value: string) => unknown {
  if (oid === INT8) return Number
  if (oid === TIMESTAMPTZ) return timestampToIso
  if (oid === DATE) return (value) => value
  return pg.types.getTypeParser(oid, format as 'text') as (value: string) => unknown
}

/** PostgreSQL's text of a timestamptz as RFC 3339 in UTC with microseconds. */
export function timestampToIso(value: string): string {
  // Nearly all are of this form; a page has a hundred.
  if (value.length === 29 && value[10] === ' ' && value.endsWith('+00'))
    return `${value.slice(0, 10)}T${value.slice(11, 26)}Z`
  const match = /^(\d{4,}-\d\d-\d\d) (\d\d:\d\d:\d\d)(?:\.(\d{1,6}))?\+00$/.exec(value)
  if (match === null) throw new Error('a timestamp arrived that is not in UTC')
  return `${match[1]}T${match[2]}.${(match[3] ?? '').padEnd(6, '0')}Z`
}
