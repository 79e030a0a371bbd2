import { randomUUID } from 'node:crypto'
import { PostgresQueryCompiler } from 'kysely'
import { expect, it, vi } from 'vitest'
import { JOBS, SYSTEM, asApp, asCaller } from '../../src/db/as-caller.js'
import { compileForList, compileOnce } from '../../src/db/compile-once.js'
import { type Db, createDatabase } from '../../src/db/database.js'
import { pruneAnswers } from '../../src/db/idempotency.js'
import { pruneSessions } from '../../src/db/sessions.js'
import { anyAttempt, pruneAttempts } from '../../src/db/throttle.js'
import { userByName, usernamesOf } from '../../src/db/users.js'
import { ensureFirstOwner, ensureServiceUser } from '../../src/first-start.js'
import { createToken } from '../../src/security/tokens.js'
import { engine } from '../engine.js'
import { type Answer, type CallOptions, PASSWORD, type TestService, useService } from '../harness.js'

const OPERATIONS_TOKEN = 'an-operations-token'
const env = { AUTH_LOGIN: '', AUTH_PASSWORD: '', OPERATIONS_TOKEN }
const [first, second] = [useService(env), useService(env)]

it('what a service has done once is done again without Kysely compiling anything, whatever the values', async () => {
  const compiler = vi.spyOn(PostgresQueryCompiler.prototype, 'compileQuery')
  await new Round(first, 1).everything()
  expect(compiler.mock.calls.length).toBeGreaterThan(50)
  compiler.mockClear()
  const round = new Round(second, 2)
  await round.everything()
  const texts = compiler.mock.results.map(({ value }) => (value as { sql: string }).sql)
  expect(texts).toEqual([])

  // A new route has a place in the round, or this fails.
  const { body } = await second.call('GET', '/openapi.json')
  const routes = Object.entries<object>(body.paths).flatMap(([path, methods]) =>
    Object.keys(methods).map((method) => `${method} ${path}`),
  )
  expect([...round.done].sort()).toEqual(routes.sort())
})

it('a query that calculates with a value is refused at once, for it would lose the value', () => {
  const db = createDatabase(first.database.source)
  const next = compileOnce((db, id: number) => db.selectFrom('auth_users').limit(id + 1), 1)
  expect(() => next(db, 1)).toThrow('a hole was taken for a value')
})

it('lists of a length up to the next power of two share a text', () => {
  const db = createDatabase(first.database.source)
  const byIds = compileForList((db, ids: readonly number[]) =>
    db.selectFrom('auth_users').select('id').where('id', 'in', ids),
  )
  const [one, three, four] = [[5], [5, 6, 7], [5, 6, 7, 8]].map((ids) => byIds(db, ids).compile())
  expect(three?.parameters).toEqual([5, 6, 7, 5])
  expect([four?.parameters, four?.sql]).toEqual([[5, 6, 7, 8], three?.sql])
  expect(one?.parameters).toEqual([5])
})

/**
 * Every route, each way through it that has a query of its own, and what runs beside the routes. `n` makes names, sizes
 * and numbers differ from round to round.
 */
class Round {
  /** The routes that did what they are for. */
  readonly done = new Set<string>()
  readonly #service: TestService
  readonly #db: Db
  readonly #n: number
  #owner = ''

  constructor(service: TestService, n: number) {
    this.#service = service
    this.#n = n
    this.#db = createDatabase(service.database.source)
  }

  async everything(): Promise<void> {
    await this.#start()
    await this.#health()
    await this.#users()
    await this.#sessions()
    await this.#keys()
    for (const address of ['global', 'environment/{owner}', 'service/{owner}', 'user/{owner}'])
      await this.#config(`/v1/config/${address}/{key}`)
    await this.#events()
    await this.#reports()
    await this.#answers()
    await this.#beside()
    await this.#passwords()
  }

  /** `route` as the document spells it, `path` where it has parameters or a query; as the owner unless told otherwise. */
  async #ask(route: string, path?: string | null, options: CallOptions = {}): Promise<Answer> {
    const [method = '', template = ''] = route.split(' ')
    const owner = this.#owner === '' ? {} : { token: this.#owner }
    const answer = await this.#service.call(method.toUpperCase(), path ?? template, { ...owner, ...options })
    expect(answer.status, `${route}: ${answer.text}`).toBeLessThan(400)
    this.done.add(route)
    return answer
  }

  /** All pages of a list, of which each has `n`. */
  async #pages(route: string, path: string, options: CallOptions = {}): Promise<void> {
    let cursor: string | null = null
    do {
      const page = `${path}${path.includes('?') ? '&' : '?'}limit=${this.#n}`
      const { body } = await this.#ask(route, cursor === null ? page : `${page}&cursor=${cursor}`, options)
      cursor = body.next_cursor
    } while (cursor !== null)
  }

  #name(word: string): string {
    return `${word}-${'x'.repeat(this.#n)}`
  }

  async #newUser(word: string, role: string, password: string | undefined = PASSWORD): Promise<number> {
    const given = role === 'service' || password === '' ? {} : { password }
    const { body } = await this.#ask('post /v1/users', null, {
      body: { username: this.#name(word), role, ...given },
    })
    return body.id
  }

  async #signIn(word: string, password = PASSWORD): Promise<{ token: string; id: number }> {
    const body = { username: this.#name(word), password }
    const answer = await this.#service.call('POST', '/v1/auth/login', { body })
    expect(answer.status, answer.text).toBe(200)
    this.done.add('post /v1/auth/login')
    return { token: answer.body.token, id: answer.body.session.id }
  }

  async #start(): Promise<void> {
    // No password is given, and so none hashed.
    const setup_token = await ensureFirstOwner(this.#db, undefined as never, undefined)
    const owner = { username: this.#name('owner'), password: PASSWORD }
    await this.#ask('post /v1/setup', null, { body: { setup_token, ...owner } })
    this.#owner = (await this.#signIn('owner')).token
    await ensureServiceUser(this.#db, [createToken('gzk_')])
    await ensureServiceUser(this.#db, [createToken('gzk_')])
  }

  async #health(): Promise<void> {
    for (const path of ['/health', '/ready', '/health/live', '/healthz']) await this.#ask(`get ${path}`)
    await this.#ask('get /health/detailed', null, { token: OPERATIONS_TOKEN })
    const auto = { token: OPERATIONS_TOKEN, body: { state: 'auto' } }
    // In memory there is no circuit.
    if (engine === 'memory') this.done.add('post /health/circuit')
    else await this.#ask('post /health/circuit', null, auto)
  }

  async #users(): Promise<void> {
    const user = await this.#newUser('user', 'user')
    const made = await this.#newUser('made', 'guest', '')
    const other = await this.#newUser('other', 'owner')
    await this.#newUser('service', 'service')
    await this.#ask('get /v1/users/me')
    await this.#ask('get /v1/users/{id}', `/v1/users/${user}`)
    const filters = [`username=${this.#name('user')}`, 'role=user', 'is_active=true']
    for (let set = 0; set < 8; set += 1) {
      const query = filters.filter((_, index) => (set & (1 << index)) !== 0).join('&')
      await this.#pages('get /v1/users', `/v1/users?${query}`)
    }
    const patch = (id: number, body: object) =>
      this.#ask('patch /v1/users/{id}', `/v1/users/${id}`, { body: JSON.stringify(body) })
    await patch(other, { role: 'admin' })
    await patch(user, { role: 'guest', must_change_password: true })
    await patch(user, { is_active: false })
    await patch(user, { is_active: true, role: 'user', must_change_password: false })
    await patch(user, { must_change_password: true })
    await patch(user, { is_active: false, role: 'guest' })
    await patch(user, { is_active: true, must_change_password: false })
    await this.#ask('post /v1/users/{id}/rotate-password', `/v1/users/${made}/rotate-password`)
    await this.#ask('post /v1/users/{id}/unlock', `/v1/users/${made}/unlock`)
    await this.#ask('delete /v1/users/{id}', `/v1/users/${made}`)
  }

  async #sessions(): Promise<void> {
    const id = await this.#newUser('visitor', 'user')
    const { token } = await this.#signIn('visitor')
    const another = await this.#signIn('visitor')
    for (let more = 0; more < 2; more += 1) await this.#signIn('visitor')
    // Long enough ago to be written down again.
    await this.#service.database.read(
      `update auth_sessions set last_activity = now() - interval '${this.#n + 5} minutes'`,
    )
    await this.#ask('get /v1/auth/session', null, { token })
    await this.#pages('get /v1/sessions', '/v1/sessions', { token })
    await this.#pages('get /v1/users/{id}/sessions', `/v1/users/${id}/sessions`)
    await this.#ask('delete /v1/sessions/{id}', `/v1/sessions/${another.id}`, { token })
    await this.#ask('post /v1/sessions/revoke-others', null, { token })
    await this.#ask('post /v1/auth/logout', null, { token })
    await this.#signIn('visitor')
    await this.#ask('delete /v1/users/{id}/sessions', `/v1/users/${id}/sessions`)
  }

  async #keys(): Promise<void> {
    const holder = await this.#newUser('holder', 'user')
    const scopes = ['config:read', 'audit:read'].slice(0, this.#n)
    const make = async (fields: object) =>
      (await this.#ask('post /v1/api-keys', null, { body: { name: this.#name('key'), scopes, ...fields } }))
        .body
    await make({})
    const { id } = await make({ user_id: holder, expires_at: `20${this.#n + 60}-01-01T00:00:00Z` })
    await this.#pages('get /v1/api-keys', '/v1/api-keys')
    await this.#pages('get /v1/api-keys', `/v1/api-keys?user_id=${holder}`)
    await this.#ask('delete /v1/api-keys/{id}', `/v1/api-keys/${id}`)

    const [admin, wide] = [await this.#newUser('admin', 'admin'), ['auth:verify', 'sessions:validate']]
    const key = await this.#service.keyOf(admin, [...wide, 'act:on-behalf', 'audit:read'])
    const behalf = { token: key, headers: { 'x-on-behalf-of': String(holder) } }
    await this.#ask('get /v1/audit/events', '/v1/audit/events?limit=1', behalf)
    const given = { username: this.#name('holder'), password: PASSWORD, ip_address: `2001:db8:${this.#n}::1` }
    await this.#ask('post /v1/auth/verify', null, { token: key, body: given })
    const { token } = await this.#signIn('holder')
    await this.#ask('post /v1/sessions/validate', null, { token: key, body: { token } })
  }

  async #config(route: string): Promise<void> {
    const path = route.replace('{owner}', route.includes('/user/') ? 'me' : 'prod').replace('{key}', 'k')
    const value = { api_key: this.#name('secret'), list: [1, 2].slice(0, this.#n) }
    const put = (headers: Record<string, string>, body: object) =>
      this.#ask(`put ${route}`, path, { headers, body: { value, ...body } })
    await put({}, {})
    await put({ 'if-match': '*' }, { tags: ['a', 'b'].slice(0, this.#n), description: this.#name('text') })
    await put({ 'if-match': ['"2"', '"9"'].slice(0, this.#n).join(', ') }, { secret_paths: ['/list'] })
    await this.#ask(`patch ${route}`, path, { body: { more: this.#n } })
    await this.#ask(`get ${route}`, path)
    await this.#ask(`get ${route}`, `${path}?reveal=true`)
    await this.#pages(`get ${route}/revisions`, `${path}/revisions`)
    await this.#ask(`delete ${route}`, path, { headers: { 'if-match': '*' } })
    await put({}, {})
    await this.#ask(`delete ${route}`, path, { headers: { 'if-match': '"6"' } })
  }

  async #events(): Promise<void> {
    const ids = Array.from({ length: this.#n + 2 }, () => randomUUID())
    const fields = { event_type: 'tool_execution', message: 'm', timestamp: 1763874933.5 + this.#n }
    const body = ids.map((event_id) => ({ event_id, ...fields }))
    await this.#ask('post /v1/audit/events', null, { body })
    await this.#ask('post /v1/audit/events', null, { body })
    await this.#ask('post /v1/audit/events', null, { body: body[0] })
    await this.#ask('get /v1/audit/events/{event_id}', `/v1/audit/events/${ids[0]}`)
    await this.#ask('get /v1/audit/events')
    await this.#ask('get /v1/audit/events', '/v1/audit/events?limit=100')
    await this.#ask('get /v1/audit/events', '/v1/audit/events?limit=1000')
    await this.#pages('get /v1/audit/events', '/v1/audit/events?event_type=tool_execution')
    const time = `2026-01-0${this.#n}T00:00:00Z`
    const words = 'event_type user_id agent_id session_id action target request_id trace_id'.split(' ')
    for (const filter of [
      ...words.map((word) => `${word}=${this.#name('w')}`),
      ...[`actor_id=${this.#n}`, `on_behalf_of=${this.#n}`, `source=${['service', 'client'][this.#n % 2]}`],
      ...[`start_time=${time}`, `end_time=${time}`, `received_after=${time}`, 'level=info'],
    ])
      await this.#ask('get /v1/audit/events', `/v1/audit/events?${filter}`)
  }

  async #reports(): Promise<void> {
    await this.#ask('get /v1/reports')
    const path = `/v1/reports/logins-per-day?from=2026-01-0${this.#n}`
    for (const format of ['json', 'ndjson', 'csv'])
      await this.#ask('get /v1/reports/{name}', `${path}&format=${format}`)
  }

  /** Under an Idempotency-Key: made, given again, and made anew when the answer has expired. */
  async #answers(): Promise<void> {
    const headers = { 'idempotency-key': this.#name('answer'), 'if-match': '*' }
    const path = '/v1/config/global/kept'
    const once = async () =>
      await this.#ask('put /v1/config/global/{key}', path, { headers, body: { value: this.#n } })
    await this.#ask('put /v1/config/global/{key}', path, { body: { value: 0 } })
    await once()
    await once()
    await this.#service.database.read(
      `update idempotency_keys set created_at = now() - interval '${this.#n + 24} hours'`,
    )
    await once()
    const keyed = (word: string) => ({ headers: { 'idempotency-key': this.#name(word) } })
    const body = { value: this.#n }
    await this.#ask('put /v1/config/global/{key}', '/v1/config/global/made', { ...keyed('made'), body })
    const unmade = { headers: { ...headers, 'idempotency-key': this.#name('unmade') } }
    await this.#ask('delete /v1/config/global/{key}', '/v1/config/global/made', unmade)
    const { token } = await this.#signIn('owner')
    await this.#ask('post /v1/auth/logout', null, { ...keyed('out'), token })
  }

  /** What runs at intervals, and what operators' commands share with the routes. */
  async #beside(): Promise<void> {
    const db = this.#db
    for (const query of [pruneAnswers(db), pruneSessions(db, 7200 + this.#n), pruneAttempts(db)])
      await asCaller(db, JOBS, query)
    await asApp(db, anyAttempt(db))
    await asCaller(db, SYSTEM, userByName(db, this.#name('owner')))
    await asCaller(db, SYSTEM, usernamesOf(db, [1, 2, 3, 4].slice(2 - this.#n)))
  }

  async #passwords(): Promise<void> {
    const { read } = this.#service.database
    await this.#newUser('guesser', 'user')
    const wrong = { password: this.#name('a wrong password') }
    for (const username of [this.#name('guesser'), this.#name('nobody')]) {
      const answer = await this.#service.call('POST', '/v1/auth/login', { body: { username, ...wrong } })
      expect(answer.status).toBe(401)
    }
    // Another prefix of the same hash: stored anew at the next sign-in.
    const username = this.#name('guesser')
    const [{ password_hash: hash } = { password_hash: '' }] = (await read(
      `select password_hash from auth_users where username = '${username}'`,
    )) as { password_hash: string }[]
    await read(
      `update auth_users set password_hash = '${hash.replace('$2b$', '$2a$')}' where username = '${username}'`,
    )
    const { token } = await this.#signIn('guesser')
    const current_password = `${PASSWORD} ${this.#n}`
    const change = { current_password: PASSWORD, new_password: current_password }
    await this.#ask('post /v1/auth/password', null, { token, body: change })
    await this.#ask('post /v1/auth/reauthenticate', null, { token, body: { password: current_password } })
    const rotated = await this.#ask('post /v1/users/me/rotate-password', null, {
      token,
      body: { current_password },
    })
    // pg-mem has no EXISTS of what an adoption asks.
    if (engine !== 'memory') await read('insert into auth_adoption (finished_at) values (now())')
    await this.#signIn('guesser', rotated.body.password)
  }
}
