import { type StoredHash, WERKZEUG_PBKDF2_ITERATIONS, WERKZEUG_SCRYPT } from './stored-hash.js'

/** Which foreign formats any stored hash has: each sign-in then does one verification of each, so that its time tells nothing. */
export interface ForeignFormats {
  scrypt: boolean
  pbkdf2: boolean
}

/** One run of a hash function; only the one that `decides` says whether the password is right. */
export type Check = StoredHash & { decides: boolean }

/**
 * What one verification runs, all of it whatever comes out, so that unknown user, wrong password and right password
 * take the same work (OWASP Authentication Cheat Sheet, "Authentication Responses"): bcrypt that adds up to the
 * current cost, and for each foreign format that is in use one scrypt, and pbkdf2 that adds up to Werkzeug's current
 * iterations. Another sum only for a hash of a higher cost, of scrypt with parameters of one's own, or of pbkdf2 with
 * another digest, until it is made anew.
 */
export function verificationPlan(stored: StoredHash | null, cost: number, foreign: ForeignFormats): Check[] {
  const checks: Check[] = stored === null ? [] : [{ ...stored, decides: true }]
  if (stored?.kind === 'bcrypt') {
    // 2^c + 2^c + 2^(c+1) + ... + 2^(cost-1) = 2^cost
    for (let missing = stored.cost; missing < cost; missing += 1) checks.push(dummyBcrypt(missing))
  } else checks.push(dummyBcrypt(cost))
  if (foreign.scrypt && stored?.kind !== 'scrypt') checks.push(DUMMY_SCRYPT)
  if (foreign.pbkdf2) {
    const missing = WERKZEUG_PBKDF2_ITERATIONS - (stored?.kind === 'pbkdf2' ? stored.iterations : 0)
    if (missing > 0) checks.push(dummyPbkdf2(missing))
  }
  return checks
}

// Well-formed, since a malformed one would take no time. That anyone may know them does no harm: they never decide.

function dummyBcrypt(cost: number): Check {
  const hash = `$2b$${String(cost).padStart(2, '0')}$${'.'.repeat(53)}`
  return { kind: 'bcrypt', hash, cost, decides: false }
}

const DUMMY_SCRYPT: Check = {
  kind: 'scrypt',
  ...WERKZEUG_SCRYPT,
  salt: 'dummy',
  key: '00'.repeat(64),
  decides: false,
}

function dummyPbkdf2(iterations: number): Check {
  return {
    kind: 'pbkdf2',
    digest: 'sha256',
    iterations,
    salt: 'dummy',
    key: '00'.repeat(32),
    decides: false,
  }
}
