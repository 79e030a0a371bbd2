import { JOBS, asCaller } from '../db/as-caller.js'
import type { Db } from '../db/database.js'
import { pruneAnswers } from '../db/idempotency.js'
import { pruneSessions } from '../db/sessions.js'
import { pruneAttempts } from '../db/throttle.js'
import type { Log } from '../routes/context.js'

const HOUR_MS = 3_600_000

/**
 * Once an hour, at a minute of this replica's own, deletes what has expired. Replicas may do it at once; what
 * fails is logged and comes again in an hour. Gives what stops it; no timer of it keeps the process alive.
 */
export function startPruning(db: Db, log: Log, sessionIdleSeconds: number): () => void {
  let timer = setTimeout(prune, Math.random() * HOUR_MS).unref()
  function prune(): void {
    timer = setTimeout(prune, HOUR_MS).unref()
    for (const query of [pruneAnswers(db), pruneSessions(db, sessionIdleSeconds), pruneAttempts(db)])
      asCaller(db, JOBS, query).catch((error: unknown) => log.warn({ err: error }, 'pruning failed'))
  }
  return () => clearTimeout(timer)
}
