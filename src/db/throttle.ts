import { type Compilable, CompiledQuery, sql } from 'kysely'
import { compileOnce } from './compile-once.js'
import type { Db, Tx } from './database.js'

/** What tries to sign in count against; each an HMAC, so that the table names nobody. */
export interface Buckets {
  account: string
  /** null where the address is not known: then only the account counts. */
  address: string | null
  /** Not by the account from anywhere: what nobody can guess, anybody could lock. */
  atAddressOnly?: true
}

/** So many failures within the window lock for as long; each time in a row twice as long, at most a day. */
interface Rule {
  failures: number
  windowSeconds: number
  lockSeconds: number
}

/** One account from one address: the consumer's own rule. */
export const ACCOUNT_AT_ADDRESS: Rule = { failures: 5, windowSeconds: 900, lockSeconds: 900 }
/** One account from anywhere: against many addresses. Does not hold up an address it has signed in from. */
export const ACCOUNT: Rule = { failures: 100, windowSeconds: 3600, lockSeconds: 3600 }
/** One address at any account: against one password tried on many names. */
export const ADDRESS: Rule = { failures: 50, windowSeconds: 900, lockSeconds: 900 }

export const BEGIN_ATTEMPT = 'select gary.begin_attempt($1, $2, $3, $4, $5) as wait_seconds'
export const END_ATTEMPT = 'select gary.end_attempt($1, $2, $3, $4, $5)'

/**
 * A try to sign in begins; for asApp. 0: it may, and holds a place until endAttempt says how it ended, so that
 * tries at once are no more than tries one by one. Else the seconds after which another one may.
 */
export function beginAttempt(buckets: Buckets): Compilable<{ wait_seconds: number }> {
  const { names, rules } = bucketsAndRules(buckets)
  return query(BEGIN_ATTEMPT, [
    names,
    buckets.address !== null,
    rules.map(({ failures }) => failures),
    rules.map(({ windowSeconds }) => windowSeconds),
    rules.map(({ lockSeconds }) => lockSeconds),
  ])
}

/**
 * How a try ended; for asApp. 'succeeded' clears the account at this address alone, 'failed' counts everywhere,
 * 'void' nowhere: the password was never looked at.
 */
export function endAttempt(buckets: Buckets, outcome: 'succeeded' | 'failed' | 'void'): Compilable<unknown> {
  const { names, rules } = bucketsAndRules(buckets)
  return query(END_ATTEMPT, [
    names,
    buckets.address !== null,
    rules.map(({ failures }) => failures),
    rules.map(({ lockSeconds }) => lockSeconds),
    outcome,
  ])
}

/** All that holds an account up, wherever from; a row a bucket. For APP. */
export function forgetAttempts(db: Db | Tx, account: string): Compilable<{ bucket: string }> {
  return forgetBuckets(db, `account:${account}`, `pair:${account}:%`)
}

const forgetBuckets = compileOnce(
  (db, anywhere: string, atAddresses: string): Compilable<{ bucket: string }> =>
    db
      .updateTable('auth_throttle')
      .set({ failures: 0, lockouts: 0, locked_until: null })
      .where((eb) => eb.or([eb('bucket', '=', anywhere), eb('bucket', 'like', atAddresses)]))
      .returning('bucket'),
  2,
)

/** Whether anybody has tried to sign in of late: no row, or one. For asApp. */
export const anyAttempt = compileOnce(
  (db): Compilable<{ bucket: string }> =>
    db.selectFrom('auth_throttle').select('bucket').where('bucket', 'like', 'account:%').limit(1),
  0,
)

/** What no rule looks at any more: after a day, and after 90 where somebody has signed in. For JOBS. */
export const pruneAttempts = compileOnce(
  (db): Compilable<unknown> =>
    db
      .deleteFrom('auth_throttle')
      .where('touched_at', '<', sql<string>`now() - interval '1 day'`)
      .where((eb) =>
        eb.or([
          eb('succeeded_at', 'is', null),
          eb('succeeded_at', '<', sql<string>`now() - interval '90 days'`),
        ]),
      ),
  0,
)

function bucketsAndRules({ account, address, atAddressOnly }: Buckets): { names: string[]; rules: Rule[] } {
  if (atAddressOnly === true && address !== null)
    return {
      names: [`pair:${account}:${address}`, `address:${address}`],
      rules: [ACCOUNT_AT_ADDRESS, ADDRESS],
    }
  if (address === null) return { names: [`account:${account}`], rules: [ACCOUNT] }
  return {
    names: [`pair:${account}:${address}`, `account:${account}`, `address:${address}`],
    rules: [ACCOUNT_AT_ADDRESS, ACCOUNT, ADDRESS],
  }
}

function query<R>(text: string, parameters: unknown[]): Compilable<R> {
  return { compile: () => CompiledQuery.raw(text, parameters) as CompiledQuery<R> }
}
