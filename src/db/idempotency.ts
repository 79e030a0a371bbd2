import { createHash } from 'node:crypto'
import { type Compilable, sql } from 'kysely'
import { compileOnce } from './compile-once.js'
import type { Db, Tx } from './database.js'

/** What an Idempotency-Key belongs to: the caller as actorText spells it, and method and path template. */
export interface AnswerId {
  caller: string
  route: string
  key: string
}

export interface StoredAnswer {
  /** Hex; which secret keyed it is the writer's affair. */
  request_hash: string
  status: number
  /** JSON text, as keepAnswer was given it. */
  response: string
}

/** How an answer is found: `locked` says that nobody else works on it, `fresh` is null when there is none. */
export type FoundAnswer = { locked: boolean } & (
  ({ fresh: boolean } & StoredAnswer) | ({ fresh: null } & Record<keyof StoredAnswer, null>)
)

/**
 * The answer under a key, and the turn to make one: the lock is taken where it is free, never waited
 * for, and held until the transaction ends. One row, always. `fresh` is false after 24 hours, by the
 * database's clock.
 *
 * The row may be missed when who held the lock commits between this statement's snapshot and its lock:
 * the primary key refuses a second answer then, or the change itself finds that it was made.
 */
export function answerUnder(db: Db, id: AnswerId): Compilable<FoundAnswer> {
  return lockAndRead(db, lockNumber(id), id.caller, id.route, id.key)
}

const lockAndRead = compileOnce(
  (db, lock: string, caller: string, route: string, key: string): Compilable<FoundAnswer> =>
    db
      .selectFrom(
        db
          .selectNoFrom(sql<boolean>`pg_try_advisory_xact_lock(cast(${lock} as bigint))`.as('locked'))
          .as('turn'),
      )
      .leftJoin('idempotency_keys as k', (join) =>
        join.on('k.caller', '=', caller).on('k.route', '=', route).on('k.key', '=', key),
      )
      .select([
        'turn.locked',
        'k.request_hash',
        'k.status',
        'k.response',
        sql<boolean | null>`k.created_at > now() - interval '24 hours'`.as('fresh'),
      ])
      .$castTo<FoundAnswer>(),
  4,
)

/** Keeps the first answer with the change it tells of. A unique violation (23505) when there is one. */
export function keepAnswer(tx: Tx, id: AnswerId, answer: StoredAnswer): Compilable<unknown> {
  return insertAnswer(tx, id.caller, id.route, id.key, answer.request_hash, answer.status, answer.response)
}

const insertAnswer = compileOnce(
  (
    db,
    caller: string,
    route: string,
    key: string,
    request_hash: string,
    status: number,
    response: string,
  ): Compilable<unknown> =>
    db.insertInto('idempotency_keys').values({ caller, route, key, request_hash, status, response }),
  6,
)

/** Makes room for a new answer; one that is not expired stays. */
export function forgetExpiredAnswer(tx: Tx, { caller, route, key }: AnswerId): Compilable<unknown> {
  return deleteExpired(tx, caller, route, key)
}

const deleteExpired = compileOnce(
  (db, caller: string, route: string, key: string): Compilable<unknown> =>
    db
      .deleteFrom('idempotency_keys')
      .where('caller', '=', caller)
      .where('route', '=', route)
      .where('key', '=', key)
      .where('created_at', '<=', sql<string>`now() - interval '24 hours'`),
  3,
)

/** Every caller's expired answers go; for JOBS. */
export const pruneAnswers = compileOnce(
  (db): Compilable<unknown> =>
    db.deleteFrom('idempotency_keys').where('created_at', '<=', sql<string>`now() - interval '24 hours'`),
  0,
)

/** 63 bits: two keys that share them by chance only answer `in_progress` while both are worked on. */
function lockNumber({ caller, route, key }: AnswerId): string {
  const digest = createHash('sha256')
    .update(JSON.stringify(['idempotency', caller, route, key]))
    .digest()
  return String(digest.readBigUInt64BE() >> 1n)
}
