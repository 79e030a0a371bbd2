/** The functions of the `_server_` migration that count attempts, for one process and nobody beside it. */

interface Bucket {
  failures: number
  pending: number
  pending_since: Date | null
  window_start: Date
  locked_until: Date | null
  lockouts: number
  succeeded_at: Date | null
  touched_at: Date
}

/** Runs one statement; what a table holds comes back as pg-mem keeps it. */
type Run = (text: string, values: unknown[]) => Promise<Record<string, unknown>[]>

const MINUTE_MS = 60_000
const DAY_MS = 86_400_000

/** gary.begin_attempt. */
export async function beginAttempt(run: Run, values: unknown[]): Promise<number> {
  const [names, atAddress, limits, windows, locks] = values as [
    string[],
    boolean,
    number[],
    number[],
    number[],
  ]
  const now = Date.now()
  const aged: [string, Bucket][] = []
  let verdict = 0
  let isKnown = false
  for (const [index, name] of names.entries()) {
    const bucket = aging(
      await read(run, name),
      now,
      limits[index] ?? 0,
      windows[index] ?? 0,
      locks[index] ?? 0,
    )
    const wait =
      bucket.locked_until !== null
        ? Math.max(1, Math.ceil((bucket.locked_until.getTime() - now) / 1000))
        : Number(bucket.failures + bucket.pending >= (limits[index] ?? 0))
    if (index === 0 && atAddress) {
      isKnown = bucket.succeeded_at !== null && bucket.succeeded_at.getTime() > now - 90 * DAY_MS
      verdict = wait
    } else if (!isKnown) verdict = Math.max(verdict, wait)
    aged.push([name, bucket])
  }
  for (const [name, bucket] of aged) {
    const begins = verdict === 0 ? { pending: bucket.pending + 1, pending_since: new Date(now) } : {}
    await write(run, name, { ...bucket, ...begins, touched_at: new Date(now) })
  }
  return verdict
}

/** gary.end_attempt. */
export async function endAttempt(run: Run, values: unknown[]): Promise<void> {
  const [names, atAddress, limits, locks, outcome] = values as [string[], boolean, number[], number[], string]
  const now = Date.now()
  for (const [index, name] of names.entries()) {
    const bucket = await read(run, name)
    bucket.pending = Math.max(bucket.pending - 1, 0)
    bucket.touched_at = new Date(now)
    if (outcome === 'failed') {
      bucket.failures += 1
      if (bucket.failures >= (limits[index] ?? 0)) lock(bucket, now, locks[index] ?? 0)
    } else if (outcome === 'succeeded' && atAddress && index === 0) {
      Object.assign(bucket, { failures: 0, lockouts: 0, locked_until: null })
      bucket.window_start = bucket.succeeded_at = new Date(now)
    }
    await write(run, name, bucket)
  }
}

function aging(
  bucket: Bucket,
  now: number,
  limit: number,
  windowSeconds: number,
  lockSeconds: number,
): Bucket {
  if (bucket.pending > 0 && (bucket.pending_since?.getTime() ?? 0) < now - MINUTE_MS) {
    bucket.failures += bucket.pending
    bucket.pending = 0
  }
  const isOver =
    bucket.locked_until === null
      ? bucket.window_start.getTime() < now - windowSeconds * 1000
      : bucket.locked_until.getTime() <= now
  if (isOver) Object.assign(bucket, { failures: 0, window_start: new Date(now), locked_until: null })
  if (bucket.touched_at.getTime() < now - DAY_MS) bucket.lockouts = 0
  if (bucket.failures >= limit && bucket.locked_until === null) lock(bucket, now, lockSeconds)
  return bucket
}

function lock(bucket: Bucket, now: number, lockSeconds: number): void {
  if (bucket.locked_until !== null) return
  bucket.locked_until = new Date(
    now + Math.min(lockSeconds * 1000 * 2 ** Math.min(bucket.lockouts, 20), DAY_MS),
  )
  bucket.lockouts += 1
}

async function read(run: Run, name: string): Promise<Bucket> {
  const text = `select failures, pending, pending_since, window_start, locked_until, lockouts, succeeded_at, touched_at
    from auth_throttle where bucket = $1`
  const [found] = await run(text, [name])
  if (found !== undefined) return found as unknown as Bucket
  await run('insert into auth_throttle (bucket) values ($1)', [name])
  return (await run(text, [name]))[0] as unknown as Bucket
}

async function write(run: Run, name: string, bucket: Bucket): Promise<void> {
  await run(
    `update auth_throttle set failures = $2, pending = $3, pending_since = $4, window_start = $5, locked_until = $6,
       lockouts = $7, succeeded_at = $8, touched_at = $9 where bucket = $1`,
    [
      name,
      bucket.failures,
      bucket.pending,
      time(bucket.pending_since),
      time(bucket.window_start),
      time(bucket.locked_until),
      bucket.lockouts,
      time(bucket.succeeded_at),
      time(bucket.touched_at),
    ],
  )
}

function time(value: Date | null): string | null {
  return value === null ? null : value.toISOString()
}
