import type { Actor, Caller } from './as-caller.js'
import { CONDITIONS } from './claims.js'
import type { Statement } from './flight.js'

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
