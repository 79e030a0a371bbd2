import { randomUUID } from 'node:crypto'
import type { IncomingMessage, ServerResponse } from 'node:http'
import type { Passwords } from '../security/passwords.js'
import { ALWAYS, ECHOED, type Log, correlationId } from './context.js'
import { problemOf } from './error-response.js'

/** Where anyone may have a password looked at, as clients spell it; the app refuses what is spelt otherwise. */
const SIGN_INS = new Set(['/v1/auth/login', '/v1/auth/verify'])
/** Of more body, or of one whose end is not told, the app knows how to be rid. In bytes. */
const MAX_BODY = 16 * 1024
/** Node drops what comes of the body behind the answer; a connection on which it does not come is of no more use. */
const BODY_MS = 500

/**
 * Answers a sign-in that there is no room for as the app would (roomFirst), ahead of it: a flood takes what a
 * refusal costs the service's one thread two hundred times over. True when it did.
 */
export function refuseEarly(
  { passwords, log }: { passwords: Passwords; log: Log },
  incoming: IncomingMessage,
  outgoing: ServerResponse,
): boolean {
  const { method, url: path = '', headers: sent } = incoming
  if (method !== 'POST' || !SIGN_INS.has(path) || !(Number(sent['content-length']) <= MAX_BODY)) return false
  const refusal = passwords.refusal()
  if (refusal === undefined) return false
  const started = performance.now()
  const requestId = correlationId(sent['x-request-id']) ?? randomUUID()
  const { status, headers, body } = problemOf(refusal, requestId)
  outgoing.statusCode = status
  for (const name in ALWAYS) outgoing.setHeader(name, ALWAYS[name] as string)
  for (const name in headers) outgoing.setHeader(name, headers[name] as string)
  outgoing.setHeader('x-request-id', requestId)
  for (const name of ECHOED) {
    const id = correlationId(sent[name])
    if (id !== null) outgoing.setHeader(name, id)
  }
  outgoing.setHeader('content-length', Buffer.byteLength(body))
  outgoing.end(body)
  setTimeout(() => {
    if (!incoming.complete) incoming.destroy()
  }, BODY_MS).unref()
  const duration_ms = Math.round(performance.now() - started)
  log.info({ request_id: requestId, method, path, status, duration_ms }, 'request')
  return true
}
