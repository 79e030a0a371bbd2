// What is measured: the requests of each reading of each work.
import { createHash } from 'node:crypto'
import { BATCH, CONNECTIONS, PASSWORD, USERNAME, configKey, exampleEvent, exampleSettings } from './data.mjs'

/**
 * The service whole; its data layer for a caller who is known already; the bare stack; the bare stack with a session
 * check of its own ahead; and the peers.
 * @typedef {'service' | 'known' | 'bare' | 'checked' | 'prisma' | 'fastify'} Reading
 */
/** @type {readonly Reading[]} */
export const READINGS = ['service', 'known', 'bare', 'checked', 'prisma', 'fastify']
/** Which server answers a reading. @param {Reading} reading */
export const serverOf = (reading) => (reading === 'checked' ? 'bare' : reading)

/**
 * @typedef {object} Work
 * @property {string} id as in the performance notes
 * @property {string} name
 * @property {number} [goal] of the ratio to bare
 * @property {'service' | 'known'} judged which reading's ratio the goal is about
 * @property {number} connections
 * @property {boolean} isStream its rows are counted, not its requests
 * @property {Partial<Record<Reading, string[]>>} requests one a connection
 */

/** @param {{ token: string, positions: { at: string, id: number }[] }} given @returns {Work[]} */
export function worksFor({ token, positions }) {
  const authorization = { authorization: `Bearer ${token}` }
  const filters = createHash('sha256').update('[]').digest('base64url').slice(0, 16)
  const every = (/** @type {(index: number) => string} */ make) =>
    Array.from({ length: CONNECTIONS }, (_, index) => make(index))
  const settings = JSON.stringify({ value: exampleSettings() })
  const event = JSON.stringify(exampleEvent(0))
  const batch = JSON.stringify(Array.from({ length: BATCH }, (_, index) => exampleEvent(index)))
  const login = JSON.stringify({ username: USERNAME, password: PASSWORD })
  const position = (/** @type {number} */ index) => positions[index % positions.length] ?? { at: '', id: 0 }
  const cursor = (/** @type {number} */ index) =>
    Buffer.from(JSON.stringify([filters, position(index).at, position(index).id])).toString('base64url')
  const bareCursor = (/** @type {number} */ index) =>
    `at=${encodeURIComponent(position(index).at)}&id=${position(index).id}`

  /** @param {string} method @param {(index: number) => string} path @param {string} [body] @param {Record<string, string>} [headers] */
  const service = (method, path, body, headers = {}) =>
    every((index) => http(method, path(index), { ...authorization, ...headers }, body))
  /** All but the service are asked alike. @param {string} method @param {(index: number) => string} path @param {string} [body] */
  const others = (method, path, body) => every((index) => http(method, path(index), authorization, body))
  /** @param {string} method @param {(index: number) => string} path @param {string} [body] */
  const behindSession = (method, path, body) => others(method, (index) => `/checked${path(index)}`, body)
  /** @param {string[]} requests */
  const peers = (requests) => ({ prisma: requests, fastify: requests })
  /**
   * A work whose caller is known, and what the whole service makes of it.
   * @param {Parameters<typeof service>} whole @param {Parameters<typeof others>} plain
   */
  const knownCaller = (whole, plain) => ({
    judged: /** @type {const} */ ('known'),
    connections: CONNECTIONS,
    isStream: false,
    requests: {
      service: service(...whole),
      known: others(...plain),
      bare: others(...plain),
      checked: behindSession(...plain),
      ...peers(others(...plain)),
    },
  })
  const wholeService = { judged: /** @type {const} */ ('service'), connections: CONNECTIONS, isStream: false }
  const configPath = (/** @type {number} */ index) => `/config/${configKey(index)}`
  const serviceConfigPath = (/** @type {number} */ index) => `/v1/config/global/${configKey(index)}`
  const eventsPath = () => '/v1/audit/events'

  return [
    {
      id: 'S1',
      name: 'session check',
      goal: 1.5,
      ...wholeService,
      requests: {
        service: service('GET', () => '/v1/auth/session'),
        bare: others('GET', () => '/session'),
        ...peers(others('GET', () => '/session')),
      },
    },
    {
      id: 'S2',
      name: 'configuration read',
      goal: 1.3,
      ...knownCaller(['GET', serviceConfigPath], ['GET', configPath]),
    },
    {
      id: 'S2A',
      name: 'session check, then read',
      goal: 0.9,
      ...wholeService,
      requests: {
        service: service('GET', serviceConfigPath),
        bare: behindSession('GET', configPath),
        ...peers(behindSession('GET', configPath)),
      },
    },
    {
      id: 'S3',
      name: 'configuration write',
      goal: 0.75,
      ...knownCaller(
        ['PUT', serviceConfigPath, settings, { 'if-match': '*' }],
        ['PUT', configPath, settings],
      ),
    },
    {
      id: 'S4',
      name: 'one audit event',
      goal: 1,
      ...knownCaller(['POST', eventsPath, event], ['POST', () => '/events', event]),
    },
    {
      id: 'S5',
      name: `batch of ${BATCH} events`,
      goal: 0.9,
      ...knownCaller(['POST', eventsPath, batch], ['POST', () => '/events', batch]),
    },
    {
      id: 'S6',
      name: 'page of 50 events',
      goal: 1,
      ...knownCaller(
        ['GET', (index) => `/v1/audit/events?limit=50&cursor=${cursor(index)}`],
        ['GET', (index) => `/page?${bareCursor(index)}`],
      ),
    },
    {
      id: 'S7',
      name: 'login, bcrypt cost 12',
      ...wholeService,
      connections: 4,
      requests: {
        service: every(() => http('POST', '/v1/auth/login', {}, login)),
        bare: every(() => http('POST', '/login', {}, login)),
      },
    },
    {
      id: 'S8',
      name: 'rows as CSV, rows/s',
      goal: 0.9,
      judged: 'known',
      connections: 1,
      isStream: true,
      requests: {
        known: others('GET', () => '/csv'),
        bare: others('GET', () => '/csv'),
        ...peers(others('GET', () => '/csv')),
      },
    },
  ]
}

/**
 * A whole request, ready for the socket.
 * @param {string} method @param {string} path @param {Record<string, string>} headers @param {string} [body]
 */
export function http(method, path, headers, body) {
  const all = {
    host: '127.0.0.1',
    'user-agent': 'bench',
    ...headers,
    ...(body === undefined
      ? {}
      : { 'content-type': 'application/json', 'content-length': String(Buffer.byteLength(body)) }),
  }
  const lines = Object.entries(all).map(([name, value]) => `${name}: ${value}\r\n`)
  return `${method} ${path} HTTP/1.1\r\n${lines.join('')}\r\n${body ?? ''}`
}
