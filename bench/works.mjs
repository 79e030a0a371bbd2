// What is measured: the request of each connection, to the service and to the bare stack.
import { createHash } from 'node:crypto'
import { BATCH, CONNECTIONS, PASSWORD, USERNAME, configKey, exampleEvent, exampleSettings } from './data.mjs'

/**
 * @typedef {object} Work
 * @property {string} id as in the performance notes
 * @property {string} name
 * @property {number | undefined} goal of the ratio of requests a second
 * @property {number} connections
 * @property {string[]} service
 * @property {string[]} bare
 * @property {string[] | undefined} checked the bare stack with a session check of its own ahead
 */

/** @param {{ token: string, positions: { at: string, id: number }[] }} given @returns {Work[]} */
export function worksFor({ token, positions }) {
  const authorization = { authorization: `Bearer ${token}` }
  const filters = createHash('sha256').update('[]').digest('base64url').slice(0, 16)
  const every = (/** @type {(index: number) => string} */ make) =>
    Array.from({ length: CONNECTIONS }, (_, index) => make(index))
  const event = JSON.stringify(exampleEvent(0))
  const batch = JSON.stringify(Array.from({ length: BATCH }, (_, index) => exampleEvent(index)))
  const login = JSON.stringify({ username: USERNAME, password: PASSWORD })
  /**
   * @param {string} method @param {(index: number) => string} path @param {(index: number) => string} barePath
   * @param {string} [body] @param {Record<string, string>} [headers]
   */
  const both = (method, path, barePath, body, headers = {}) => ({
    service: every((index) => http(method, path(index), { ...authorization, ...headers }, body)),
    bare: every((index) => http(method, barePath(index), authorization, body)),
    checked: every((index) => http(method, `/checked${barePath(index)}`, authorization, body)),
  })
  const position = (/** @type {number} */ index) => positions[index % positions.length] ?? { at: '', id: 0 }
  const cursor = (/** @type {number} */ index) =>
    Buffer.from(JSON.stringify([filters, position(index).at, position(index).id])).toString('base64url')
  const bareCursor = (/** @type {number} */ index) =>
    `at=${encodeURIComponent(position(index).at)}&id=${position(index).id}`
  const events = () => '/v1/audit/events'

  return [
    {
      id: 'S1',
      name: 'session check',
      goal: 0.6,
      connections: CONNECTIONS,
      ...both(
        'GET',
        () => '/v1/auth/session',
        () => '/session',
      ),
      checked: undefined,
    },
    {
      id: 'S2',
      name: 'configuration read',
      goal: 0.35,
      connections: CONNECTIONS,
      ...both(
        'GET',
        (index) => `/v1/config/global/${configKey(index)}`,
        (index) => `/config/${configKey(index)}`,
      ),
    },
    {
      id: 'S3',
      name: 'configuration write',
      goal: undefined,
      connections: CONNECTIONS,
      ...both(
        'PUT',
        (index) => `/v1/config/global/${configKey(index)}`,
        (index) => `/config/${configKey(index)}`,
        JSON.stringify({ value: exampleSettings() }),
        { 'if-match': '*' },
      ),
    },
    {
      id: 'S4',
      name: 'one audit event',
      goal: 0.5,
      connections: CONNECTIONS,
      ...both('POST', events, () => '/events', event),
    },
    {
      id: 'S5',
      name: `batch of ${BATCH} events`,
      goal: 0.6,
      connections: CONNECTIONS,
      ...both('POST', events, () => '/events', batch),
    },
    {
      id: 'S6',
      name: 'page of 50 events',
      goal: undefined,
      connections: CONNECTIONS,
      ...both(
        'GET',
        (index) => `/v1/audit/events?limit=50&cursor=${cursor(index)}`,
        (index) => `/page?${bareCursor(index)}`,
      ),
    },
    {
      id: 'S7',
      name: 'login, bcrypt cost 12',
      goal: undefined,
      connections: 4,
      ...both(
        'POST',
        () => '/v1/auth/login',
        () => '/login',
        login,
      ),
      service: every(() => http('POST', '/v1/auth/login', {}, login)),
      checked: undefined,
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
