import type { Compilable, CompiledQuery } from 'kysely'
import { CONDITIONS, type Claim } from './claims.js'
import { retryingConflicts } from './conflicts.js'
import type { Deadline } from './deadline.js'
import type { Db, RequestQuery, Tx } from './database.js'
import type { Statement } from './flight.js'

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
  return await run(db, { ...query.compile(), caller, deadline: caller.deadline })
}

/** One statement as gary_app: before it is known who asks (credentials, sessions by hash, throttle). */
export async function asApp<R>(db: Db, query: Compilable<R>, deadline?: Deadline): Promise<R[]> {
  return await run(db, { ...query.compile(), deadline })
}

/** The last statement of a transaction, under the identity that has been set: no round trip of its own. */
export async function withCommit(tx: Tx, caller: Caller, query: Compilable): Promise<void> {
  await tx.executeQuery({ ...query.compile(), deadline: caller.deadline, withCommit: true } as RequestQuery)
}

/** Outside a transaction a statement is one, and what a deadlock undid is tried again. */
async function run<R>(db: Db, query: RequestQuery<R>): Promise<R[]> {
  const execute = async (): Promise<R[]> => (await db.executeQuery<R>(query)).rows
  return db.isTransaction ? await execute() : await retryingConflicts(execute)
}

/** As policies and audit rows spell it: `user:7`, `api_key:3`, `system`. */
export function actorText(actor: Actor): string {
  return actor.id === null ? actor.type : `${actor.type}:${actor.id}`
}

const IDENTITY =
  "select set_config('role', $1, true), set_config('app.user_id', $2, true), set_config('app.role', $3, true), " +
  "set_config('app.scopes', $4, true), set_config('app.session_id', $5, true), set_config('app.key_id', $6, true), " +
  "set_config('app.actor', $7, true), set_config('app.on_behalf_of', $8, true)"

/**
 * The statement that makes a connection its caller's, until the transaction ends. One whose claim is open confirms
 * that too, for which the connection must still be gary_app: or raises, and nothing behind it runs.
 */
export function identityStatement(caller: Caller): Statement {
  const values = [
    caller.databaseRole,
    caller.userId ?? '',
    caller.role,
    caller.scopes === '*' ? '*' : caller.scopes.join(' '),
    caller.sessionId ?? '',
    caller.keyId ?? '',
    actorText(caller.actor),
    caller.onBehalfOf ?? '',
  ]
  const { claim } = caller
  if (claim === undefined || claim.isConfirmed) return { text: IDENTITY, name: 'identity', values }
  return {
    text: `${IDENTITY}, case when exists (${CONDITIONS[claim.kind]}) then '' else gary.refuse_claim() end`,
    name: `identity_${claim.kind}`,
    values: [...values, ...claim.values],
  }
}

/** No statement of its own: gives a transaction its caller, to travel with the first statement. */
export function identityOnly(caller: Caller, empty: CompiledQuery): RequestQuery {
  return { ...empty, caller, deadline: caller.deadline }
}
