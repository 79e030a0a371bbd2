import type { Pool, PoolClient } from 'pg'
import { AppError } from '../errors.js'
import type { Permit } from '../resilience/circuit-breaker.js'
import type { Availability } from './availability.js'
import { type Deadline, type DeadlineEnd, notWaitedFor } from './deadline.js'
import type { Statement } from './flight.js'
import { type ConnectionOptions, GuardedConnection } from './guarded-connection.js'
import { type Lanes, isStoppedByLane } from './lanes.js'
import { classify, classifyConnect, meaningOf, outcomeOf, toAppError } from './pg-errors.js'
import { isExpired } from './pool.js'
import {
  type ConnectionSource,
  NoLane,
  type Result,
  type SourceConnection,
  type SourceHealth,
} from './source.js'

export interface GuardedPoolOptions extends ConnectionOptions {
  /** The pool's own maximum. */
  limit: number
  /** From asking for a connection to having one, its first statement included. */
  acquireMs: number
}

/**
 * The one seam between the service and pg.Pool. What it promises:
 * the circuit breaker is asked before a connection and told how it went, once; a client that is not idle
 * and outside a transaction never returns to the pool (a late ROLLBACK that was never sent would swallow the
 * next caller's writes), and neither does one whose statement was cancelled; `end` ends.
 */
export class GuardedPool implements ConnectionSource {
  readonly #pool: Pool
  readonly #availability: Availability
  readonly #options: GuardedPoolOptions
  readonly #lanes: Lanes | undefined
  readonly #checkedOut = new Set<GuardedConnection>()
  readonly #waiters = new Set<(error: Error) => void>()
  /** Clients made before the last eviction are not used again. */
  #trustedSinceMs = 0
  readonly #madeAtMs = new WeakMap<PoolClient, number>()
  #ending = false

  constructor(pool: Pool, availability: Availability, options: GuardedPoolOptions, lanes?: Lanes) {
    this.#pool = pool
    this.#availability = availability
    this.#options = options
    this.#lanes = lanes
    lanes?.onSuspect(() => this.evictIdle())
    pool.on('connect', (client) => this.#madeAtMs.set(client as PoolClient, performance.now()))
  }

  async run(statements: readonly Statement[], deadline?: Deadline): Promise<Result> {
    if (this.#ending) throw draining()
    if (deadline?.ended !== undefined) throw notWaitedFor(deadline.ended)
    const lane = this.#lanes?.pick(statements)
    if (this.#lanes !== undefined && lane !== undefined) {
      try {
        return await this.#lanes.fly(lane, statements, deadline)
      } catch (error) {
        if (error instanceof AppError || !isStoppedByLane(classify(error))) throw error
      }
    }
    if (statements.at(-1)?.isShared === true) throw new NoLane()
    const connection = await this.connect(deadline)
    try {
      return await connection.execute(statements, deadline)
    } finally {
      connection.release()
    }
  }

  async connect(deadline?: Deadline): Promise<SourceConnection> {
    if (this.#ending) throw draining()
    if (deadline?.ended !== undefined) throw notWaitedFor(deadline.ended)
    const { breaker } = this.#availability
    return await this.#connect(breaker.admit(this.#options.use === 'streams' ? 'no_probe' : 'call'), deadline)
  }

  async connectPastCircuit(): Promise<SourceConnection> {
    if (this.#ending) throw draining()
    return await this.#connect(undefined)
  }

  async #connect(permit: Permit | undefined, deadline?: Deadline): Promise<SourceConnection> {
    let client: PoolClient
    try {
      client = await this.#client(deadline)
    } catch (error) {
      throw this.#notConnected(error, permit)
    }
    const connection = new GuardedConnection(client, this.#options, {
      answered: () => this.#availability.answered(),
      failed: (name, outcome) => {
        const { evictIdle, writesOnly } = meaningOf(name)
        this.#availability.failed(name)
        if (outcome === 'ignored') return
        if (evictIdle === true) this.evictIdle()
        if (writesOnly === true) this.#availability.couldRead()
      },
      released: (outcome) => {
        this.#checkedOut.delete(connection)
        permit?.settle(outcome)
      },
      isTrusted: () => (this.#madeAtMs.get(client) ?? 0) >= this.#trustedSinceMs && !isExpired(client),
    })
    this.#checkedOut.add(connection)
    return connection
  }

  /** pg-pool strands its waiters when it ends, so each waits for that as well; its own time limit leaves onConnect out. */
  #client(deadline: Deadline | undefined): Promise<PoolClient> {
    return new Promise((resolve, reject) => {
      const stop = (end: DeadlineEnd): void => refuse(notWaitedFor(end))
      const late = setTimeout(
        () => settle(() => reject(new Error('timeout expired while a new connection was checked'))),
        this.#options.acquireMs + 100,
      ).unref()
      const refuse = (error: Error): void => void settle(() => reject(error))
      const settle = (how: () => void): boolean => {
        if (!this.#waiters.delete(refuse)) return false
        clearTimeout(late)
        deadline?.forget(stop)
        how()
        return true
      }
      this.#waiters.add(refuse)
      deadline?.listen(stop)
      this.#pool.connect().then(
        (client) => {
          if (!settle(() => resolve(client))) client.release(true)
        },
        (error: unknown) => settle(() => reject(error as Error)),
      )
    })
  }

  #notConnected(error: unknown, permit: Permit | undefined): AppError {
    if (error instanceof AppError) {
      permit?.settle('ignored')
      return error
    }
    const name = classifyConnect(error)
    this.#availability.failed(name)
    if (name !== 'pool_wait') permit?.settle(outcomeOf(name, false))
    else if (permit !== undefined) {
      // A full pool is no lost database, unless the database does not answer beside it either.
      void this.#availability
        .answersOutside()
        .then((answers) => permit.settle(answers ? 'ignored' : 'failure'))
    }
    return toAppError(error, name, 'none')
  }

  /** Every client made until now ends: the idle ones at once, the others when they are released. */
  evictIdle(): void {
    this.#trustedSinceMs = performance.now()
    this.#lanes?.retireAll()
    for (let idle = this.#pool.idleCount; idle > 0; idle -= 1) {
      this.#pool.connect().then(
        (client) => client.release(true),
        () => undefined,
      )
    }
  }

  /** `select 1` through the pool and the breaker; rejects as any statement does. */
  async ping(): Promise<void> {
    const connection = await this.connect()
    try {
      await connection.execute([{ text: 'select 1', values: [], name: undefined }])
    } finally {
      connection.release()
    }
  }

  health(): SourceHealth {
    const { totalCount: total, idleCount: idle, waitingCount: waiting } = this.#pool
    return {
      pool: { total, idle, waiting, limit: this.#options.limit },
      lanes: this.#lanes?.health() ?? null,
      ...this.#availability.health(),
    }
  }

  async recovered(): Promise<boolean> {
    return await this.#availability.recovered()
  }

  forceCircuit(to: 'open' | 'closed' | 'auto'): void {
    this.#availability.breaker.force(to)
  }

  async end(timeoutMs: number): Promise<void> {
    if (this.#ending) return
    this.#ending = true
    this.#availability.stop()
    for (const refuse of this.#waiters) refuse(draining())
    let cut: NodeJS.Timeout | undefined
    // pg-pool waits for clients that are still connecting, and for holders that never give theirs back.
    const bound = new Promise<void>((resolve) => {
      cut = setTimeout(() => {
        for (const connection of this.#checkedOut) connection.cut()
        resolve()
      }, timeoutMs)
    })
    await Promise.all([Promise.race([this.#pool.end(), bound]), this.#lanes?.end(timeoutMs)])
    clearTimeout(cut)
  }
}

function draining(): AppError {
  return new AppError('unavailable', 'The service is shutting down.', { retryAfterSeconds: 1 })
}
