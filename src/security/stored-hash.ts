export type StoredHash =
  | { kind: 'bcrypt'; hash: string; cost: number }
  | { kind: 'scrypt'; N: number; r: number; p: number; salt: string; key: string }
  | { kind: 'pbkdf2'; digest: 'sha1' | 'sha256' | 'sha512'; iterations: number; salt: string; key: string }

/** What Werkzeug 3.1 writes, and what it reads for a pbkdf2 hash that does not name its iterations. */
export const WERKZEUG_SCRYPT = { N: 32_768, r: 8, p: 1 } as const
export const WERKZEUG_PBKDF2_ITERATIONS = 1_000_000

// One hash of bcrypt's cost 31 holds a thread for a day; nobody stores one above these on purpose. Each takes seconds
// at most, and scrypt 128 MiB: OWASP's parameters (N = 2^17, r = 8, p = 1) are just within.
const MAX_BCRYPT_COST = 16
const MAX_SCRYPT_WORK = 2 ** 20
const MAX_SCRYPT_FACTOR = 32
const MAX_PBKDF2_ITERATIONS = 10_000_000

// The last characters of salt and checksum have bits to spare, which bcrypt's own parser wants to be zero: it
// would refuse another one at once, and so in no time.
const BCRYPT = /^\$2[aby]\$(\d\d)\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{30}[.CGKOSWaeimquy26]$/
const SCRYPT = /^scrypt:([1-9]\d{0,6}):([1-9]\d?):([1-9]\d?)\$([^$]{1,255})\$([0-9a-f]{128})$/
const PBKDF2 = /^pbkdf2:(sha1|sha256|sha512)(?::([1-9]\d{0,7}))?\$([^$]{1,255})\$([0-9a-f]+)$/
const HEX_DIGITS = { sha1: 40, sha256: 64, sha512: 128 } as const

/**
 * Reads `$2a$`, `$2b$`, `$2y$`, and Werkzeug's `scrypt:N:r:p$salt$hex` and `pbkdf2:digest:iterations$salt$hex`,
 * whose salt is text. null for anything else, and for a hash that would take much longer than is usual: bcrypt above
 * cost 16 or the current one, scrypt above N * r * p = 2^20, pbkdf2 above 10 million iterations.
 */
export function parseStoredHash(text: string, currentCost: number): StoredHash | null {
  return parseBcrypt(text, currentCost) ?? parseScrypt(text) ?? parsePbkdf2(text)
}

function parseBcrypt(text: string, currentCost: number): StoredHash | null {
  const match = BCRYPT.exec(text)
  if (match === null) return null
  const cost = Number(match[1])
  if (cost < 4 || cost > Math.max(currentCost, MAX_BCRYPT_COST)) return null
  return { kind: 'bcrypt', hash: text, cost }
}

function parseScrypt(text: string): StoredHash | null {
  const [matched, givenN, givenR, givenP, salt = '', key = ''] = SCRYPT.exec(text) ?? []
  if (matched === undefined) return null
  const [N, r, p] = [Number(givenN), Number(givenR), Number(givenP)]
  // RFC 7914 section 2: N is a power of two, more than 1 and less than 2^(128 * r / 8).
  if (N < 2 || !Number.isInteger(Math.log2(N)) || N >= 2 ** (16 * r)) return null
  if (r > MAX_SCRYPT_FACTOR || p > MAX_SCRYPT_FACTOR || N * r * p > MAX_SCRYPT_WORK) return null
  return { kind: 'scrypt', N, r, p, salt, key }
}

function parsePbkdf2(text: string): StoredHash | null {
  const [matched, digest, given, salt = '', key = ''] = PBKDF2.exec(text) ?? []
  if (matched === undefined || !isDigest(digest) || key.length !== HEX_DIGITS[digest]) return null
  const iterations = given === undefined ? WERKZEUG_PBKDF2_ITERATIONS : Number(given)
  if (iterations > MAX_PBKDF2_ITERATIONS) return null
  return { kind: 'pbkdf2', digest, iterations, salt, key }
}

function isDigest(name: string | undefined): name is keyof typeof HEX_DIGITS {
  return name !== undefined && name in HEX_DIGITS
}
