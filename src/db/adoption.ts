import { type Compilable, sql } from 'kysely'
import type { ForeignFormats } from '../security/passwords.js'
import { compileOnce } from './compile-once.js'

/**
 * Whether the older application's tables were taken over, and whether that is finished: no row, or one. Until it
 * is finished, passwords are stored as that application reads them. For asApp.
 */
export const adoptionState = compileOnce(
  (db): Compilable<{ is_finished: boolean }> =>
    db.selectFrom('auth_adoption').select(sql<boolean>`finished_at is not null`.as('is_finished')),
  0,
)

/** Which formats of the older application any password is stored in. Asked after an adoption only. For asApp. */
export const foreignFormats = compileOnce((db): Compilable<ForeignFormats> => {
  const some = (pattern: string) =>
    sql<boolean>`exists (select from auth_users where password_hash like ${pattern})`
  return db.selectNoFrom([some('scrypt:%').as('scrypt'), some('pbkdf2:%').as('pbkdf2')])
}, 0)
