import type { HashTask } from '../../src/security/hash-task.js'
import type { Check } from '../../src/security/verification-plan.js'

/** The work of a list of checks: rounds of bcrypt, N * r * p of scrypt, iterations of pbkdf2. */
export function workOfChecks(checks: readonly Check[]): { bcrypt: number; scrypt: number; pbkdf2: number } {
  const work = { bcrypt: 0, scrypt: 0, pbkdf2: 0 }
  for (const check of checks) {
    if (check.kind === 'bcrypt') work.bcrypt += 2 ** check.cost
    else if (check.kind === 'scrypt') work.scrypt += check.N * check.r * check.p
    else work.pbkdf2 += check.iterations
  }
  return work
}

/** The same of what the workers are asked, a line each. */
export function workOf(tasks: readonly HashTask[]): object[] {
  return tasks.map((task) =>
    task.kind === 'verify' ? { kind: task.kind, ...workOfChecks(task.checks) } : { kind: task.kind },
  )
}
