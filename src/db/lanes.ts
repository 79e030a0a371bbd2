import { type Client, DatabaseError, type Submittable } from 'pg'
import { fullJitter } from '../resilience/backoff.js'
import type { Availability } from './availability.js'
import { type Deadline, untilEnd } from './deadline.js'
import { type Flight, type Statement, fly, landingOf, unnamed } from './flight.js'
import { Formation, MAX_TOGETHER, Skipped } from './formation.js'
import { type FailureClass, classify, classifyConnect, meaningOf, outcomeOf } from './pg-errors.js'
import { isExpired } from './pool.js'
import type { Result } from './source.js'

/** Flights on one lane at a time: each may meet a lock, and holds up those behind it. */
const MAX_IN_FLIGHT = 16
/**
 * Reads of one turn share a lane, since a write to a socket costs as much as all the rest of a flight: those that
 * keep it for less, by their name and in the mean; the others would wait for it. What changes data waits for the
 * disk, so it goes where the fewest stand before it.
 */
const QUICK_MS = 5
/** What the last one counts in that mean: seventeen quick ones make up for a second. */
const LAST_ONE_COUNTS = 0.2
/** A lane that has been silent for so long with something in flight gets nothing more for now. */
const HELD_UP_MS = 100
/** A flight that carries more holds up those behind it: the pool takes it. In characters of its parameters. */
const MAX_CHARACTERS = 64 * 1024
/** How long beyond its statement_timeout a lane may be silent while something is in flight on it. */
const STALL_GRACE_MS = 1000
const WATCH_EVERY_MS = 250
const RECONNECT_BASE_MS = 100
const GOODBYE_MS = 1000

export interface LaneSettings {
  count: number
  /** Connects a client in pipeline mode that is gary_app and has the lane's own limits. */
  connect: () => Promise<Client>
  /** The lanes' statement_timeout. */
  statementMs: number
  slowMs: number
  prepare: boolean
  reconnectCapMs: number
  /** The same where only an operator can help. */
  misconfiguredCapMs: number
}

export interface LanesHealth {
  ready: number
  inFlight: number
  limit: number
}

interface Socket {
  bytesRead: number
  cork(): void
  uncork(): void
  destroy(error?: Error): void
}

/** A connection that several callers use at once, in pg's pipeline mode: answers come in the order of asking. */
class Lane {
  readonly client: Client
  inFlight = 0
  /** When it last answered, or was idle. */
  movedAtMs = performance.now()
  #bytesRead = 0
  #looksSilent = false
  #isLost = false
  /** What was asked in this turn of the event loop and is not written yet, in its order. */
  #turn: (Flight | Formation)[] = []
  /** Flights in it, those of formations among them. */
  #boarded = 0
  #answeredAtMs = 0
  #retired = false
  #ended = false
  readonly ended: Promise<void>

  constructor(client: Client) {
    this.client = client
    this.ended = new Promise((resolve) => {
      client.once('end', () => {
        this.#ended = true
        resolve()
      })
    })
  }

  get #socket(): Socket {
    return (this.client as unknown as { connection: { stream: Socket } }).connection.stream
  }

  /** `keptFor` is told how long the flight had the lane to itself; `shares`: with others of this turn under one Sync. */
  async fly(
    statements: readonly Statement[],
    shares: boolean,
    keptFor: (ms: number) => void,
  ): Promise<Result> {
    const startedAt = performance.now()
    if (this.inFlight === 0) this.movedAtMs = startedAt
    this.inFlight += 1
    this.#boarded += 1
    try {
      return await (shares
        ? this.#flyTogether(statements)
        : landingOf(statements, (flight) => this.#board(flight)))
    } finally {
      this.inFlight -= 1
      this.movedAtMs = performance.now()
      keptFor(this.movedAtMs - Math.max(startedAt, this.#answeredAtMs))
      this.#answeredAtMs = this.movedAtMs
      if (this.#retired && this.inFlight === 0) this.#end()
    }
  }

  /** All that is asked in one turn of the event loop is one write: a system call costs more than the messages. */
  #board(flight: Flight | Formation): void {
    if (this.#turn.push(flight) > 1) return
    setImmediate(() => {
      const turn = this.#turn
      this.#turn = []
      this.#boarded = 0
      const socket = this.#socket
      socket.cork()
      try {
        for (const each of turn) void this.client.query(each as unknown as Submittable)
      } finally {
        socket.uncork()
      }
    })
  }

  /** Under one Sync with those like it of this turn; alone when another one has failed ahead of it. */
  async #flyTogether(statements: readonly Statement[]): Promise<Result> {
    let formation = this.#turn.find(
      (each): each is Formation => each instanceof Formation && each.takes(statements),
    )
    if (formation === undefined) this.#board((formation = new Formation(statements)))
    try {
      return await formation.join(statements)
    } catch (error) {
      if (error instanceof Skipped) return await fly(this.client, statements)
      throw error
    }
  }

  /** One more read costs no write of its own. */
  get isBoarding(): boolean {
    return this.#boarded > 0 && this.#boarded < MAX_TOGETHER && this.inFlight < MAX_IN_FLIGHT
  }

  /** True for the first to tell of it. */
  tellLoss(): boolean {
    const first = !this.#isLost
    this.#isLost = true
    return first
  }

  isHeldUp(now: number): boolean {
    return this.inFlight > 0 && now - this.movedAtMs > HELD_UP_MS
  }

  /** True when nothing at all has come for so long, found twice: in between, what lies in the socket is read. */
  lookForSilence(now: number, limitMs: number): boolean {
    const { bytesRead } = this.#socket
    if (bytesRead !== this.#bytesRead) {
      this.#bytesRead = bytesRead
      this.movedAtMs = now
    }
    const before = this.#looksSilent
    this.#looksSilent = this.inFlight > 0 && now - this.movedAtMs >= limitMs
    return this.#looksSilent && before
  }

  /** Ends when what is in flight has landed. */
  retire(): void {
    if (this.#retired) return
    this.#retired = true
    if (this.inFlight === 0) this.#end()
  }

  #end(): void {
    if (this.#ended) return
    void this.client.end()
    setTimeout(() => this.cut(), GOODBYE_MS).unref()
  }

  /** What is in flight meets a lost connection. */
  cut(): void {
    if (!this.#ended) this.#socket.destroy(new Error('Connection terminated: the lane does not answer'))
  }
}

/** How long a statement that a lane has stopped for this goes to the pool at once. */
const HOLDS_UP_MS: Partial<Record<FailureClass, number>> = { lock_timeout: 1000, statement_timeout: 60_000 }

/** Nothing was changed by what a lane stops for this; it is done once more where nobody stands behind it. */
export function isStoppedByLane(failure: FailureClass): boolean {
  return HOLDS_UP_MS[failure] !== undefined
}

interface Slot {
  lane: Lane | undefined
  connecting: boolean
  failures: number
  notBeforeMs: number
}

/**
 * A few shared connections for short statements that stand alone (autocommit): many flights are under way on each
 * at a time, and those of one turn of the event loop leave in one write. A lane has a statement_timeout and a short
 * lock_timeout of its own, is never sent a cancel request, which could hit a neighbour, and is replaced when it
 * dies, grows old, or stays silent. While no lane is there, or all are full, the pool does the work.
 */
export class Lanes {
  readonly #settings: LaneSettings
  readonly #availability: Availability
  readonly #slots: Slot[]
  /** Retired ones among them, until they have ended. */
  readonly #all = new Set<Lane>()
  #onSuspect: () => void = () => {}
  /** Statements that a lane has stopped, by name, and until when they go to the pool at once. */
  readonly #stopped = new Map<string, number>()
  /** How long a statement keeps a lane in the mean, by name. */
  readonly #keptMs = new Map<string, number>()
  /** Where the last quick read went, and nothing else since. */
  #boarding: Lane | undefined
  #generation = 0
  #watch: NodeJS.Timeout | undefined
  #ending = false

  constructor(settings: LaneSettings, availability: Availability) {
    this.#settings = settings
    this.#availability = availability
    this.#slots = Array.from({ length: settings.count }, () => ({
      lane: undefined,
      connecting: false,
      failures: 0,
      notBeforeMs: 0,
    }))
  }

  /** Told when what happened on a lane makes every connection suspect. */
  onSuspect(listener: () => void): void {
    this.#onSuspect = listener
  }

  /**
   * The least loaded lane with room that moves, for a quick read the one that those before it took in this turn;
   * undefined when there is none, or the flight is none for a lane.
   */
  pick(statements: readonly Statement[]): Lane | undefined {
    const now = performance.now()
    if (this.#ending || this.#wasStopped(statements, now) || characters(statements) > MAX_CHARACTERS)
      return undefined
    const isShared = this.#isQuickRead(statements)
    if (isShared && this.#boarding?.isBoarding === true && !this.#boarding.isHeldUp(now))
      return this.#boarding
    let best: Lane | undefined
    for (const slot of this.#slots) {
      if (slot.lane !== undefined && isExpired(slot.lane.client)) this.#retire(slot.lane)
      if (slot.lane === undefined) void this.#connect(slot)
      else if (slot.lane.inFlight < (best?.inFlight ?? MAX_IN_FLIGHT) && !slot.lane.isHeldUp(now))
        best = slot.lane
    }
    if (isShared) this.#boarding = best
    else if (this.#boarding === best) this.#boarding = undefined
    return best
  }

  /**
   * Sends one flight; rejects as GuardedConnection does. When the deadline ends before the answer, a read is let go
   * at once; what may change data is waited for, and is `outcome_unknown` when its time is up.
   */
  async fly(lane: Lane, statements: readonly Statement[], deadline: Deadline | undefined): Promise<Result> {
    const writes = statements.some((statement) => statement.writes === true)
    const permit = this.#availability.breaker.admit('call')
    const name = statements.at(-1)?.name
    const startedAt = performance.now()
    const sent = this.#settings.prepare ? statements : statements.map(unnamed)
    const landed = lane
      .fly(sent, this.#isQuickRead(statements), (ms) => this.#keep(name, ms))
      .then(
        (result) => {
          this.#availability.answered()
          permit.settle(performance.now() - startedAt >= this.#settings.slowMs ? 'slow' : 'success')
          return result
        },
        (error: unknown) => {
          const failure = classify(error)
          const { destroy, evictIdle, writesOnly } = meaningOf(failure)
          // A lane is one connection, and its loss one failure, however many flights it meets.
          const isKnown = (failure === 'lost' || failure === 'restarting') && !lane.tellLoss()
          const outcome = isKnown ? 'ignored' : outcomeOf(failure, writes)
          if (error instanceof DatabaseError) this.#availability.answered()
          this.#availability.failed(failure)
          permit.settle(outcome)
          const holdsUpMs = HOLDS_UP_MS[failure]
          if (name !== undefined && holdsUpMs !== undefined)
            this.#stopped.set(name, performance.now() + holdsUpMs)
          if (destroy) this.#retire(lane)
          if (evictIdle === true && outcome !== 'ignored') this.#onSuspect()
          if (writesOnly === true && outcome !== 'ignored') this.#availability.couldRead()
          throw error
        },
      )
    return deadline === undefined ? await landed : await untilEnd(landed, deadline, writes)
  }

  #isQuickRead(statements: readonly Statement[]): boolean {
    if (statements.some(({ writes, isShared }) => writes === true || isShared === false)) return false
    const name = statements.at(-1)?.name
    return name !== undefined && (this.#keptMs.get(name) ?? 0) < QUICK_MS
  }

  #keep(name: string | undefined, ms: number): void {
    if (name === undefined) return
    const before = this.#keptMs.get(name) ?? 0
    this.#keptMs.set(name, before + (ms - before) * LAST_ONE_COUNTS)
  }

  #wasStopped(statements: readonly Statement[], now: number): boolean {
    const name = statements.at(-1)?.name
    if (name === undefined || this.#stopped.size === 0) return false
    const until = this.#stopped.get(name)
    if (until === undefined || until > now) return until !== undefined
    this.#stopped.delete(name)
    return false
  }

  /** While the circuit is open the reconnect loop alone looks for the database. */
  async #connect(slot: Slot): Promise<void> {
    if (slot.connecting || performance.now() < slot.notBeforeMs) return
    if (this.#availability.breaker.snapshot().retryAfterMs !== null) return
    slot.connecting = true
    const generation = this.#generation
    this.#watch ??= setInterval(() => this.#look(), WATCH_EVERY_MS).unref()
    try {
      const lane = new Lane(await this.#settings.connect())
      this.#all.add(lane)
      void lane.ended.then(() => {
        this.#all.delete(lane)
        this.#forget(lane)
      })
      lane.client.on('error', () => this.#forget(lane))
      slot.failures = 0
      if (this.#ending || generation !== this.#generation) lane.retire()
      else slot.lane = lane
    } catch (error) {
      // Nobody waits for it: the pool serves meanwhile, and tells its callers what is wrong.
      const failure = classifyConnect(error)
      const { reconnectCapMs, misconfiguredCapMs } = this.#settings
      const capMs = meaningOf(failure).configuration === true ? misconfiguredCapMs : reconnectCapMs
      this.#availability.failed(failure)
      const wait = fullJitter(slot.failures, RECONNECT_BASE_MS, capMs, Math.random)
      slot.failures += 1
      slot.notBeforeMs = performance.now() + wait
    } finally {
      slot.connecting = false
    }
  }

  #forget(lane: Lane): void {
    if (this.#boarding === lane) this.#boarding = undefined
    for (const slot of this.#slots) if (slot.lane === lane) slot.lane = undefined
  }

  #retire(lane: Lane): void {
    this.#forget(lane)
    lane.retire()
  }

  /** A client's own timer would kill the neighbours of a slow statement: what counts is that nothing moves at all. */
  #look(): void {
    const limitMs = this.#settings.statementMs + STALL_GRACE_MS
    for (const lane of this.#all) {
      if (!lane.lookForSilence(performance.now(), limitMs)) continue
      lane.cut()
      this.#onSuspect()
    }
  }

  /** No lane that is there now is used again; what is in flight lands. */
  retireAll(): void {
    this.#generation += 1
    for (const { lane } of this.#slots) if (lane !== undefined) this.#retire(lane)
  }

  health(): LanesHealth {
    const ready = this.#slots.filter(({ lane }) => lane !== undefined).length
    let inFlight = 0
    for (const lane of this.#all) inFlight += lane.inFlight
    return { ready, inFlight, limit: this.#slots.length }
  }

  /** Takes no new flight; resolves when all have landed, or `timeoutMs` later, when the rest is cut. */
  async end(timeoutMs: number): Promise<void> {
    this.#ending = true
    this.retireAll()
    let late: NodeJS.Timeout | undefined
    const bound = new Promise<void>((resolve) => (late = setTimeout(resolve, timeoutMs)))
    await Promise.race([Promise.all([...this.#all].map(({ ended }) => ended)), bound])
    clearTimeout(late)
    clearInterval(this.#watch)
    for (const lane of this.#all) lane.cut()
  }
}

function characters(statements: readonly Statement[]): number {
  let sum = 0
  for (const { values } of statements) for (const value of values) sum += lengthOf(value)
  return sum
}

function lengthOf(value: unknown): number {
  if (typeof value === 'string') return value.length
  return Array.isArray(value) ? value.reduce<number>((sum, each) => sum + lengthOf(each), 0) : 0
}
