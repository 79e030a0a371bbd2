import { CompiledQuery } from 'kysely'
import { type Caller, identityOnly } from './as-caller.js'
import { retryingConflicts } from './conflicts.js'
import type { Db, Tx } from './database.js'

/**
 * Several statements under one caller's identity, all or nothing; within a transaction of that caller they are part of it. BEGIN and identity travel with the
 * first statement; the first error is the one thrown. `work` may run up to three times (40001, 40P01),
 * so nothing outside the database belongs in it. After COMMIT was sent without an answer it rejects
 * with `outcome_unknown`.
 */
export async function inTransaction<T>(db: Db, caller: Caller, work: (tx: Tx) => Promise<T>): Promise<T> {
  if (db.isTransaction) return await work(db as Tx)
  return await retryingConflicts(
    async () =>
      await db.transaction().execute(async (tx) => {
        await tx.executeQuery(identityOnly(caller, CompiledQuery.raw('')))
        return await work(tx)
      }),
  )
}

/**
 * The rows of one query, in batches, inside a read-only transaction under the caller's identity; the
 * connection is held until the last row was taken or the iteration ends.
 */
export async function* streamAsCaller<R>(
  db: Db,
  caller: Caller,
  query: CompiledQuery<R>,
  batchSize = 500,
): AsyncGenerator<R[]> {
  const tx = await db.startTransaction().setAccessMode('read only').execute()
  try {
    await tx.executeQuery(identityOnly(caller, CompiledQuery.raw('')))
    for await (const { rows } of tx.getExecutor().stream(query, batchSize)) yield rows
  } finally {
    // Nothing was changed, and a reader may leave before the end.
    await tx.rollback().execute()
  }
}
