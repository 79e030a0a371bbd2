import { type Compilable, sql } from 'kysely'
import type { ForeignFormats } from '../security/passwords.js'
import type { Db } from './database.js'

/**
 * Whether the older application's tables were taken over, and whether that is finished: no row, or one. Until it
 * is finished, passwords are stored as that application reads them. For asApp.
 */
export function adoptionState(db: Db): Compilable<{ is_finished: boolean }> {
  return db.selectFrom('auth_adoption').select(sql<boolean>`finished_at is not null`.as('is_finished'))
}

/** Which formats of the older application any password is stored in. Asked after an adoption only. For asApp. */
export function foreignFormats(db: Db): Compilable<ForeignFormats> {
  const some = (pattern: string) =>
    sql<boolean>`exists (select from auth_users where password_hash like ${pattern})`
  return db.selectNoFrom([some('scrypt:%').as('scrypt'), some('pbkdf2:%').as('pbkdf2')])
}
