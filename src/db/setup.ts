import { type Compilable, sql } from 'kysely'
import type { Db, Tx } from './database.js'

/** Replaces the one set-up token; it is valid for `validSeconds`. For SYSTEM, under lockSetup. */
export function storeSetupToken(tx: Tx, tokenHash: string, validSeconds: number): Compilable<unknown> {
  return tx.insertInto('auth_setup_tokens').values({
    id: 1,
    token_hash: tokenHash,
    expires_at: sql<string>`now() + cast(${`${validSeconds} seconds`} as interval)`,
  })
}

export function forgetSetupTokens(tx: Tx): Compilable<unknown> {
  return tx.deleteFrom('auth_setup_tokens').where('id', '=', 1)
}

/** The row of a token that is still good; no row for a wrong or an old one. For SYSTEM. */
export function validSetupToken(db: Db | Tx, tokenHash: string): Compilable<{ id: number }> {
  return db
    .selectFrom('auth_setup_tokens')
    .select('id')
    .where('token_hash', '=', tokenHash)
    .where('expires_at', '>', sql<string>`now()`)
}
