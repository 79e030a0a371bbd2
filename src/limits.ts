import { type Budgets, budgetsFor } from './db/pool.js'
import type { Env } from './env.js'
import { AppError } from './errors.js'
import type { BreakerOptions } from './resilience/circuit-breaker.js'

export interface Limits {
  budgets: Budgets
  /** From a request's start, or its body's end, to its answer; streams have none. */
  requestMs: number
  slowMs: number
  breaker: BreakerOptions
  /** The longest wait between two looks at a lost database; where only an operator can help, as long as the breaker's. */
  reconnectCapMs: number
  misconfiguredCapMs: number
}

/** Above all statements a report or an export runs, in milliseconds. */
const STREAM_MS = 600_000
const BREAKER_BUCKETS = 10
const BREAKER_WAIT_MS = 1000

/**
 * Every limit in time, in proportion to DATABASE_TIMEOUT where it is not set itself (30 s: waiting for a
 * connection 5, statement 10, client's timer 12, request 15). Throws `invalid_request` that names the
 * variables when an inner one does not end before the one around it.
 */
export function limitsOf(env: Env): Limits {
  const outerMs = env.DATABASE_TIMEOUT * 1000
  const inner = budgetsFor(outerMs)
  const budgets: Budgets = {
    acquireMs: env.DATABASE_ACQUIRE_MS ?? inner.acquireMs,
    statementMs: env.DATABASE_STATEMENT_MS ?? inner.statementMs,
    queryMs: env.DATABASE_QUERY_MS ?? inner.queryMs,
    lockMs: env.DATABASE_LOCK_MS ?? inner.lockMs,
    idleInTransactionMs: env.DATABASE_IDLE_IN_TRANSACTION_MS ?? inner.idleInTransactionMs,
  }
  const requestMs = env.REQUEST_DEADLINE_MS ?? Math.round(outerMs / 2)
  assertOrder([
    ['DATABASE_ACQUIRE_MS', budgets.acquireMs],
    ['DATABASE_STATEMENT_MS', budgets.statementMs],
    ['DATABASE_QUERY_MS', budgets.queryMs],
    ['REQUEST_DEADLINE_MS', requestMs],
    ['DATABASE_TIMEOUT', outerMs],
  ])
  assertOrder([
    ['DATABASE_LOCK_MS', budgets.lockMs],
    ['DATABASE_STATEMENT_MS', budgets.statementMs],
  ])
  const slowMs = env.BREAKER_SLOW_MS ?? Math.min(inner.acquireMs, budgets.queryMs - 1)
  assertOrder([
    ['BREAKER_SLOW_MS', slowMs],
    ['DATABASE_QUERY_MS', budgets.queryMs],
  ])
  return {
    budgets,
    requestMs,
    slowMs,
    breaker: {
      failureRate: env.BREAKER_FAILURE_PERCENT / 100,
      slowRate: env.BREAKER_SLOW_PERCENT / 100,
      minCalls: env.BREAKER_MIN_CALLS,
      windowMs: env.BREAKER_WINDOW_SECONDS * 1000,
      buckets: BREAKER_BUCKETS,
      probes: env.BREAKER_PROBES,
      probeDeadlineMs: budgets.queryMs,
      waitBaseMs: BREAKER_WAIT_MS,
      waitCapMs: env.BREAKER_MAX_WAIT_SECONDS * 1000,
    },
    reconnectCapMs: env.RECONNECT_MAX_MS,
    misconfiguredCapMs: env.BREAKER_MAX_WAIT_SECONDS * 1000,
  }
}

/** A stream is as long as its reader takes: only reaching the database is bounded as for a request. */
export function streamBudgets(budgets: Budgets): Budgets {
  return { ...budgets, statementMs: STREAM_MS, queryMs: STREAM_MS + 1000, idleInTransactionMs: STREAM_MS }
}

function assertOrder(limits: [name: string, ms: number][]): void {
  const wrong = limits.slice(1).flatMap(([name, ms], index) => {
    const [innerName, innerMs] = limits[index] ?? ['', 0]
    return innerMs < ms ? [] : [`${innerName} (${innerMs} ms) must be below ${name} (${ms} ms)`]
  })
  if (wrong.length > 0) {
    throw new AppError('invalid_request', `The time limits are not in order:\n  ${wrong.join('\n  ')}`)
  }
}
