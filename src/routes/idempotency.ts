import type { Context } from 'hono'
import type { ContentfulStatusCode } from 'hono/utils/http-status'
import { asCaller, withCommit } from '../db/as-caller.js'
import type { Db } from '../db/database.js'
import {
  type FoundAnswer,
  type MadeOnce,
  type OnceValues,
  type StoredAnswer,
  answerUnder,
  forgetExpiredAnswer,
  keepAnswer,
  onceValues,
} from '../db/idempotency.js'
import { inTransaction } from '../db/transaction.js'
import { AppError, type ErrorCode, validationFailed } from '../errors.js'
import type { KeyRing } from '../security/secret-box.js'
import type { AppEnv } from './context.js'
import { type KeyedRequest, keyedRequest } from './idempotency-request.js'

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

const NO_CONTENT = JSON.stringify({ headers: {}, body: null } satisfies Kept)

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
    compared = async (compare) => compare(),
  }: {
    about?: string
    prepare?: () => Promise<P>
    compared?: (compare: () => Response) => Promise<Response>
  } = {},
): Promise<R> {
  const header = c.req.header('idempotency-key')
  if (header === undefined) return await change(db, () => undefined, (await prepare?.()) as P)

  const caller = c.get('caller')
  const request = await keyedRequest(c, ring, header, about)
  const { id, hashes } = request
  if (prepare !== undefined) {
    const [found] = await asCaller(db, { ...caller, isShared: false }, answerUnder(db, id))
    if (found?.fresh === true) return (await compared(() => replay(c, found, hashes))) as R
  }
  const prepared = (await prepare?.()) as P
  const make = () =>
    inTransaction(db, caller, async (tx): Promise<Outcome<R>> => {
      // BEGIN and identity travel with it, and hold for what follows.
      const [found] = (await tx.executeQuery(answerUnder(tx, id))).rows
      if (found === undefined || found.fresh === true || !found.locked) return { found }
      let shownOnce: number | undefined
      const response = await change(tx, (resource) => (shownOnce = resource), prepared)
      if (!response.ok) return { response }
      const kept = JSON.stringify(await keptOf(response, shownOnce))
      if (found.fresh === false) await tx.executeQuery(forgetExpiredAnswer(tx, id))
      const answer = { request_hash: hashes[0], status: response.status, response: kept }
      await withCommit(tx, caller, keepAnswer(tx, id, answer))
      return { response }
    })
  return await firstOrAgain(c, db, request, make, compared)
}

/**
 * The same for a change that is one statement, which looks, changes and keeps in one round trip. Without the header `change`
 * runs; with it `once`, which is that statement (withTurn, withAnswer) for these values. Where it has changed and kept
 * nothing, `refuse` throws why. The answer has this status, and no content unless the statement says another `answer`.
 */
export async function idempotentStatement<R extends Response>(
  c: Context<AppEnv>,
  { db, ring }: IdempotencyDeps,
  {
    change,
    once,
    refuse,
    status,
    about = '',
  }: {
    change: () => Promise<R>
    once: (values: OnceValues) => Promise<MadeOnce | undefined>
    refuse?: () => Promise<never> | never
    status: number
    about?: string
  },
): Promise<R> {
  const header = c.req.header('idempotency-key')
  if (header === undefined) return await change()

  const request = await keyedRequest(c, ring, header, about)
  const { id, hashes } = request
  const values = onceValues(id, { request_hash: hashes[0], status, response: NO_CONTENT })
  return await firstOrAgain(c, db, request, async () => {
    let found = await once(values)
    if (found?.fresh === false && found.locked) {
      await asCaller(db, c.get('caller'), forgetExpiredAnswer(db, id))
      found = await once(values)
    }
    if (typeof found?.made === 'string') return { response: answered(c, status, found.made) as R }
    if (found?.locked === true && found.fresh === null) await refuse?.()
    return { found }
  })
}

/** What a try to be the first came to: its own answer, or what it found instead. */
type Outcome<R> = { response: R; found?: never } | { response?: never; found: FoundAnswer | undefined }

async function firstOrAgain<R extends Response>(
  c: Context<AppEnv>,
  db: Db,
  { id, hashes }: KeyedRequest,
  make: () => Promise<Outcome<R>>,
  compared: (compare: () => Response) => Promise<Response> = async (compare) => compare(),
): Promise<R> {
  let found: FoundAnswer | undefined
  try {
    const outcome = await make()
    if (outcome.response !== undefined) return outcome.response
    found = outcome.found
  } catch (error) {
    // What was prepared for an answer that is not given.
    for (const name of KEPT_HEADERS) c.header(name, undefined)
    // Made a moment ago, between the look and its lock? Then the change refused itself, or the row its place.
    if (!(error instanceof AppError) || !MADE_BEFORE.has(error.code)) throw error
    ;[found] = await asCaller(db, { ...c.get('caller'), isShared: false }, answerUnder(db, id))
    if (found?.fresh !== true) throw error
  }
  if (found?.fresh !== true) {
    throw new AppError('in_progress', 'The first request with this Idempotency-Key is still running.', {
      retryAfterSeconds: 1,
    })
  }
  const first = found
  return (await compared(() => replay(c, first, hashes))) as R
}

function replay(c: Context<AppEnv>, found: StoredAnswer, hashes: string[]): Response {
  if (!hashes.includes(found.request_hash)) {
    throw validationFailed('', 'This Idempotency-Key was used for another request.')
  }
  return answered(c, found.status, found.response, { 'idempotent-replayed': 'true' })
}

/** What is kept, as the answer it is. */
function answered(c: Context<AppEnv>, status: number, text: string, replayed = {}): Response {
  const kept = JSON.parse(text) as Kept
  const headers = { ...kept.headers, ...replayed }
  if ('shownOnce' in kept) {
    throw new AppError(
      'already_done',
      `Done already, with the id ${kept.shownOnce}; what the first answer showed once is not kept.`,
      { headers },
    )
  }
  return c.newResponse(kept.body, status as ContentfulStatusCode, headers)
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
