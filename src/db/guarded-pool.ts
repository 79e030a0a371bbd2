import { DatabaseError, type Pool, type PoolClient } from 'pg'
import Cursor from 'pg-cursor'
import { AppError } from '../errors.js'
import { fly, type Statement } from './flight.js'
import { classify, classifyConnect, meaningOf, toAppError } from './pg-errors.js'
import { isExpired } from './pool.js'
import type { ConnectionSource, Result, SourceConnection, SourceStats } from './source.js'

/** How long a failed statement's ReadyForQuery may take before its client counts as stuck. */
const SETTLE_MS = 1000

/**
 * The one seam between the service and pg.Pool. What it promises:
 * a client that is not idle and outside a transaction never returns to the pool (a late ROLLBACK that
 * was never sent would swallow the next caller's writes); every error is classified once; `end` ends.
 */
export class GuardedPool implements ConnectionSource {
  readonly #pool: Pool
  readonly #limit: number
  readonly #checkedOut = new Set<GuardedConnection>()
  readonly #waiters = new Set<(error: Error) => void>()
  #lastAnswer: number | null = null
  #ending = false

  constructor(pool: Pool, limit: number) {
    this.#pool = pool
    this.#limit = limit
  }

  async connect(): Promise<SourceConnection> {
    if (this.#ending) throw draining()
    const client = await this.#client()
    const connection = new GuardedConnection(client, {
      onAnswer: () => (this.#lastAnswer = performance.now()),
      onRelease: () => this.#checkedOut.delete(connection),
    })
    this.#checkedOut.add(connection)
    return connection
  }

  /** pg-pool strands its waiters when it ends, so each waits for that as well. */
  #client(): Promise<PoolClient> {
    return new Promise((resolve, reject) => {
      this.#waiters.add(reject)
      this.#pool.connect().then(
        (client) => {
          if (this.#waiters.delete(reject)) resolve(client)
          else client.release(true)
        },
        (error: unknown) => {
          this.#waiters.delete(reject)
          reject(toAppError(error, classifyConnect(error), 'none'))
        },
      )
    })
  }

  stats(): SourceStats {
    return {
      total: this.#pool.totalCount,
      idle: this.#pool.idleCount,
      waiting: this.#pool.waitingCount,
      limit: this.#limit,
      sinceAnswerMs: this.#lastAnswer === null ? null : performance.now() - this.#lastAnswer,
    }
  }

  async end(timeoutMs: number): Promise<void> {
    if (this.#ending) return
    this.#ending = true
    for (const reject of this.#waiters) reject(draining())
    this.#waiters.clear()
    let cut: NodeJS.Timeout | undefined
    // pg-pool waits for clients that are still connecting, and for holders that never give theirs back.
    const bound = new Promise<void>((resolve) => {
      cut = setTimeout(() => {
        for (const connection of this.#checkedOut) connection.cut()
        resolve()
      }, timeoutMs)
    })
    await Promise.race([this.#pool.end(), bound])
    clearTimeout(cut)
  }
}

const BaseCursor = Cursor as unknown as new (
  text: string,
  values: unknown[],
) => Cursor<unknown> & { handleDataRow(message: unknown): void }

/** A row whose value no parser takes is an error of its stream: pg-cursor lets it end the process. */
class RowCursor extends BaseCursor {
  unreadable: unknown

  override handleDataRow(message: unknown): void {
    try {
      super.handleDataRow(message)
    } catch (error) {
      this.unreadable ??= error
    }
  }
}

/** False when it did not come in time: pg-cursor's close has no answer on a connection that is gone. */
async function within(work: Promise<void>, timeoutMs: number): Promise<boolean> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<false>((resolve) => (timer = setTimeout(resolve, timeoutMs, false)))
  try {
    return await Promise.race([work.then(() => true), late])
  } finally {
    clearTimeout(timer)
  }
}

function draining(): AppError {
  return new AppError('unavailable', 'The service is shutting down.', { retryAfterSeconds: 1 })
}

/** What pg's client tells of itself beyond its type declarations. */
interface ClientState {
  readyForQuery: boolean
  getTransactionStatus(): string | null
  connection: { stream: { destroy(): void }; once(event: 'readyForQuery', listener: () => void): void }
}

class GuardedConnection implements SourceConnection {
  readonly #client: PoolClient & ClientState
  readonly #hooks: { onAnswer: () => void; onRelease: () => void }
  #broken = false

  constructor(client: PoolClient, hooks: { onAnswer: () => void; onRelease: () => void }) {
    this.#client = client as PoolClient & ClientState
    this.#hooks = hooks
  }

  async execute(statements: readonly Statement[]): Promise<Result> {
    try {
      return this.#answered(await fly(this.#client, statements))
    } catch (error) {
      await this.#failed(error)
      throw error
    }
  }

  async *stream(statement: Statement, batchSize: number): AsyncGenerator<unknown[]> {
    const cursor = this.#client.query(new RowCursor(statement.text, [...statement.values]))
    // One that failed has sent its Sync and is not to be closed: pg-cursor would wait for a second answer.
    let failed = false
    try {
      for (;;) {
        const rows = this.#answered(await cursor.read(batchSize))
        if (cursor.unreadable !== undefined) throw cursor.unreadable
        if (rows.length === 0) return
        yield rows
      }
    } catch (error) {
      failed = cursor.unreadable === undefined
      await this.#failed(error)
      throw error
    } finally {
      if (!failed && !(await within(cursor.close(), SETTLE_MS))) this.#broken = true
    }
  }

  #answered<T>(answer: T): T {
    this.#hooks.onAnswer()
    return answer
  }

  /** An error of the server comes ahead of its ReadyForQuery: without that the client looks busy. */
  async #failed(error: unknown): Promise<void> {
    if (meaningOf(classify(error)).destroy) this.#broken = true
    if (!(error instanceof DatabaseError)) return
    this.#hooks.onAnswer()
    if (this.#broken || this.#client.readyForQuery) return
    await new Promise<void>((resolve) => {
      const stuck = setTimeout(resolve, SETTLE_MS)
      this.#client.connection.once('readyForQuery', () => {
        clearTimeout(stuck)
        resolve()
      })
    })
  }

  release(): void {
    this.#hooks.onRelease()
    const clean = !this.#broken && this.#client.readyForQuery && this.#client.getTransactionStatus() === 'I'
    this.#client.release(clean && !isExpired(this.#client) ? undefined : true)
  }

  /** Ends the connection under whoever holds it, who meets a lost connection. */
  cut(): void {
    this.#broken = true
    this.#client.connection.stream.destroy()
  }
}
