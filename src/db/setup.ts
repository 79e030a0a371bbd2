import { type Compilable, sql } from 'kysely'
import { compileOnce } from './compile-once.js'
import type { Tx } from './database.js'

/** Replaces the one set-up token; it is valid for `validSeconds`. For SYSTEM, under lockSetup. */
export function storeSetupToken(tx: Tx, tokenHash: string, validSeconds: number): Compilable<unknown> {
  return insertToken(tx, tokenHash, `${validSeconds} seconds`)
}

const insertToken = compileOnce(
  (db, tokenHash: string, valid: string): Compilable<unknown> =>
    db.insertInto('auth_setup_tokens').values({
      id: 1,
      token_hash: tokenHash,
      expires_at: sql<string>`now() + cast(${valid} as interval)`,
    }),
  2,
)

export const forgetSetupTokens: (tx: Tx) => Compilable<unknown> = compileOnce(
  (db) => db.deleteFrom('auth_setup_tokens').where('id', '=', 1),
  0,
)

/** The row of a token that is still good; no row for a wrong or an old one. For SYSTEM. */
export const validSetupToken = compileOnce(
  (db, tokenHash: string): Compilable<{ id: number }> =>
    db
      .selectFrom('auth_setup_tokens')
      .select('id')
      .where('token_hash', '=', tokenHash)
      .where('expires_at', '>', sql<string>`now()`),
  1,
)
