import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { History, type Operation, type Outcome, PREFIX_LENGTH } from './history.js'
import type { Answer, Service } from './service.js'

const THINK_MS = 10

/** Clients that change and read with short pauses, and write down what they were told. */
export class Load {
  readonly history: History
  readonly refusals: { elapsedMs: number; retryAfter: number | null; code: string }[] = []
  readonly #service: Service
  readonly #token: string
  /** Events a batch; 0: events are sent one by one only. */
  readonly #batchSize: number
  readonly #done: Promise<void[]>
  #stopping = false

  constructor(
    service: Service,
    token: string,
    clients = 8,
    { batchSize = 0, history = new History() }: { batchSize?: number; history?: History } = {},
  ) {
    this.history = history
    this.#batchSize = batchSize
    this.#service = service
    this.#token = token
    this.#done = Promise.all(Array.from({ length: clients }, (_, index) => this.#client(index)))
  }

  async stop(): Promise<History> {
    this.#stopping = true
    await this.#done
    return this.history
  }

  async #client(index: number): Promise<void> {
    const works = [() => this.#create(), () => this.#createWithKey(), () => this.#event(), () => this.#read()]
    if (this.#batchSize > 0) works.push(() => this.#batch())
    for (let turn = index; !this.#stopping; turn += 1) {
      await works[turn % works.length]?.()
      // Short of what two cores can do: delays are then the service's, and not those of a full machine.
      await sleep(THINK_MS)
    }
  }

  async #create(): Promise<Outcome> {
    const id = randomUUID()
    const { outcome, detail } = await this.#send(
      'PUT',
      `/v1/config/global/${id}`,
      { value: 1 },
      { 'if-none-match': '*' },
    )
    this.history.add({ kind: 'entry', id, outcome, detail })
    return outcome
  }

  /** Repeats under the same key until the answer is definite, as a careful client does. */
  async #createWithKey(): Promise<Outcome> {
    const id = randomUUID()
    let told: { outcome: Outcome; detail: string }
    let wasUnknown = false
    do {
      told = await this.#send(
        'PUT',
        `/v1/config/global/${id}`,
        { value: 1 },
        { 'if-none-match': '*', 'idempotency-key': id },
      )
      wasUnknown ||= told.outcome === 'unknown'
      if (told.outcome !== 'ok') await sleep(20)
    } while (told.outcome !== 'ok' && !this.#stopping)
    // A refusal says nothing of an attempt before it whose outcome was unknown.
    const outcome = told.outcome === 'fail' && wasUnknown ? 'unknown' : told.outcome
    this.history.add({ kind: 'entry', id, outcome, detail: `${told.detail}, with a key` })
    return outcome
  }

  async #event(): Promise<Outcome> {
    const id = randomUUID()
    const event = { event_id: id, event_type: 'system_event', level: 'info', message: 'load' }
    const { outcome, detail } = await this.#send('POST', '/v1/audit/events', event)
    const operation: Operation = { kind: 'event', id, outcome, detail }
    this.history.add(operation)
    return outcome
  }

  async #batch(): Promise<Outcome> {
    const id = randomUUID()
    const events = Array.from({ length: this.#batchSize }, (_, index) => ({
      event_id: id.slice(0, PREFIX_LENGTH) + index.toString(16).padStart(id.length - PREFIX_LENGTH, '0'),
      event_type: 'system_event',
      level: 'info',
      message: 'load',
    }))
    const { outcome, detail } = await this.#send('POST', '/v1/audit/events', events)
    this.history.add({ kind: 'event', id, size: this.#batchSize, outcome, detail })
    return outcome
  }

  async #read(): Promise<Outcome> {
    const { outcome } = await this.#send('GET', '/v1/auth/session')
    this.history.reads[outcome === 'ok' ? 'ok' : 'failed'] += 1
    return outcome
  }

  async #send(
    method: string,
    path: string,
    body?: unknown,
    headers: Record<string, string> = {},
  ): Promise<{ outcome: Outcome; detail: string }> {
    let answer: Answer
    try {
      answer = await this.#service.request(method, path, { token: this.#token, body, headers })
    } catch (error) {
      return { outcome: 'unknown', detail: String(error) }
    }
    const { status, elapsedMs, retryAfter } = answer
    if (status < 300) return { outcome: 'ok', detail: String(status) }
    const { code } = answer.body as { code: string }
    if (status === 503) this.refusals.push({ elapsedMs, retryAfter, code })
    const detail = `${status} ${code}`
    if (code === 'outcome_unknown') return { outcome: 'unknown', detail }
    if (status === 503 || code === 'deadline_exceeded' || code === 'in_progress')
      return { outcome: 'fail', detail }
    throw new Error(
      `an answer that no fault explains: ${method} ${path}: ${detail} ${JSON.stringify(answer.body)}`,
    )
  }
}
