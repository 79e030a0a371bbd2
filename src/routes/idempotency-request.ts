import { createHash, createHmac } from 'node:crypto'
import type { Context } from 'hono'
import { routePath } from 'hono/route'
import { actorText } from '../db/identity.js'
import type { AnswerId } from '../db/idempotency.js'
import { AppError } from '../errors.js'
import { canonicalJson } from '../security/json-text.js'
import type { JsonTree } from '../security/json-tree.js'
import { redactSecrets } from '../security/redact.js'
import type { KeyRing } from '../security/secret-box.js'
import type { AppEnv } from './context.js'

/** A request that came with an Idempotency-Key: where its answer is kept, and what it is known by (requestHashes). */
export interface KeyedRequest {
  id: AnswerId
  hashes: [string, ...string[]]
}

/** `about` names what is changed where the address does not say it. Throws `invalid_request` for a malformed key. */
export async function keyedRequest(
  c: Context<AppEnv>,
  ring: KeyRing | null,
  header: string,
  about: string,
): Promise<KeyedRequest> {
  const route = `${c.req.method} ${routePath(c)}`
  const id: AnswerId = { caller: actorText(c.get('caller').actor), route, key: readKey(header) }
  return { id, hashes: await requestHashes(c, ring, id, about) }
}

/**
 * The key of a header: bare or a structured-field string (RFC 9651, section 3.3.3), whose quotes and
 * escapes are not part of it. `invalid_request` unless it is 1 to 255 visible ASCII characters.
 */
function readKey(header: string): string {
  const quoted = /^"((?:[\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"$/.exec(header)?.[1]
  const key = quoted?.replaceAll(/\\(.)/g, '$1') ?? /^[\x21\x23-\x7e]*$/.exec(header)?.[0] ?? ''
  if (key.length < 1 || key.length > 255) {
    throw new AppError('invalid_request', 'Idempotency-Key: 1 to 255 visible ASCII characters.')
  }
  return key
}

/**
 * What tells one request from another: address with query, preconditions, for whom, about what, and the
 * body's bytes. The first hash is the one to keep; the others are those of older keys, so that changing
 * ENCRYPTION_KEY breaks no retry.
 *
 * A body may hold a secret that is easy to guess, hence the key: a copy of the table proves no guess.
 * Without ENCRYPTION_KEY there is none: a random one would call honest retries another request after a restart, and
 * on every other replica. Then whatever is named like a secret is left out of the hash, passwords before all.
 */
async function requestHashes(
  c: Context<AppEnv>,
  ring: KeyRing | null,
  id: AnswerId,
  about: string,
): Promise<[string, ...string[]]> {
  const { pathname, search } = new URL(c.req.url)
  const conditions = [c.req.header('if-match') ?? null, c.req.header('if-none-match') ?? null]
  const asked = JSON.stringify([id, pathname + search, conditions, c.get('caller').onBehalfOf, about])
  // What no jsonBody has read is no part of the request to its route, and may be of any size.
  const hasBody = 'arrayBuffer' in c.req.bodyCache
  if (ring === null) {
    const { tree } = redactSecrets(hasBody ? await c.req.json<JsonTree>() : null, {
      maxStringLength: Infinity,
    })
    return [
      createHash('sha256')
        .update(`${asked}\n${canonicalJson(tree)}`)
        .digest('hex'),
    ]
  }
  const body = hasBody ? await c.req.arrayBuffer() : new ArrayBuffer(0)
  const hashers = [...ring.keys.values()].map((key) =>
    createHmac('sha256', key).update('idempotency-request:'),
  )
  return hashers.map((hasher) => hasher.update(`${asked}\n`).update(new Uint8Array(body)).digest('hex')) as [
    string,
    ...string[],
  ]
}
