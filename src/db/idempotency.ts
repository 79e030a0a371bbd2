import { createHash } from 'node:crypto'
import { type Compilable, type QueryCreator, type RawBuilder, type SqlBool, sql } from 'kysely'
import { compileBySet, compileOnce } from './compile-once.js'
import type { Db, Tx } from './database.js'
import type { DB } from './types.js'

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

const lockAndRead = compileOnce(turnAndAnswer, 4)

function turnAndAnswer(db: QueryCreator<DB>, lock: string, caller: string, route: string, key: string) {
  return db
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
    .$castTo<FoundAnswer>()
}

/** Keeps the first answer with the change it tells of. A unique violation (23505) when there is one. */
export function keepAnswer(tx: Tx, id: AnswerId, answer: StoredAnswer): Compilable<unknown> {
  return insertAnswer(tx, { ...id, ...answer })
}

const insertAnswer = compileBySet((db, row: AnswerId & StoredAnswer) =>
  db.insertInto('idempotency_keys').values(row),
)

/** Makes room for a new answer; one that is not expired stays. */
export function forgetExpiredAnswer(db: Db | Tx, { caller, route, key }: AnswerId): Compilable<unknown> {
  return deleteExpired(db, caller, route, key)
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

/** The parameters of a statement that looks for its answer, and else makes its change and keeps one. */
export interface OnceValues {
  lock: string
  answerCaller: string
  answerRoute: string
  answerKey: string
  requestHash: string
  status: number
  /** The answer as JSON text; what it begins with, where the statement has more to say. */
  answer: string
}

/** What such a statement found, and the answer it has made and kept; null where it has changed nothing. */
export type MadeOnce = FoundAnswer & { made: string | null }

export function onceValues(id: AnswerId, answer: StoredAnswer): OnceValues {
  return {
    lock: lockNumber(id),
    answerCaller: id.caller,
    answerRoute: id.route,
    answerKey: id.key,
    requestHash: answer.request_hash,
    status: answer.status,
    answer: answer.response,
  }
}

/**
 * Begins such a statement with the CTE `kept`, the row of answerUnder. The lock is only ever tried: to wait for the
 * first one at the primary key would hold up a lane. Whatever the statement changes it changes where MAY_CHANGE.
 */
export function withTurn(
  db: Db,
  { lock, answerCaller, answerRoute, answerKey }: OnceValues,
): QueryCreator<DB> {
  const creator = db.with('kept', (qc) => turnAndAnswer(qc, lock, answerCaller, answerRoute, answerKey))
  return creator as unknown as QueryCreator<DB>
}

/** No row of what is changed is in it: so the lock is tried once, before any is looked at. An expired answer is in the way too. */
export const MAY_CHANGE = sql<SqlBool>`exists (select kept.locked from kept where kept.locked and kept.request_hash is null)`

/**
 * Ends such a statement: `response` is kept for the row of `from`. No ON CONFLICT: where who held the lock committed
 * between snapshot and lock, the unique violation must undo all of the statement.
 */
export function withAnswer<D extends DB>(
  creator: QueryCreator<D>,
  given: OnceValues,
  response: RawBuilder<string>,
  from: RawBuilder<unknown>,
): Compilable<MadeOnce> {
  type Response = Pick<StoredAnswer, 'response'>
  return (creator as unknown as QueryCreator<DB & { kept: FoundAnswer }>)
    .with(
      'answer',
      () => sql<Response>`(insert into idempotency_keys (caller, route, key, request_hash, status, response)
        select cast(${given.answerCaller} as text), cast(${given.answerRoute} as text), cast(${given.answerKey} as text),
          cast(${given.requestHash} as text), cast(${given.status} as integer), ${response}
        from ${from} returning response)`,
    )
    .selectFrom('kept')
    .leftJoin('answer', (join) => join.onTrue())
    .selectAll('kept')
    .select('answer.response as made')
    .$castTo<MadeOnce>()
}

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
