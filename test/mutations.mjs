// npm run test:mutations: takes away each guard that resilience, shared connections and taking over the older tables rest on, one at a time and in a copy of the
// project, and shows that a test fails without it. Prints a table; exits with 1 when a guard is missed by no test.
import { spawnSync } from 'node:child_process'
import { cpSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('..', import.meta.url))
const BREAKER = 'src/resilience/circuit-breaker.ts'
const POOL = 'src/db/guarded-pool.ts'
const IDEMPOTENCY = 'src/routes/idempotency.ts'
const ONCE = 'src/db/idempotency.ts'
const CONNECTION = 'src/db/guarded-connection.ts'
const DRIVER = 'src/db/database.ts'
const FLIGHT = 'src/db/flight.ts'
const FORMATION = 'src/db/formation.ts'
const LANES = 'src/db/lanes.ts'
const IDENTITY = 'src/db/identity.ts'
const TOGETHER = 'src/db/append-together.ts'
const ADOPT = 'src/db/adopt.ts'
const OLDER = 'src/db/older-tables.ts'
const FINISH = 'src/db/adopt-finish.ts'

/** `take` must be in the file exactly once; `leave` is what stands there instead. */
const GUARDS = [
  {
    guard: 'error listener on a client in hand',
    file: 'src/db/pool.ts',
    take: "  client.on('error', (error) => {\n    // Its end is told a second time, without the server's words.\n    if (!endings.has(client)) endings.set(client, error)\n    settings.onIdleError(error)\n  })\n",
    leave: '',
    test: 'postgres/guarded-pool',
  },
  {
    guard: 'error listener on the pool',
    file: 'src/db/pool.ts',
    take: "pool.on('error', settings.onIdleError)",
    leave: '',
    test: 'postgres/guarded-pool',
  },
  {
    guard: 'a dirty client is destroyed',
    file: CONNECTION,
    take: "const clean = !this.#broken && this.#client.readyForQuery && this.#client.getTransactionStatus() === 'I'",
    leave: 'const clean = !this.#broken',
    test: 'postgres/guarded-pool',
  },
  {
    guard: 'a cancelled client is destroyed',
    file: CONNECTION,
    take: '    this.#cancelled = end\n    this.#broken = true\n',
    leave: '    this.#cancelled = end\n',
    test: 'postgres/circuit',
  },
  {
    guard: 'the query is cancelled on the server',
    file: CONNECTION,
    take: 'await cancelOnServer(this.#client, SETTLE_MS)',
    leave: '',
    test: 'postgres/circuit',
  },
  {
    guard: 'a server that does not answer the cancel loses the connection',
    file: CONNECTION,
    take: 'if (!this.#client.readyForQuery) this.#client.connection.stream.destroy()',
    leave: '',
    test: 'postgres/circuit',
  },
  {
    guard: 'what nobody waits for is not sent',
    file: CONNECTION,
    take: 'if (ended !== undefined) throw notWaitedFor(ended)',
    leave: '',
    test: 'postgres/circuit',
  },
  {
    guard: 'who went away does not count',
    file: CONNECTION,
    take: "if (this.#cancelled === 'client_gone') return 'ignored'",
    leave: '',
    test: 'postgres/circuit',
  },
  {
    guard: 'the breaker is asked before a connection',
    file: POOL,
    take: "breaker.admit(this.#options.use === 'streams' ? 'no_probe' : 'call')",
    leave: 'undefined',
    test: 'postgres/circuit',
  },
  {
    guard: 'a stream is no probe',
    file: POOL,
    take: "this.#options.use === 'streams' ? 'no_probe' : 'call'",
    leave: "'call'",
    test: 'postgres/circuit',
  },
  {
    guard: 'a slow reader is no slow database',
    file: CONNECTION,
    take: "return this.#options.use === 'requests' && performance.now()",
    leave: 'return performance.now()',
    test: 'postgres/circuit',
  },
  {
    guard: 'a full pool is no lost database',
    file: POOL,
    take: "if (name !== 'pool_wait') permit?.settle",
    leave: 'if (name !== undefined) permit?.settle',
    test: 'postgres/circuit',
  },
  {
    guard: 'a full pool beside a silent database is one',
    file: POOL,
    take: "permit.settle(answers ? 'ignored' : 'failure')",
    leave: "permit.settle('ignored')",
    test: 'postgres/circuit',
  },
  {
    guard: 'a read-only server evicts the idle',
    file: POOL,
    take: 'if (evictIdle === true) this.evictIdle()\n',
    leave: '',
    test: 'postgres/circuit',
  },
  {
    guard: 'the pool ends though a statement hangs',
    file: POOL,
    take: 'for (const connection of this.#checkedOut) connection.cut()\n        resolve()',
    leave: '',
    test: 'postgres/guarded-pool',
  },
  {
    guard: 'the connection check is bounded',
    file: POOL,
    take: 'this.#options.acquireMs + 100',
    leave: '1e8',
    test: 'postgres/guarded-pool',
  },
  {
    guard: 'phase tag: a lost write is unknown',
    file: DRIVER,
    take: 'const open = !this.#inTransaction && statements.at(-1)?.writes === true',
    leave: 'const open = false',
    test: 'postgres/guarded-pool',
  },
  {
    guard: 'phase tag: a lost COMMIT is unknown',
    file: DRIVER,
    take: "throw toAppError(error, name, 'open')",
    leave: "throw toAppError(error, name, 'none')",
    test: 'postgres/transaction',
  },
  {
    guard: 'a write is not sent twice',
    file: DRIVER,
    take: 'failed && (!open || wasNeverSent(error))',
    leave: 'failed',
    test: 'postgres/guarded-pool',
  },
  {
    guard: 'a transaction is not resumed on another connection',
    file: DRIVER,
    take: 'const first = !this.#inTransaction || !this.#started',
    leave: 'const first = true',
    test: 'postgres/circuit',
  },
  {
    guard: 'retries have a budget',
    file: 'src/resilience/retry.ts',
    take: ' || budget < TOKEN',
    leave: '',
    test: 'resilience/retry',
  },
  {
    guard: 'a standby is not the database',
    file: 'src/db/probe.ts',
    take: "if (!row.writable) throw coded('25006', 'the server reached is read-only')",
    leave: '',
    test: 'postgres/circuit',
  },
  {
    guard: 'the reconnect loop starts when the circuit opens',
    file: 'src/db/availability.ts',
    take: '      void this.#lookUntilBack()\n',
    leave: '',
    test: 'postgres/circuit',
  },
  {
    guard: 'the heartbeat',
    file: 'src/db/availability.ts',
    take: 'this.#ping().catch(() => undefined)',
    leave: '',
    test: 'postgres/circuit',
  },
  {
    guard: 'deadline order',
    file: 'src/limits.ts',
    take: 'return innerMs < ms ? []',
    leave: 'return innerMs > 0 ? []',
    test: 'limits',
  },
  {
    guard: 'generation check',
    file: BREAKER,
    take: 'if (state !== admittedIn) return',
    leave: '',
    test: 'resilience/circuit-breaker',
  },
  {
    guard: 'permit return',
    file: BREAKER,
    take: 'state.inFlight.delete(probe)',
    leave: '',
    test: 'resilience/circuit-breaker',
  },
  {
    guard: 'a permit is returned once',
    file: BREAKER,
    take: 'if (settled) return',
    leave: '',
    test: 'resilience/circuit-breaker',
  },
  {
    guard: 'probe deadline',
    file: BREAKER,
    take: 'return oldest?.dueAtMs ?? Infinity',
    leave: 'return Infinity',
    test: 'resilience/circuit-breaker',
  },
  {
    guard: 'minimum of calls',
    file: BREAKER,
    take: 'if (calls < minCalls) return',
    leave: '',
    test: 'resilience/circuit-breaker',
  },
  {
    guard: 'probes in flight are limited',
    file: BREAKER,
    take: ' && state.succeeded + state.inFlight.size < probes',
    leave: '',
    test: 'resilience/circuit-breaker',
  },
  {
    guard: 'a deadline ends the wait for a connection too',
    file: POOL,
    take: 'deadline?.listen(stop)',
    leave: '',
    test: 'postgres/conflicts',
  },
  {
    guard: 'no ROLLBACK to a connection that answers no more',
    file: DRIVER,
    take: 'if (!this.#started || this.#broken) return',
    leave: 'if (!this.#started) return',
    test: 'postgres/conflicts',
  },
  {
    guard: 'a statement that a deadlock undid is tried again',
    file: 'src/db/as-caller.ts',
    take: 'return await retryingConflicts(() => executeAlone(db, query))',
    leave: 'return await executeAlone(db, query)',
    test: 'postgres/conflicts',
  },
  {
    guard: 'a read is answered though its last use cannot be written',
    file: 'src/routes/identify.ts',
    take: 'await touch.catch(',
    leave: 'await touch.finally(() => undefined).then(',
    test: 'postgres/last-use',
  },
  {
    guard: 'a forced circuit is audited behind a lost answer',
    file: 'src/forced-circuit.ts',
    take: '      pending.shift()\n    }\n    flushing = false',
    leave: '      if (error === undefined) pending.shift()\n      else break\n    }\n    flushing = false',
    test: 'postgres/forced-circuit',
  },
  {
    guard: 'a deadline stands still while the body arrives',
    file: 'src/routes/validate.ts',
    take: "c.get('deadlineTimer').stop()",
    leave: '',
    test: 'deadline-timer',
  },
  {
    guard: 'one request at a time under an Idempotency-Key',
    file: IDEMPOTENCY,
    take: ' || !found.locked',
    leave: '',
    test: 'postgres/idempotency',
  },
  {
    guard: 'another request under the same key is refused',
    file: IDEMPOTENCY,
    take: 'if (!hashes.includes(found.request_hash)) {',
    leave: 'if (hashes.length === 0) {',
    test: 'routes/idempotency',
  },
  {
    guard: 'an answer that came between look and lock is found',
    file: IDEMPOTENCY,
    take: 'if (!(error instanceof AppError) || !MADE_BEFORE.has(error.code)) throw error',
    leave: 'throw error',
    test: 'postgres/idempotency',
  },
  {
    guard: 'a keyed statement changes something only in its turn',
    file: ONCE,
    take: 'from kept where kept.locked and kept.request_hash is null)`',
    leave: 'from kept where kept.request_hash is null)`',
    test: 'postgres/idempotency',
  },
  {
    guard: 'a keyed statement changes something only where no answer is kept',
    file: ONCE,
    take: 'from kept where kept.locked and kept.request_hash is null)`',
    leave: 'from kept where kept.locked)`',
    test: 'postgres/idempotency',
  },
  {
    guard: 'a keyed statement that missed the first answer is undone',
    file: ONCE,
    take: 'from ${from} returning response)`',
    leave: 'from ${from} on conflict do nothing returning response)`',
    test: 'postgres/idempotency',
  },
  {
    guard: 'an expired answer makes room for a statement',
    file: IDEMPOTENCY,
    take: 'if (found?.fresh === false && found.locked) {',
    leave: 'if (found === null) {',
    test: 'postgres/idempotency',
  },
  {
    guard: 'a forced circuit is audited past itself',
    file: 'src/forced-circuit.ts',
    take: 'source.connectPastCircuit()',
    leave: 'source.connect()',
    test: 'routes/health',
  },
  {
    guard: 'adoption: one transaction',
    file: OLDER,
    take: '  // As Prisma makes it; without it',
    leave: "  await client.query('COMMIT; BEGIN')\n  // As Prisma makes it; without it",
    test: 'postgres/adopt-killed',
  },
  {
    guard: 'adoption: the migration lock',
    file: 'src/db/migration-lock.ts',
    take: '    await takeLock(lock, OUR_LOCK, log)\n',
    leave: '',
    test: 'postgres/adopt',
  },
  {
    guard: 'adoption: the shape is looked at',
    file: OLDER,
    take: '    ...OLDER_NAMES.flatMap((name) => shapeFaults(name, tables)),\n',
    leave: '',
    test: 'postgres/adopt',
  },
  {
    guard: 'adoption: what depends on the tables is looked for',
    file: OLDER,
    take: '    ...(await dependents(client)),\n',
    leave: '',
    test: 'postgres/adopt',
  },
  {
    guard: 'adoption: only an owner of the tables',
    file: OLDER,
    take: '.filter(({ movable }) => !movable)',
    leave: '.filter(() => false)',
    test: 'postgres/adopt-logins',
  },
  {
    guard: 'adoption: a locked table is waited for in turns',
    file: OLDER,
    take: "SET LOCAL lock_timeout = '${LOCK_WAIT}'",
    leave: "SET LOCAL lock_timeout = '9${LOCK_WAIT}'",
    test: 'postgres/adopt-killed',
  },
  {
    guard: 'adoption: foreign tables beside ours',
    file: OLDER,
    take: '  await client.query(`CREATE TABLE IF NOT EXISTS _prisma_migrations (',
    leave: '  void (() => `CREATE TABLE IF NOT EXISTS _prisma_migrations (',
    test: 'postgres/adopt',
  },
  {
    guard: 'adoption: a failing file keeps its words',
    file: 'prisma/engine.mjs',
    take: "if (inTransaction) await client.query('ROLLBACK TO SAVEPOINT script').catch(() => {})",
    leave: '',
    test: 'postgres/adopt',
  },
  {
    guard: 'adoption: times are UTC',
    file: ADOPT,
    take: "o.last_login AT TIME ZONE 'UTC',",
    leave: 'o.last_login,',
    test: 'postgres/adopt',
  },
  {
    guard: 'adoption: session tokens are hashed',
    file: ADOPT,
    take: "encode(sha256(convert_to(o.session_token, 'UTF8')), 'hex'), o.user_id",
    leave: 'o.session_token, o.user_id',
    test: 'postgres/adopt',
  },
  {
    guard: 'adoption: ended sessions stay behind',
    file: ADOPT,
    take: " AND o.expires_at > now() AT TIME ZONE 'UTC'",
    leave: '',
    test: 'postgres/adopt',
  },
  {
    guard: 'adoption: ids are not given twice',
    file: ADOPT,
    take: '    for (const name of OLDER_NAMES) await moveIdentityOn(client, name)\n',
    leave: '',
    test: 'postgres/adopt',
  },
  {
    guard: 'adoption: nor those of deleted rows',
    file: ADOPT,
    take: "(SELECT max(id) FROM legacy.${name}),\n       pg_sequence_last_value(pg_get_serial_sequence('legacy.${name}', 'id')::regclass)))",
    leave: '(SELECT max(id) FROM legacy.${name})))',
    test: 'postgres/adopt',
  },
  {
    guard: 'adoption: a box opens at its place only',
    file: 'src/security/oauth-secrets.ts',
    take: "['oauth', userId, provider, column]",
    leave: "['oauth', provider, column]",
    test: 'postgres/adopt',
  },
  {
    guard: 'adoption: names that clash have no key',
    file: 'src/db/adopted-names.ts',
    take: '    if (same.length > 1) folded.clashes.push(same)\n    else if',
    leave: '    if (same.length > 1) folded.clashes.push(same)\n    if',
    test: 'postgres/adopt',
  },
  {
    guard: 'adoption: a newer token stays',
    file: ADOPT,
    take: '\nON CONFLICT (user_id, provider) DO NOTHING',
    leave: '\nON CONFLICT (user_id, provider) DO UPDATE SET access_token = EXCLUDED.access_token',
    test: 'postgres/adopt',
  },
  {
    guard: 'adoption: an owner is past FORCE',
    file: 'src/db/adopted-tables.ts',
    take: "  await client.query(forceOnAll('NO FORCE'))\n",
    leave: '',
    test: 'postgres/adopt-logins',
  },
  {
    guard: 'adoption: FORCE is put back',
    file: 'src/db/adopted-tables.ts',
    take: "  await client.query(forceOnAll('FORCE'))\n",
    leave: '',
    test: 'postgres/adopt',
  },
  {
    guard: 'adoption: a hidden row is an error',
    file: 'src/db/adopted-tables.ts',
    take: "  await client.query('SET LOCAL row_security = off')\n",
    leave: '',
    test: 'postgres/adopt-logins',
  },
  {
    guard: 'adoption: no code of another login runs with our rights',
    file: 'src/db/adopted-tables.ts',
    take: '  await refuseForeignCode(client)\n',
    leave: '',
    test: 'postgres/adopt-logins',
  },
  {
    guard: 'adoption: the older login has a policy',
    file: ADOPT,
    take: '    await client.query(\n      `CREATE POLICY ${SIDE_BY_SIDE_POLICY}',
    leave: '    String(\n      `CREATE POLICY ${SIDE_BY_SIDE_POLICY}',
    test: 'postgres/adopt-logins',
  },
  {
    guard: 'adoption: the older login owns its tables',
    file: ADOPT,
    take: '    if (!owns) await client.query(`ALTER TABLE public.${name} OWNER TO ${role}`)\n',
    leave: '',
    test: 'postgres/adopt-logins',
  },
  {
    guard: 'adoption: the older login is no member of gary_owner',
    file: ADOPT,
    take: 'if (!owns) await client.query(`ALTER TABLE public.${name} OWNER TO ${role}`)',
    leave: 'if (!owns) await client.query(`GRANT gary_owner TO ${role}`)',
    test: 'postgres/adopt-logins',
  },
  {
    guard: 'adoption: a zone that is UTC in winter only is told',
    file: ADOPT,
    take: "\n    OR timestamp '2026-07-01' AT TIME ZONE zone <> timestamptz '2026-07-01 00:00Z'",
    leave: '',
    test: 'postgres/adopt',
  },
  {
    guard: 'adoption: the event commits with the copy',
    file: ADOPT,
    take: "  await recordStep(client, 'adoption.complete'",
    leave: "  if (process.pid === 0) await recordStep(client, 'adoption.complete'",
    test: 'postgres/adopt',
  },
  {
    guard: 'adoption: finishing takes the policies away',
    file: FINISH,
    take: '    await client.query(`DROP POLICY IF EXISTS ${SIDE_BY_SIDE_POLICY} ON public.${name}`)\n',
    leave: '',
    test: 'postgres/adopt-logins',
  },
  {
    guard: 'adoption: finishing takes the ownership away',
    file: FINISH,
    take: '    await client.query(`ALTER TABLE public.${name} OWNER TO gary_owner`)\n',
    leave: '',
    test: 'postgres/adopt-logins',
  },
  {
    guard: 'adoption: finishing hashes what is in the clear',
    file: FINISH,
    take: '      const sessions = await client.query(HASH_TOKENS)',
    leave: "      const sessions = await client.query('SELECT WHERE false')",
    test: 'postgres/adopt',
  },
  {
    guard: 'adoption: finishing leaves no token in the clear',
    file: FINISH,
    take: '  if (ring === null) {',
    leave: '  if (ring === null) return 0\n  if (ring === undefined) {',
    test: 'postgres/adopt',
  },
  {
    guard: 'adoption: finishing is done once',
    file: FINISH,
    take: '  if (found.finishedAt !== null) return [`finished already, at ${found.finishedAt}`]\n',
    leave: '',
    test: 'postgres/adopt',
  },
  {
    guard: 'adoption: the three tables are checked whoever owns them',
    file: 'src/db/safety.ts',
    take: "(o.rolname = 'gary_owner' or c.relname in ('auth_users', 'auth_sessions', 'auth_oauth_tokens'))",
    leave: "o.rolname = 'gary_owner'",
    test: 'postgres/safety',
  },
  {
    guard: 'adoption: a name is found exactly as it is stored',
    file: 'src/db/users.ts',
    take: "        eb('username', '=', username),\n",
    leave: '',
    test: 'postgres/adopt',
  },
  {
    guard: 'who asks goes ahead of what is asked',
    file: DRIVER,
    take: 'statements.push(statement)',
    leave: 'statements.unshift(statement)',
    test: 'faults/isolation',
  },
  {
    guard: 'who asks is forgotten at the end of the flight',
    file: IDENTITY,
    take: "set_config('role', $1, true)",
    leave: "set_config('role', $1, false)",
    test: 'faults/isolation',
  },
  {
    guard: 'a claim holds only while the database says so',
    file: IDENTITY,
    take: 'case when exists (${CONDITIONS[claim.kind]})',
    leave: 'case when true or exists (${CONDITIONS[claim.kind]})',
    test: 'faults/isolation',
  },
  {
    guard: 'the reads of one turn share a lane and its write',
    file: LANES,
    take: 'if (isShared && this.#boarding?.isBoarding === true',
    leave: 'if (isShared && this.#boarding?.isBoarding === null',
    test: 'postgres/lanes',
  },
  {
    guard: 'eight reads of a turn at most share it',
    file: LANES,
    take: 'this.#boarded < MAX_TOGETHER && ',
    leave: '',
    test: 'postgres/lanes',
  },
  {
    guard: 'what changes data goes where the fewest stand before it',
    file: LANES,
    take: 'if (statements.some(({ writes, isShared }) => writes === true || isShared === false)) return false',
    leave: '',
    test: 'postgres/lanes',
  },
  {
    guard: 'a kept answer tells its times in UTC',
    file: 'src/db/config.ts',
    take: "timezone('UTC', change.${sql.ref(column)})",
    leave: 'change.${sql.ref(column)}',
    test: 'postgres/idempotency',
  },
  {
    guard: 'a slow read shares no lane',
    file: LANES,
    take: 'return name !== undefined && (this.#keptMs.get(name) ?? 0) < QUICK_MS',
    leave: 'return true',
    test: 'postgres/lanes',
  },
  {
    guard: 'a lost lane is shared no more',
    file: LANES,
    take: 'if (this.#boarding === lane) this.#boarding = undefined',
    leave: '',
    test: 'postgres/lanes',
  },
  {
    guard: 'what is logged last is written before an exit',
    file: 'src/logger.ts',
    take: "process.on('exit', flush)",
    leave: '',
    test: 'logger',
  },
  {
    guard: 'what a lane stops is done on the pool',
    file: POOL,
    take: 'if (error instanceof AppError || !isStoppedByLane(classify(error))) throw error',
    leave: 'throw error',
    test: 'faults/isolation',
  },
  {
    guard: 'a write that is not waited for is no refusal',
    file: 'src/db/deadline.ts',
    take: 'if (!writes) reject(notWaitedFor(end))',
    leave: 'if (end !== undefined) reject(notWaitedFor(end))',
    test: 'faults/isolation',
  },
  {
    guard: 'a lane that does not answer is cut',
    file: LANES,
    take: '      lane.cut()\n      this.#onSuspect()\n',
    leave: '',
    test: 'postgres/lanes',
  },
  {
    guard: 'a lane carries so many flights and no more',
    file: LANES,
    take: 'const MAX_IN_FLIGHT = 16',
    leave: 'const MAX_IN_FLIGHT = 640',
    test: 'postgres/lanes',
  },
  {
    guard: 'a lane that is retired lands its flights first',
    file: LANES,
    take: '    this.#retired = true\n    if (this.inFlight === 0) this.#end()\n',
    leave: '    this.#retired = true\n    this.cut()\n',
    test: 'postgres/lanes',
  },
  {
    guard: 'a lane waits for a lock only shortly',
    file: 'src/db/pool.ts',
    take: 'lockMs: Math.min(budgets.lockMs, LANE_LOCK_MS)',
    leave: 'lockMs: budgets.lockMs',
    test: 'postgres/lanes',
  },
  {
    guard: 'a name that another flight is preparing is not relied on',
    file: FLIGHT,
    take: 'if (known !== undefined && (known.flight === undefined || known.flight === this)) return known',
    leave: 'if (known !== undefined) return known',
    test: 'flight/flight',
  },
  {
    guard: 'a Parse that failed or was skipped is not waited for',
    file: FLIGHT,
    take: 'while (unanswered[0]?.flight === this) {',
    leave: 'while (unanswered.length < 0) {',
    test: 'flight/flight',
  },
  {
    guard: 'a name that the server has not taken is forgotten',
    file: FLIGHT,
    take: 'if (byName.get(parse.name) === parse) byName.delete(parse.name)',
    leave: 'void parse',
    test: 'flight/flight',
  },
  {
    guard: 'rows of the statements ahead are not told',
    file: FLIGHT,
    take: 'if (this.#ahead === 0) super.handleDataRow(message)',
    leave: 'super.handleDataRow(message)',
    test: 'flight/flight',
  },
  {
    guard: 'what a shared append fails of by one of them is done by each alone',
    file: TOGETHER,
    take: 'if (isForEachAlone(error)) return await append(db, caller, events)',
    leave: '',
    test: 'postgres/append-together',
  },
  {
    guard: 'an append whose outcome is unknown is not sent again',
    file: TOGETHER,
    take: " || error.code === 'outcome_unknown'",
    leave: '',
    test: 'postgres/append-together',
  },
  {
    guard: 'a shared append is of one identity and one claim',
    file: TOGETHER,
    take: 'return JSON.stringify([name, values, caller.actor.name])',
    leave: 'return String(values[1] ?? name)',
    test: 'postgres/append-together',
  },
  {
    guard: 'a shared append waits for no lock on the pool',
    file: POOL,
    take: 'if (statements.at(-1)?.isShared === true) throw new NoLane()',
    leave: '',
    test: 'postgres/append-together',
  },
  {
    guard: 'no id is twice in a shared append',
    file: TOGETHER,
    take: ' &&\n    events.every(({ columns }) => !ids.has(columns.eventId))',
    leave: '',
    test: 'postgres/append-together',
  },
  {
    guard: "a shared append ends with nobody's deadline",
    file: TOGETHER,
    take: 'append(db, sender, group.events)',
    leave: 'append(db, { ...caller, isShared: true }, group.events)',
    test: 'postgres/append-together',
  },
  {
    guard: 'each waits for a shared append no longer than it may',
    file: TOGETHER,
    take: 'deadline === undefined ? group.landed : untilEnd(group.landed, deadline, true)',
    leave: 'group.landed',
    test: 'postgres/append-together',
  },
  {
    guard: 'a shared append confirms the claims of all',
    file: TOGETHER,
    take: 'if (claim !== undefined) claim.isConfirmed = true',
    leave: '',
    test: 'postgres/append-together',
  },
  {
    guard: 'a connection whose refused body does not come is ended',
    file: 'src/routes/refuse-early.ts',
    take: 'if (!incoming.complete) incoming.destroy()',
    leave: '',
    test: 'routes/flood',
  },
  {
    guard: 'reads share a Sync with those of the same identity alone',
    file: FORMATION,
    take: 'values.every((value, at) => value === other.values[at])',
    leave: 'true',
    test: 'postgres/lanes',
  },
  {
    guard: 'reads that share a Sync are answered one by one',
    file: FORMATION,
    take: 'if (index > 0) messages.push(serialize.flush())',
    leave: '',
    test: 'postgres/lanes',
  },
  {
    guard: 'a turn is sent in its order',
    file: LANES,
    take: 'for (const each of turn) void',
    leave: 'for (const each of turn.toReversed()) void',
    test: 'postgres/lanes',
  },
  {
    guard: 'so many reads share a Sync and no more',
    file: FORMATION,
    take: 'this.#flights.length < MAX_TOGETHER &&',
    leave: '',
    test: 'postgres/lanes',
  },
  {
    guard: 'a read that was skipped behind another is flown again',
    file: LANES,
    take: 'if (error instanceof Skipped) return await fly(this.client, statements)',
    leave: '',
    test: 'postgres/lanes',
  },
  {
    guard: 'what is skipped behind a read that fails does not fail of it',
    file: FORMATION,
    take: 'flight.handleError(endsAll ? error : new Skipped(), connection)',
    leave: 'flight.handleError(error, connection)',
    test: 'flight/formation',
  },
  {
    guard: 'what fails ahead of reads that share it fails them all',
    file: FORMATION,
    take: 'const endsAll = failed?.isAhead === true || !(error instanceof pg.DatabaseError)',
    leave: 'const endsAll = !(error instanceof pg.DatabaseError)',
    test: 'flight/formation',
  },
  {
    guard: 'an answer goes to the read that it is of',
    file: FORMATION,
    take: 'this.#at += 1',
    leave: 'this.#at += Number(this.#flights.length < 3)',
    test: 'flight/formation',
  },
]

const only = process.argv[2]
const copy = mkdtempSync(join(tmpdir(), 'gary-mutations-'))
const rows = []
try {
  for (const part of [
    'src',
    'test',
    'prisma',
    'package.json',
    'tsconfig.json',
    'tsconfig.build.json',
    'vitest.config.ts',
  ])
    cpSync(join(root, part), join(copy, part), { recursive: true })
  symlinkSync(join(root, 'node_modules'), join(copy, 'node_modules'))
  for (const { guard, file, take, leave, test } of GUARDS) {
    if (only !== undefined && !guard.includes(only)) continue
    const path = join(copy, file)
    const original = readFileSync(path, 'utf8')
    if (original.split(take).length !== 2) throw new Error(`${file}: not there exactly once: ${take}`)
    writeFileSync(
      path,
      original.replace(take, () => leave),
    )
    rows.push([guard, file, failingTest(test)])
    writeFileSync(path, original)
    process.stdout.write(`${rows.at(-1).join(' | ')}\n`)
  }
} finally {
  rmSync(copy, { recursive: true, force: true })
}
const missed = rows.filter(([, , failing]) => failing === 'NONE')
process.stdout.write(`${rows.length} guards taken away, ${missed.length} of them missed by no test\n`)
process.exitCode = missed.length === 0 ? 0 : 1

/** The first test that fails, in words; a run that crashes the worker (an unhandled error) counts by that. */
function failingTest(test) {
  const report = join(copy, 'report.json')
  rmSync(report, { force: true })
  const args = [
    'vitest',
    'run',
    `test/${test}.test.ts`,
    '--bail=1',
    '--reporter=json',
    `--outputFile=${report}`,
  ]
  const { status } = spawnSync('npx', args, {
    cwd: copy,
    encoding: 'utf8',
    timeout: 300_000,
    env: { ...process.env, ISOLATION_SECONDS: '8' },
  })
  if (status === 0) return 'NONE'
  const { testResults, numTotalTests, numFailedTests } = JSON.parse(readFileSync(report, 'utf8'))
  if (numTotalTests === 0) throw new Error('without the guard nothing runs at all: that shows nothing')
  if (numFailedTests === 0) return 'an unhandled error ends the run'
  const failed = testResults
    .flatMap(({ assertionResults }) => assertionResults)
    .find((one) => one.status === 'failed')
  return failed.fullName
}
