import { createHash, hash, randomBytes, timingSafeEqual } from 'node:crypto'

export type TokenPrefix = 'gzs_' | 'gzk_' | 'gzi_'

// 32 bytes are 43 characters of base64url (RFC 4648, section 5, unpadded).
const SESSION_OR_KEY = /^gz([sk])_[A-Za-z0-9_-]{43}$/
const SETUP = /^gzi_[A-Za-z0-9_-]{43}$/

/** A fresh secret of 256 bits: session `gzs_`, API key `gzk_`, first set-up `gzi_`. Shown once, stored as its hash. */
export function createToken(prefix: TokenPrefix): string {
  return prefix + randomBytes(32).toString('base64url')
}

/** A password nobody has to think up: 192 random bits in 32 characters of base64url. Shown once. */
export function createPassword(): string {
  return randomBytes(24).toString('base64url')
}

/**
 * What is stored and looked up: SHA-256 of the whole token, 64 lower-case hex digits. No salt and no slow hash:
 * 256 random bits cannot be guessed (OWASP Session Management Cheat Sheet asks for 64).
 */
export function hashToken(token: string): string {
  return hash('sha256', token, 'hex')
}

/** What a presented credential claims to be, by its exact form; null is refused before the database is asked. */
export function tokenKind(text: string): 'session' | 'api_key' | null {
  const letter = SESSION_OR_KEY.exec(text)?.[1]
  if (letter === undefined) return null
  return letter === 's' ? 'session' : 'api_key'
}

/** True for the exact form of a set-up token, which is no credential: tokenKind answers null for it. */
export function isSetupToken(text: string): boolean {
  return SETUP.test(text)
}

/** Compares two secrets of any length in a time that depends on neither. */
export function sameSecret(a: string, b: string): boolean {
  return timingSafeEqual(sha256(a), sha256(b))
}

function sha256(text: string): Buffer {
  return createHash('sha256').update(text, 'utf8').digest()
}
