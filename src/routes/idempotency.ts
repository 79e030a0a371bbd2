import { createHash, createHmac } from 'node:crypto'
import type { Context } from 'hono'
import { routePath } from 'hono/route'
import type { ContentfulStatusCode } from 'hono/utils/http-status'
import { asCaller, withCommit } from '../db/as-caller.js'
import type { Db } from '../db/database.js'
import {
  type AnswerId,
  type FoundAnswer,
  type StoredAnswer,
  answerUnder,
  forgetExpiredAnswer,
  keepAnswer,
} from '../db/idempotency.js'
import { actorText } from '../db/identity.js'
import { inTransaction } from '../db/transaction.js'
import { AppError, type ErrorCode, validationFailed } from '../errors.js'
import { canonicalJson } from '../security/json-text.js'
import type { JsonTree } from '../security/json-tree.js'
import { redactSecrets } from '../security/redact.js'
import type { KeyRing } from '../security/secret-box.js'
import type { AppEnv } from './context.js'

export interface IdempotencyDeps {
  db: Db
  /** Its keys make the hashes of requests; null without ENCRYPTION_KEY. */
  ring: KeyRing | null
}

/** The header as the OpenAPI document shows it, for createRoute's `parameters`. */
export const idempotencyKey = {
  in: 'header' as const,
  name: 'Idempotency-Key',
  required: false,
  schema: { type: 'string' as const },
  description:
    '1 to 255 visible ASCII characters, bare or as a quoted string (the same key either way). Kept for 24 hours, ' +
    'for this caller and route, when the answer is 2xx: the same request again gives the first answer with ' +
    'Idempotent-Replayed: true. 422 for another request under the same key, 409 in_progress while the first one ' +
    'runs, 409 already_done where the first answer showed a secret.',
}

/** Of an answer's headers, those that a replay repeats; all others belong to the request. */
const KEPT_HEADERS = ['content-type', 'etag', 'location'] as const

/** What a change says of a state in which it was made already; `conflict` is a row in its place, too. */
const MADE_BEFORE = new Set<ErrorCode>([
  'conflict',
  'already_done',
  'not_found',
  'version_mismatch',
  'precondition_required',
  'validation_failed',
])

/** `response` of the table, as JSON. */
type Kept = { headers: Record<string, string> } & ({ body: string | null } | { shownOnce: number })

/**
 * A change that an Idempotency-Key makes once (draft-ietf-httpapi-idempotency-key-header). To be called
 * when the caller is known to have the right: the first answer to the same request is given again, whatever
 * the state is now. Without the header `change` runs as it is; with it, in one transaction with its answer,
 * on the one connection that `change` is given, and again when the database asks for it (inTransaction).
 *
 * A refusal is thrown and leaves nothing behind. Who answers with a secret says so by `Cache-Control:
 * no-store` and calls `once` with the resource's id: that alone is kept. `about` names what is changed
 * where the address does not say it, as the session that a logout ends. `prepare` is what must not happen
 * inside a transaction (hashing, giving a password again), and does not when the answer is there already.
 * `compared` is around the comparison of a repetition with the first request, where that could tell a password.
 *
 * Throws `invalid_request` for a malformed key, `validation_failed` for a key of another request,
 * `in_progress`, `already_done`, and what `change` throws.
 */
export async function idempotent<R extends Response, P = undefined>(
  c: Context<AppEnv>,
  { db, ring }: IdempotencyDeps,
  change: (db: Db, once: (id: number) => void, prepared: P) => Promise<R>,
  {
    about = '',
    prepare,
    compared = async (compare) => await Promise.resolve(compare()),
  }: {
    about?: string
    prepare?: () => Promise<P>
    compared?: (compare: () => Response) => Promise<Response>
  } = {},
): Promise<R> {
  const header = c.req.header('idempotency-key')
  if (header === undefined) return await change(db, () => undefined, (await prepare?.()) as P)

  const { caller } = c.var
  const route = `${c.req.method} ${routePath(c)}`
  const id: AnswerId = { caller: actorText(caller.actor), route, key: readKey(header) }
  const hashes = await requestHashes(c, ring, id, about)
  let found: FoundAnswer | undefined
  if (prepare !== undefined) {
    ;[found] = await asCaller(db, caller, answerUnder(db, id))
    if (found?.fresh === true) return (await compared(replaying(c, found, hashes))) as R
  }
  const prepared = (await prepare?.()) as P
  try {
    const response = await inTransaction(db, caller, async (tx) => {
      // BEGIN and identity travel with it, and hold for what follows.
      ;[found] = (await tx.executeQuery(answerUnder(tx, id))).rows
      if (found === undefined || found.fresh === true || !found.locked) return undefined
      let shownOnce: number | undefined
      const response = await change(tx, (resource) => (shownOnce = resource), prepared)
      if (!response.ok) return response
      const kept = JSON.stringify(await keptOf(response, shownOnce))
      if (found.fresh === false) await tx.executeQuery(forgetExpiredAnswer(tx, id))
      const answer = { request_hash: hashes[0] ?? '', status: response.status, response: kept }
      await withCommit(tx, caller, keepAnswer(tx, id, answer))
      return response
    })
    if (response !== undefined) return response
  } catch (error) {
    // What was prepared for an answer that is not given.
    for (const name of KEPT_HEADERS) c.header(name, undefined)
    // Made a moment ago, between the look and its lock? Then the change refused itself, or the row its place.
    if (!(error instanceof AppError) || !MADE_BEFORE.has(error.code)) throw error
    ;[found] = await asCaller(db, caller, answerUnder(db, id))
    if (found?.fresh !== true) throw error
  }
  if (found?.fresh !== true) {
    throw new AppError('in_progress', 'The first request with this Idempotency-Key is still running.', {
      retryAfterSeconds: 1,
    })
  }
  return (await compared(replaying(c, found, hashes))) as R
}

function replaying(c: Context<AppEnv>, found: StoredAnswer, hashes: string[]): () => Response {
  return () => replay(c, found, hashes)
}

function replay(c: Context<AppEnv>, found: StoredAnswer, hashes: string[]): Response {
  if (!hashes.includes(found.request_hash)) {
    throw validationFailed('', 'This Idempotency-Key was used for another request.')
  }
  const kept = JSON.parse(found.response) as Kept
  const headers = { ...kept.headers, 'idempotent-replayed': 'true' }
  if ('shownOnce' in kept) {
    throw new AppError(
      'already_done',
      `Done already, with the id ${kept.shownOnce}; what the first answer showed once is not kept.`,
      { headers },
    )
  }
  return c.newResponse(kept.body, found.status as ContentfulStatusCode, headers)
}

async function keptOf(response: Response, shownOnce: number | undefined): Promise<Kept> {
  const headers = Object.fromEntries(
    KEPT_HEADERS.flatMap((name) => {
      const value = response.headers.get(name)
      return value === null ? [] : [[name, value]]
    }),
  )
  if (shownOnce !== undefined) return { headers, shownOnce }
  if (response.headers.get('cache-control')?.includes('no-store') === true)
    throw new Error('an answer with a secret must name its resource: call once(id)')
  return { headers, body: response.body === null ? null : await response.clone().text() }
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
): Promise<string[]> {
  const { pathname, search } = new URL(c.req.url)
  const conditions = [c.req.header('if-match') ?? null, c.req.header('if-none-match') ?? null]
  const asked = JSON.stringify([id, pathname + search, conditions, c.var.caller.onBehalfOf, about])
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
  return hashers.map((hasher) => hasher.update(`${asked}\n`).update(new Uint8Array(body)).digest('hex'))
}
