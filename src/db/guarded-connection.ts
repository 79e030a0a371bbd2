import { setTimeout as sleep } from 'node:timers/promises'
import { DatabaseError, type PoolClient } from 'pg'
import Cursor from 'pg-cursor'
import type { Outcome } from '../resilience/circuit-breaker.js'
import { cancelOnServer } from './cancel.js'
import { isCopy, startCopy } from './copy-reader.js'
import { type Deadline, type DeadlineEnd, notWaitedFor } from './deadline.js'
import { type Statement, fly, unnamed } from './flight.js'
import { classify, type FailureClass, meaningOf, outcomeOf } from './pg-errors.js'
import { endingOf } from './pool.js'
import type { Result, SourceConnection } from './source.js'

/** How long a failed or cancelled statement's answer may take before its client counts as stuck. */
const SETTLE_MS = 1000

export interface ConnectionOptions {
  /** A statement that takes as long counts as slow. */
  slowMs: number
  /** False behind a pooler: a name would be prepared on one server connection and looked for on another. */
  prepare: boolean
  /** `streams`: held for as long as a reader reads, so its time says nothing of the database. */
  use: 'requests' | 'streams'
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

/** What pg's client tells of itself beyond its type declarations. */
interface ClientState {
  readyForQuery: boolean
  getTransactionStatus(): string | null
  connection: { stream: { destroy(): void }; once(event: 'readyForQuery', listener: () => void): void }
}

/** What a connection tells the pool it came from. */
interface Hooks {
  answered(): void
  failed(name: FailureClass, outcome: Outcome): void
  /** With the worst that happened on it. */
  released(outcome: Outcome): void
  isTrusted(): boolean
}

/**
 * One client of the pool, checked out. Every statement is timed, cancelled on the server when its deadline
 * ends, and its failure classified once; what happened decides whether the client goes back.
 */
export class GuardedConnection implements SourceConnection {
  readonly #client: PoolClient & ClientState
  readonly #options: ConnectionOptions
  readonly #hooks: Hooks
  #broken = false
  #outcome: Outcome = 'ignored'
  /** Set once the server was asked to stop what runs here. */
  #cancelled: DeadlineEnd | undefined

  constructor(client: PoolClient, options: ConnectionOptions, hooks: Hooks) {
    this.#client = client as PoolClient & ClientState
    this.#options = options
    this.#hooks = hooks
  }

  async execute(statements: readonly Statement[], deadline?: Deadline): Promise<Result> {
    const sent = this.#options.prepare ? statements : statements.map(unnamed)
    return await this.#run(
      () => fly(this.#client, sent),
      statements.some(({ writes }) => writes === true),
      deadline,
    )
  }

  async *stream(statement: Statement, batchSize: number, deadline?: Deadline): AsyncGenerator<unknown[]> {
    if (isCopy(statement.text)) yield* this.#copy(statement.text, deadline)
    else yield* this.#rows(statement, batchSize, deadline)
  }

  async *#copy(text: string, deadline: Deadline | undefined): AsyncGenerator<Buffer[]> {
    const copy = startCopy(this.#client, text)
    try {
      for (;;) {
        const pieces = await this.#run(() => copy.read(), false, deadline)
        if (pieces.length === 0) return
        yield pieces
      }
    } finally {
      // Whoever leaves does not wait for the rest of it: the server notices when it sends more.
      if (!copy.isOver) {
        this.#cancelled ??= 'client_gone'
        this.cut()
      }
    }
  }

  async *#rows(
    statement: Statement,
    batchSize: number,
    deadline: Deadline | undefined,
  ): AsyncGenerator<unknown[]> {
    const cursor = this.#client.query(new RowCursor(statement.text, [...statement.values]))
    // One that failed has sent its Sync and is not to be closed: pg-cursor would wait for a second answer.
    let failed = false
    try {
      for (;;) {
        const rows = await this.#run(
          async () => {
            const read = await cursor.read(batchSize)
            if (cursor.unreadable !== undefined) throw cursor.unreadable
            return read
          },
          false,
          deadline,
        )
        if (rows.length === 0) return
        yield rows
      }
    } catch (error) {
      failed = cursor.unreadable === undefined
      throw error
    } finally {
      if (!failed && !(await within(cursor.close(), SETTLE_MS))) this.#broken = true
    }
  }

  /** Runs what talks to the server: timed, cancelled at the deadline's end, its failure classified once. */
  async #run<T>(work: () => Promise<T>, writes: boolean, deadline: Deadline | undefined): Promise<T> {
    const ended = deadline?.ended ?? this.#cancelled
    if (ended !== undefined) throw notWaitedFor(ended)
    const startedAt = performance.now()
    const cancel = (end: DeadlineEnd): void => void this.#cancel(end)
    deadline?.listen(cancel)
    try {
      const answer = await work()
      this.#hooks.answered()
      this.#count(this.#isSlow(startedAt) ? 'slow' : 'success')
      return answer
    } catch (caught) {
      const error = this.#reason(caught)
      const name = classify(error)
      const stopped = name === 'statement_timeout' ? this.#cancelled : undefined
      await this.#failed(error, stopped === undefined ? name : 'cancelled', writes)
      throw stopped === undefined ? error : notWaitedFor(stopped, error)
    } finally {
      deadline?.forget(cancel)
    }
  }

  /** pg tells of a transaction that idled too long beside it; who holds it hears only that it is lost. */
  #reason(error: unknown): unknown {
    const told = classify(error) === 'lost' ? endingOf(this.#client) : undefined
    return classify(told) === 'transaction_timeout' ? told : error
  }

  #isSlow(startedAt: number): boolean {
    return this.#options.use === 'requests' && performance.now() - startedAt >= this.#options.slowMs
  }

  /** An error of the server comes ahead of its ReadyForQuery: without that the client looks busy. */
  async #failed(error: unknown, name: FailureClass, writes: boolean): Promise<void> {
    if (meaningOf(name).destroy) this.#broken = true
    const outcome = this.#outcomeOf(name, writes)
    this.#count(outcome)
    if (name !== 'cancelled') this.#hooks.failed(name, outcome)
    if (!(error instanceof DatabaseError)) return
    this.#hooks.answered()
    if (this.#broken || this.#client.readyForQuery) return
    await new Promise<void>((resolve) => {
      const stuck = setTimeout(resolve, SETTLE_MS)
      this.#client.connection.once('readyForQuery', () => {
        clearTimeout(stuck)
        resolve()
      })
    })
  }

  #outcomeOf(name: FailureClass, writes: boolean): Outcome {
    // Whoever went away says nothing of the database, and what we cut ourselves is no loss of it.
    if (this.#cancelled === 'client_gone') return 'ignored'
    const outcome = outcomeOf(name, writes)
    const isLoss = name === 'lost' || name === 'restarting'
    return this.#options.use === 'requests' || isLoss ? outcome : 'ignored'
  }

  #count(outcome: Outcome): void {
    if (SEVERITY[outcome] > SEVERITY[this.#outcome]) this.#outcome = outcome
  }

  /** Asks the server to stop; one that does not answer that either loses the connection. */
  async #cancel(end: DeadlineEnd): Promise<void> {
    this.#cancelled = end
    this.#broken = true
    const stuck = sleep(SETTLE_MS, undefined, { ref: false })
    await cancelOnServer(this.#client, SETTLE_MS)
    await stuck
    if (!this.#client.readyForQuery) this.#client.connection.stream.destroy()
  }

  release(): void {
    const clean = !this.#broken && this.#client.readyForQuery && this.#client.getTransactionStatus() === 'I'
    this.#client.release(clean && this.#hooks.isTrusted() ? undefined : true)
    // A goodbye that nobody reads would keep the socket for as long as TCP tries.
    if (this.#broken) this.#client.connection.stream.destroy()
    this.#hooks.released(this.#outcome)
  }

  /** Ends the connection under whoever holds it, who meets a lost connection. */
  cut(): void {
    this.#broken = true
    this.#client.connection.stream.destroy()
  }
}

/** Of several statements on one connection the worst is what the breaker is told. */
const SEVERITY: Record<Outcome, number> = {
  ignored: 0,
  success: 1,
  slow: 2,
  failure: 3,
  failure_and_slow: 4,
}
