import type { Check } from './verification-plan.js'

/** What the hash worker is asked; one answer each. */
export type HashTask =
  /** Answered by a `$2b$` hash. */
  | { kind: 'bcrypt'; password: string; cost: number }
  /** Answered by a hash as Werkzeug writes it. */
  | { kind: 'scrypt'; password: string; N: number; r: number; p: number }
  /** Answered by whether the check that decides is right; false when none decides. */
  | { kind: 'verify'; password: string; checks: Check[] }
  /** Answered by Strength. */
  | { kind: 'strength'; password: string; userInputs: string[] }

/** How hard the password is to guess, by zxcvbn: 0 to 4, and what makes it easy, by the name of its warning. */
export interface Strength {
  score: number
  warning: string | null
}
