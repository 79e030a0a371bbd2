import type { Compilable, CompiledQuery } from 'kysely'
import type { Claim } from './claims.js'
import { retryingConflicts } from './conflicts.js'
import type { Deadline } from './deadline.js'
import { type Db, type RequestQuery, type Tx, executeAlone } from './database.js'

/** Who is recorded as having done something. */
export interface Actor {
  type: 'user' | 'api_key' | 'system'
  /** Id of the user or key; null for the system. */
  id: number | null
  name: string
}

/**
 * Who asks. The database's policies read it (prisma/migrations/*_server_*): `databaseRole` decides the
 * grants, `userId` and `role` what is one's own, `scopes` what a key may do ('*' for a session).
 */
export interface Caller {
  databaseRole: 'gary_app' | 'gary_caller' | 'gary_jobs' | 'gary_analyst'
  userId: number | null
  role: string
  scopes: readonly string[] | '*'
  sessionId: number | null
  keyId: number | null
  actor: Actor
  onBehalfOf: number | null
  /** How long the answer is waited for; absent where nobody waits. */
  deadline?: Deadline
  /**
   * True: the statement is of several requests; a lane takes it, or it is not done and fails of NoLane. False: it
   * shares no Sync with others either, since what it locks is locked until that.
   */
  isShared?: boolean
  /** Where all of the above is what was true a moment ago, and the first statement is to confirm it. */
  claim?: Claim
}

/** The service itself: first owner, service user, its own events. Never made from a request. */
export const SYSTEM: Caller = {
  databaseRole: 'gary_caller',
  userId: null,
  role: 'system',
  scopes: '*',
  sessionId: null,
  keyId: null,
  actor: { type: 'system', id: null, name: 'system' },
  onBehalfOf: null,
}

/** Within a transaction: what only a connection without a caller may touch (throttle, adoption). */
export const APP: Caller = { ...SYSTEM, databaseRole: 'gary_app', role: 'app' }

/** Who does the work that nobody asks for: sealing, pruning, partitions. */
export const JOBS: Caller = { ...SYSTEM, databaseRole: 'gary_jobs', role: 'jobs' }

/**
 * One statement under its caller's identity: both travel together and the statement does not run when
 * the identity fails. Rejects with an AppError that keeps the database's own as `cause`.
 */
export async function asCaller<R>(db: Db, caller: Caller, query: Compilable<R>): Promise<R[]> {
  return await run(db, requestQuery(query.compile(), caller, caller.deadline))
}

/** One statement as gary_app: before it is known who asks (credentials, sessions by hash, throttle). */
export async function asApp<R>(db: Db, query: Compilable<R>, deadline?: Deadline): Promise<R[]> {
  return await run(db, requestQuery(query.compile(), undefined, deadline))
}

/** Member by member: a spread costs 2 us. */
function requestQuery<R>(
  { query, queryId, sql, parameters }: CompiledQuery<R>,
  caller: Caller | undefined,
  deadline: Deadline | undefined,
): RequestQuery<R> {
  return { query, queryId, sql, parameters, caller, deadline }
}

/** The last statement of a transaction, under the identity that has been set: no round trip of its own. */
export async function withCommit(tx: Tx, caller: Caller, query: Compilable): Promise<void> {
  await tx.executeQuery({ ...query.compile(), deadline: caller.deadline, withCommit: true } as RequestQuery)
}

/** Outside a transaction a statement is one, and what a deadlock undid is tried again. */
async function run<R>(db: Db, query: RequestQuery<R>): Promise<R[]> {
  if (db.isTransaction) return (await db.executeQuery<R>(query)).rows
  return await retryingConflicts(() => executeAlone(db, query))
}

/** No statement of its own: gives a transaction its caller, to travel with the first statement. */
export function identityOnly(caller: Caller, empty: CompiledQuery): RequestQuery {
  return { ...empty, caller, deadline: caller.deadline }
}
