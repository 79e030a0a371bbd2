// Signing in beside everything else, and what its time tells: `npm run bench:sign-in`. Asserts nothing about time;
// ends with 1 when a request failed that must not.
//   BENCH_SECONDS=20  BENCH_TRIES=500  BENCH_COST=10 (of the part that compares times; the other runs at 12)
//   BENCH_DATABASE_URL=postgres://super...
import { once, setMaxListeners } from 'node:events'
import { Agent, request } from 'node:http'
import { cpus } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { Worker } from 'node:worker_threads'
import { end, endAll, freePort, start, untilAnswered } from './children.mjs'
import { PASSWORD, USERNAME, openDatabase } from './data.mjs'

const SECONDS = Number(process.env['BENCH_SECONDS'] || 20)
const TRIES = Number(process.env['BENCH_TRIES'] || 500)
const COST = process.env['BENCH_COST'] || '10'
/** Who polls: so many, with a pause, as browser tabs do. */
const POLLERS = 8
const POLL_PAUSE_MS = 15
const SIGNING_IN = 32
const AT_ONCE = 200
const SERVICE = fileURLToPath(new URL('../dist/main.js', import.meta.url))
const agent = new Agent({ keepAlive: true, maxSockets: Infinity })
const say = (/** @type {string} */ line) => void process.stdout.write(`${line}\n`)

/** @typedef {{ status: number, body: any, retryAfter: string | undefined, ms: number }} Answer */

const database = await openDatabase(say)
let failed = 0
try {
  say(
    `\n${new Date().toISOString()}  Node ${process.version}  ${database.version} (${database.where})  ${cpus().length} x ${cpus()[0]?.model}`,
  )
  await besideSessions()
  await whatTimeTells()
} finally {
  await endAll()
  await database.close()
}
process.exitCode = failed > 0 ? 1 : 0

/** S7: session checks while clients sign in, and what becomes of 200 at once. */
async function besideSessions() {
  const own = await bcryptRate()
  const service = await startService('12')
  const token = await signIn(service.port, USERNAME, 0)
  const names = await createUsers(service.port, token, 'login', SIGNING_IN)
  const quiet = await poll(service.port, token, SECONDS)
  let signedIn = 0
  let refused = 0
  const stopping = new AbortController()
  setMaxListeners(SIGNING_IN, stopping.signal)
  const clients = names.map(async (name, index) => {
    while (!stopping.signal.aborted) {
      const { status, retryAfter } = await ask(service.port, 'POST', '/v1/auth/login', {
        body: { username: name, password: PASSWORD },
        from: index + 1,
      })
      if (status === 200) signedIn += 1
      else if (status === 429 || status === 503) {
        refused += 1
        await sleep(Number(retryAfter) * 1000, undefined, { signal: stopping.signal }).catch(() => undefined)
      } else failed += 1
    }
  })
  await sleep(2000)
  const before = signedIn
  const busy = await poll(service.port, token, SECONDS)
  const rate = (signedIn - before) / SECONDS
  stopping.abort()
  await Promise.all(clients)
  say(
    `S7 session checks, ${POLLERS} clients with ${POLL_PAUSE_MS} ms between: p99 ${quiet.p99.toFixed(1)} ms quiet,`,
  )
  say(
    `   ${busy.p99.toFixed(1)} ms while ${SIGNING_IN} clients sign in (${(busy.p99 / quiet.p99).toFixed(2)} of quiet, goal 2); medians ${quiet.p50.toFixed(1)} and ${busy.p50.toFixed(1)} ms`,
  )
  say(
    `   sign-ins ${rate.toFixed(1)}/s, bcrypt alone on as many threads ${own.toFixed(1)}/s: ${(rate / own).toFixed(2)} (goal 0.9); ${refused} refused with Retry-After`,
  )
  const polling = poll(service.port, token, 3)
  const answers = await Promise.all(
    Array.from({ length: AT_ONCE }, (_, index) =>
      ask(service.port, 'POST', '/v1/auth/login', {
        body: { username: names[index % names.length], password: PASSWORD },
        from: 1000 + index,
      }),
    ),
  )
  const excess = answers.filter(({ status }) => status === 429 || status === 503)
  const slowest = Math.max(...excess.map(({ ms }) => ms))
  failed += answers.filter(({ status }) => ![200, 429, 503].includes(status)).length
  failed += excess.filter(({ retryAfter }) => !(Number(retryAfter) >= 1)).length
  say(
    `   ${AT_ONCE} sign-ins at once: ${AT_ONCE - excess.length} served, ${excess.length} refused, the last of them after ${slowest.toFixed(0)} ms (goal 50); session checks meanwhile p99 ${(await polling).p99.toFixed(1)} ms`,
  )
  await end(service.child)
}

/** Unknown name, wrong password, inactive user: one after the other, in turns. */
async function whatTimeTells() {
  const service = await startService(COST)
  const token = await signIn(service.port, USERNAME, 0)
  // A name stands 100 failures an hour; no address is used twice.
  const each = Math.ceil(TRIES / 50)
  const users = await createUsers(service.port, token, 'wrong', each)
  const inactive = await createUsers(service.port, token, 'inactive', each)
  for (const name of inactive) {
    const found = await ask(service.port, 'GET', `/v1/users?username=${name}`, { token })
    await ask(service.port, 'DELETE', `/v1/users/${found.body.items[0].id}`, { token })
  }
  const kinds = /** @type {const} */ ({
    'unknown name': (/** @type {number} */ n) => ({
      username: `unknown-${n % each}`,
      password: 'not the password',
    }),
    'wrong password': (/** @type {number} */ n) => ({
      username: users[n % each],
      password: 'not the password',
    }),
    'inactive user': (/** @type {number} */ n) => ({ username: inactive[n % each], password: PASSWORD }),
  })
  /** @type {Map<string, number[]>} */
  const times = new Map(Object.keys(kinds).map((kind) => [kind, []]))
  for (let n = 0; n < TRIES; n += 1)
    for (const [kind, credentials] of Object.entries(kinds)) {
      const body = credentials(n)
      const { status, ms } = await ask(service.port, 'POST', '/v1/auth/login', { body, from: 10_000 + n })
      if (status !== 401) failed += 1
      times.get(kind)?.push(ms)
    }
  const medians = [...times.values()].map((values) => percentile(values, 0.5))
  say(`sameness, medians of ${TRIES} tries each at cost ${COST}:`)
  for (const [index, kind] of [...times.keys()].entries())
    say(`   ${kind.padEnd(16)} ${medians[index]?.toFixed(2)} ms`)
  say(
    `   the largest differs from the smallest by ${((Math.max(...medians) / Math.min(...medians) - 1) * 100).toFixed(1)} % (goal 5)`,
  )
  await end(service.child)
}

/** @param {string} cost */
async function startService(cost) {
  const port = await freePort()
  const child = start(
    [SERVICE, 'serve'],
    {
      DATABASE_URL: database.url,
      DATABASE_SSL: 'disable',
      PORT: String(port),
      LOG_LEVEL: 'warn',
      BCRYPT_COST: cost,
      TRUST_PROXY: '1',
      AUTH_LOGIN: USERNAME,
      AUTH_PASSWORD: PASSWORD,
      ENCRYPTION_KEY: `bench:${Buffer.alloc(32, 7).toString('base64')}`,
    },
    join(database.folder, 'service.log'),
  )
  await untilAnswered(child, `http://127.0.0.1:${port}/ready`, performance.now())
  return { child, port }
}

/** @param {number} port @param {string} username @param {number} from */
async function signIn(port, username, from) {
  const answer = await ask(port, 'POST', '/v1/auth/login', { body: { username, password: PASSWORD }, from })
  if (answer.status !== 200) throw new Error(`login: ${answer.status} ${JSON.stringify(answer.body)}`)
  return String(answer.body.token)
}

/** @param {number} port @param {string} token @param {string} kind @param {number} count */
async function createUsers(port, token, kind, count) {
  const names = Array.from({ length: count }, (_, index) => `${kind}-${index}`)
  for (const username of names) {
    const { status, body } = await ask(port, 'POST', '/v1/users', {
      token,
      body: { username, password: PASSWORD },
    })
    if (status !== 201 && status !== 409) throw new Error(`users: ${status} ${JSON.stringify(body)}`)
  }
  return names
}

/** @param {number} port @param {string} token @param {number} seconds */
async function poll(port, token, seconds) {
  /** @type {number[]} */
  const times = []
  const until = performance.now() + seconds * 1000
  const poller = async () => {
    while (performance.now() < until) {
      const { status, ms } = await ask(port, 'GET', '/v1/auth/session', { token })
      if (status === 200) times.push(ms)
      else failed += 1
      await sleep(POLL_PAUSE_MS)
    }
  }
  await Promise.all(Array.from({ length: POLLERS }, poller))
  return { p50: percentile(times, 0.5), p99: percentile(times, 0.99) }
}

/** What as many threads make of it that do nothing else. */
async function bcryptRate() {
  const threads = cpus().map(() => new Worker(new URL('bcrypt-rate.mjs', import.meta.url)))
  const rates = await Promise.all(threads.map((thread) => once(thread, 'message')))
  return rates.reduce((sum, [rate]) => sum + Number(rate), 0)
}

/** @param {number[]} values @param {number} share */
function percentile(values, share) {
  const sorted = values.toSorted((a, b) => a - b)
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? Number.NaN
}

/**
 * @param {number} port @param {string} method @param {string} path
 * @param {{ token?: string, body?: unknown, from?: number }} [options] @returns {Promise<Answer>}
 */
function ask(port, method, path, { token, body, from } = {}) {
  const text = body === undefined ? undefined : JSON.stringify(body)
  const started = performance.now()
  return new Promise((resolve, reject) => {
    const sent = request(
      {
        port,
        host: '127.0.0.1',
        method,
        path,
        agent,
        headers: {
          ...(token === undefined ? {} : { authorization: `Bearer ${token}` }),
          ...(text === undefined
            ? {}
            : { 'content-type': 'application/json', 'content-length': String(Buffer.byteLength(text)) }),
          ...(from === undefined
            ? {}
            : { 'x-forwarded-for': `10.${(from >> 16) & 255}.${(from >> 8) & 255}.${from & 255}` }),
        },
      },
      (response) => {
        let received = ''
        response.setEncoding('utf8')
        response.on('data', (chunk) => (received += chunk))
        response.on('end', () =>
          resolve({
            status: response.statusCode ?? 0,
            body: received === '' ? undefined : JSON.parse(received),
            retryAfter: response.headers['retry-after'],
            ms: performance.now() - started,
          }),
        )
      },
    )
    sent.on('error', reject)
    sent.end(text)
  })
}
