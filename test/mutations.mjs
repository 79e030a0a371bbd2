// npm run test:mutations: takes away each guard that resilience rests on, one at a time and in a copy of the
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
const CONNECTION = 'src/db/guarded-connection.ts'
const DRIVER = 'src/db/database.ts'

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
    take: "if (outcome !== 'ignored' && meaningOf(name).evictIdle === true) this.evictIdle()",
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
    take: "throw toAppError(error, classify(error), 'open')",
    leave: "throw toAppError(error, classify(error), 'none')",
    test: 'postgres/transaction',
  },
  {
    guard: 'a write is not sent twice',
    file: DRIVER,
    take: '(failed && (!open || wasNeverSent(error)))',
    leave: 'failed',
    test: 'postgres/guarded-pool',
  },
  {
    guard: 'a transaction is not resumed on another connection',
    file: DRIVER,
    take: 'const first = !this.#inTransaction || ahead.length > 0',
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
    take: 'db.isTransaction ? await execute() : await retryingConflicts(execute)',
    leave: 'await execute()',
    test: 'postgres/conflicts',
  },
  {
    guard: 'a read is answered though its last use cannot be written',
    file: 'src/routes/caller.ts',
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
    take: 'c.var.deadlineTimer.stop()',
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
    guard: 'a forced circuit is audited past itself',
    file: 'src/forced-circuit.ts',
    take: 'source.connectPastCircuit()',
    leave: 'source.connect()',
    test: 'routes/health',
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
  const { status } = spawnSync('npx', args, { cwd: copy, encoding: 'utf8', timeout: 300_000 })
  if (status === 0) return 'NONE'
  const { testResults, numTotalTests, numFailedTests } = JSON.parse(readFileSync(report, 'utf8'))
  if (numTotalTests === 0) throw new Error('without the guard nothing runs at all: that shows nothing')
  if (numFailedTests === 0) return 'an unhandled error ends the run'
  const failed = testResults
    .flatMap(({ assertionResults }) => assertionResults)
    .find((one) => one.status === 'failed')
  return failed.fullName
}
