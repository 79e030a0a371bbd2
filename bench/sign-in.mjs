// Signing in beside everything else, and what its time tells: `npm run bench:sign-in`. Asserts nothing about time;
// ends with 1 when a request failed that must not.
//   BENCH_ROUNDS=3  BENCH_SECONDS=12 (each of a round's three parts)  BENCH_POLLERS=8  BENCH_POLL_PAUSE_MS=100
//   BENCH_FLOODS=10  BENCH_TRIES=500  BENCH_COST=10 (of the part that compares times; the others run at 12)
//   BENCH_DATABASE_URL=postgres://super...
//
// Sign-ins are compared with bcrypt alone, as many threads at the same low priority, twice in each round: on idle
// cores, and while the same clients check sessions. What the checks take of the cores (service, database and the
// clients, which run here too) bcrypt cannot have: the first ratio counts that against signing in, the second does not.
// Both need a machine that has nothing else to do. What holds on a busy one too is how long the service's threads had
// no work, and how long they ran on a core for each sign-in and for each of bcrypt alone.
//
// A flood is 200 sign-ins written in one go over connections that are open already, to a service that has served
// before, each timed from its write to its answer; who sends them shares the cores with who answers.
import { once, setMaxListeners } from 'node:events'
import { Agent, request } from 'node:http'
import { cpus } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { Worker } from 'node:worker_threads'
import { end, endAll, freePort, lowThreads, start, untilAnswered } from './children.mjs'
import { PASSWORD, USERNAME, openDatabase } from './data.mjs'

const ROUNDS = Number(process.env['BENCH_ROUNDS'] || 3)
const SECONDS = Number(process.env['BENCH_SECONDS'] || 12)
const FLOODS = Number(process.env['BENCH_FLOODS'] || 10)
/** V8 compiles what it has seen often, here and in the service: so many are told apart. */
const FIRST_FLOODS = 10
const TRIES = Number(process.env['BENCH_TRIES'] || 500)
const COST = process.env['BENCH_COST'] || '10'
/** Who polls: so many, with a pause, as browser tabs do; about 75 checks a second. */
const POLLERS = Number(process.env['BENCH_POLLERS'] || 8)
const POLL_PAUSE_MS = Number(process.env['BENCH_POLL_PAUSE_MS'] || 100)
const SIGNING_IN = 32
const AT_ONCE = 200
/** Until the served ones of a flood are long done. */
const FLOOD_PAUSE_MS = 500
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
  const service = await startService('12')
  const token = await signIn(service.port, USERNAME, 0)
  const names = await createUsers(service.port, token, 'login', SIGNING_IN)
  await poll(service.port, token, 2)
  /** @type {{ quiet: number[], beside: number[], busy: number[] }} */
  const times = { quiet: [], beside: [], busy: [] }
  const rates = { alone: 0, beside: 0, signIns: 0 }
  const cpuMs = { bcrypt: 0, signIns: 0 }
  let idle = 0
  let refused = 0
  for (let round = 0; round < ROUNDS; round += 1) {
    rates.alone += (await bcryptRate(SECONDS / 2)).rate / ROUNDS
    times.quiet.push(...(await poll(service.port, token, SECONDS)))
    const [own, beside] = await Promise.all([bcryptRate(SECONDS), poll(service.port, token, SECONDS)])
    rates.beside += own.rate / ROUNDS
    cpuMs.bcrypt += own.cpuMs / ROUNDS
    times.beside.push(...beside)
    const signingIn = startSigningIn(service.port, names)
    await sleep(2000)
    const before = { served: signingIn.served(), threads: lowThreads(service.child), at: performance.now() }
    times.busy.push(...(await poll(service.port, token, SECONDS)))
    const elapsedMs = performance.now() - before.at
    const served = signingIn.served() - before.served
    const threads = lowThreads(service.child)
    const ranMs = threads.ranMs - before.threads.ranMs
    const waitedMs = threads.waitedMs - before.threads.waitedMs
    rates.signIns += (served / elapsedMs) * (1000 / ROUNDS)
    cpuMs.signIns += ranMs / served / ROUNDS
    idle += (1 - (ranMs + waitedMs) / threads.count / elapsedMs) / ROUNDS
    refused += await signingIn.stop()
  }
  const [quiet, beside, busy] = [summary(times.quiet), summary(times.beside), summary(times.busy)]
  say(
    `S7 session checks, ${POLLERS} clients with ${POLL_PAUSE_MS} ms between, ${(times.quiet.length / SECONDS / ROUNDS).toFixed(0)}/s, ${ROUNDS} rounds of ${SECONDS} s each, at least ${Math.min(...Object.values(times).map(({ length }) => length))} checks:`,
  )
  for (const [what, { p50, p99 }] of /** @type {const} */ ([
    ['quiet', quiet],
    ['beside bcrypt alone', beside],
    [`while ${SIGNING_IN} sign in`, busy],
  ]))
    say(
      `   ${what.padEnd(20)} p50 ${p50.toFixed(1)} ms, p99 ${p99.toFixed(1)} ms, ${(p99 / quiet.p99).toFixed(2)} of quiet`,
    )
  say('   (goal for the last: 2, later 1.5)')
  say(`   sign-ins ${rates.signIns.toFixed(2)}/s; ${refused} were refused with Retry-After, and came again`)
  say('   bcrypt on as many threads of the same low priority, nothing around it:')
  say(
    `   on idle cores         ${rates.alone.toFixed(2)}/s: sign-ins are ${(rates.signIns / rates.alone).toFixed(2)} of it`,
  )
  say(
    `   beside the same polls ${rates.beside.toFixed(2)}/s: sign-ins are ${(rates.signIns / rates.beside).toFixed(2)} of it (goal 0.9, later 0.95)`,
  )
  say(
    `   the service's threads had no work for ${(idle * 100).toFixed(1)} % of the time, and ran ${cpuMs.signIns.toFixed(0)} ms a sign-in; bcrypt alone ran ${cpuMs.bcrypt.toFixed(0)} ms:`,
  )
  say(
    `   of what bcrypt makes of the time they had a core or could have had one, sign-ins are ${(((1 - idle) * cpuMs.bcrypt) / cpuMs.signIns).toFixed(2)}`,
  )
  await flood(service, token, names)
  await end(service.child)
}

/** So many clients that sign in again and again, and wait as long as a refusal says. @param {number} port @param {string[]} names */
function startSigningIn(port, names) {
  let served = 0
  let refused = 0
  const stopping = new AbortController()
  setMaxListeners(names.length, stopping.signal)
  const clients = names.map(async (name, index) => {
    while (!stopping.signal.aborted) {
      const { status, retryAfter } = await ask(port, 'POST', '/v1/auth/login', {
        body: { username: name, password: PASSWORD },
        from: index + 1,
      })
      if (status === 200) served += 1
      else if (status === 429 || status === 503) {
        refused += 1
        await sleep(Number(retryAfter) * 1000, undefined, { signal: stopping.signal }).catch(() => undefined)
      } else failed += 1
    }
  })
  return {
    served: () => served,
    async stop() {
      stopping.abort()
      await Promise.all(clients)
      return refused
    },
  }
}

/** @param {Awaited<ReturnType<typeof startService>>} service @param {string} token @param {string[]} names */
async function flood({ port, child }, token, names) {
  const flooding = start(
    [fileURLToPath(new URL('flood.mjs', import.meta.url))],
    {},
    join(database.folder, 'flood.log'),
    {
      ipc: true,
    },
  )
  const requests = Array.from({ length: AT_ONCE }, (_, index) => {
    const body = JSON.stringify({ username: names[index % names.length], password: PASSWORD })
    return `POST /v1/auth/login HTTP/1.1\r\nhost: bench\r\nx-forwarded-for: ${address(1000 + index)}\r\ncontent-type: application/json\r\ncontent-length: ${Buffer.byteLength(body)}\r\n\r\n${body}`
  })
  let flooded = false
  const polling = pollWhile(port, token, () => !flooded)
  flooding.send({ port, requests, floods: FIRST_FLOODS + FLOODS, pauseMs: FLOOD_PAUSE_MS, pid: child.pid })
  const [message] = await once(flooding, 'message')
  flooded = true
  const checks = summary(await polling)
  await end(flooding)
  if (message.done === undefined) throw new Error(`flood: ${message.failed}`)
  /** @type {import('./flood.mjs').Flooded[]} */
  const all = message.done
  const floods = all.slice(FIRST_FLOODS)
  const refusalsOf = (/** @type {import('./flood.mjs').Flooded} */ { seen }) =>
    seen.filter(({ status }) => status === 429 || status === 503)
  const refusals = floods.map(refusalsOf)
  failed += all.flatMap(({ seen }) => seen).filter(({ status }) => ![200, 429, 503].includes(status)).length
  failed += all.flatMap(refusalsOf).filter(({ retryAfter }) => !(Number(retryAfter) >= 1)).length
  const lastOf = (/** @type {import('./flood.mjs').Flooded} */ told) =>
    Math.max(...refusalsOf(told).map(({ ms }) => ms))
  const last = floods.map(lastOf)
  const first = all.slice(0, FIRST_FLOODS).map(lastOf)
  const middle = percentile(
    refusals.flat().map(({ ms }) => ms),
    0.5,
  )
  const cpu = percentile(
    floods.map(({ cpuMs }) => cpuMs),
    0.5,
  )
  const refused = refusals.map(({ length }) => length)
  say(
    `   ${AT_ONCE} sign-ins written at once over open connections, ${FLOODS} times: ${Math.min(...refused)} to ${Math.max(...refused)} refused with Retry-After`,
  )
  say(
    `   the last refusal after ${percentile(last, 0.5).toFixed(0)} ms (median; ${last.map((ms) => ms.toFixed(0)).join(', ')}), of all refusals half after ${middle.toFixed(0)} ms (goal 50)`,
  )
  say(
    `   in the ${FIRST_FLOODS} floods before, until V8 had compiled for them: ${first.map((ms) => ms.toFixed(0)).join(', ')}`,
  )
  say(
    `   the service's main thread worked ${cpu.toFixed(0)} ms for all ${AT_ONCE} until then (median), ${((cpu / AT_ONCE) * 1000).toFixed(0)} us each; session checks meanwhile p50 ${checks.p50.toFixed(1)}, p99 ${checks.p99.toFixed(1)} ms`,
  )
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

/** How long each check took. @param {number} port @param {string} token @param {number} seconds */
async function poll(port, token, seconds) {
  const until = performance.now() + seconds * 1000
  return await pollWhile(port, token, () => performance.now() < until)
}

/** @param {number} port @param {string} token @param {() => boolean} going @returns {Promise<number[]>} */
async function pollWhile(port, token, going) {
  /** @type {number[]} */
  const times = []
  const poller = async (/** @type {number} */ index) => {
    await sleep((index * POLL_PAUSE_MS) / POLLERS)
    while (going()) {
      const { status, ms } = await ask(port, 'GET', '/v1/auth/session', { token })
      if (status === 200) times.push(ms)
      else failed += 1
      await sleep(POLL_PAUSE_MS)
    }
  }
  await Promise.all(Array.from({ length: POLLERS }, (_, index) => poller(index)))
  return times
}

/** @param {number[]} times */
function summary(times) {
  return { p50: percentile(times, 0.5), p99: percentile(times, 0.99) }
}

/** What as many threads make of it that do nothing else. @param {number} seconds */
async function bcryptRate(seconds) {
  const script = new URL('bcrypt-rate.mjs', import.meta.url)
  const threads = cpus().map(() => new Worker(script, { workerData: { seconds } }))
  const told = await Promise.all(threads.map((thread) => once(thread, 'message')))
  return {
    rate: told.reduce((sum, [{ rate }]) => sum + Number(rate), 0),
    cpuMs: told.reduce((sum, [{ cpuMs }]) => sum + Number(cpuMs), 0) / told.length,
  }
}

/** @param {number} from */
function address(from) {
  return `10.${(from >> 16) & 255}.${(from >> 8) & 255}.${from & 255}`
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
          ...(from === undefined ? {} : { 'x-forwarded-for': address(from) }),
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
