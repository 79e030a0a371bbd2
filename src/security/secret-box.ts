import { createCipheriv, createDecipheriv, createHash, createSecretKey, randomBytes } from 'node:crypto'
import type { KeyObject } from 'node:crypto'
import { AppError } from '../errors.js'

/** Keys by kid; `writer` seals, all unseal. KeyObjects, because they print nothing of the key. */
export interface KeyRing {
  readonly writer: string
  readonly keys: ReadonlyMap<string, KeyObject>
}

/** All base64url but `kid`. */
export interface SealedBox {
  kid: string
  iv: string
  tag: string
  data: string
}

const KEY_BYTES = 32
const IV_BYTES = 12 // NIST SP 800-38D, 8.2: 96 bits, random
const TAG_BYTES = 16 // a shorter tag is easier to forge, and Node would accept one
const ALGORITHM = 'aes-256-gcm'
const KID = /^[A-Za-z0-9._-]{1,64}$/
const HEX_KEY = /^[0-9A-Fa-f]{64}$/
const BASE64_KEY = /^[A-Za-z0-9+/_-]{43}=?$/

/**
 * Reads ENCRYPTION_KEY: comma-separated `kid:key`, of which the first writes and all read. A key without a kid gets
 * the first 8 hex digits of its SHA-256 as its kid. A key is 32 bytes in base64, base64url or hex. Throws Error with
 * a sentence that names the entry by its number and never a value: kid and key may have been swapped.
 */
export function parseEncryptionKeys(text: string): KeyRing {
  const entries = text.split(',').map((entry) => entry.trim())
  const keys = new Map<string, KeyObject>()
  for (const [index, entry] of entries.entries()) {
    const colon = entry.indexOf(':')
    const where = `entry ${index + 1} of ${entries.length}`
    const bytes = keyBytes(entry.slice(colon + 1), where)
    const kid = colon < 0 ? derivedKid(bytes) : entry.slice(0, colon)
    if (!KID.test(kid)) throw new Error(`${where}: the kid must be 1 to 64 of A-Z a-z 0-9 . _ -`)
    if (keys.has(kid)) throw new Error(`${where}: this kid is already taken`)
    keys.set(kid, createSecretKey(bytes))
  }
  const [writer] = keys.keys()
  if (writer === undefined) throw new Error('no key')
  return { writer, keys }
}

/** Encrypts with the writing key (AES-256-GCM); the box opens only with the same associatedData. */
export function seal(ring: KeyRing, plainText: string, associatedData: string): SealedBox {
  const iv = randomBytes(IV_BYTES)
  const cipher = createCipheriv(ALGORITHM, keyOf(ring, ring.writer), iv, { authTagLength: TAG_BYTES })
  cipher.setAAD(Buffer.from(associatedData, 'utf8'))
  const data = Buffer.concat([cipher.update(plainText, 'utf8'), cipher.final()])
  return {
    kid: ring.writer,
    iv: iv.toString('base64url'),
    tag: cipher.getAuthTag().toString('base64url'),
    data: data.toString('base64url'),
  }
}

/**
 * The sealed text. Throws `internal`, with the reason as its cause, when the box was altered, was sealed for other
 * associatedData, or its key is not in the ring.
 */
export function unseal(ring: KeyRing, box: SealedBox, associatedData: string): string {
  try {
    const iv = Buffer.from(box.iv, 'base64url')
    const tag = Buffer.from(box.tag, 'base64url')
    if (iv.length !== IV_BYTES) throw new Error('the initialisation vector has the wrong length')
    const decipher = createDecipheriv(ALGORITHM, keyOf(ring, box.kid), iv, { authTagLength: TAG_BYTES })
    decipher.setAAD(Buffer.from(associatedData, 'utf8'))
    decipher.setAuthTag(tag)
    return Buffer.concat([decipher.update(Buffer.from(box.data, 'base64url')), decipher.final()]).toString(
      'utf8',
    )
  } catch (cause) {
    throw new AppError('internal', 'A stored secret could not be read.', { cause })
  }
}

/** True for the shape of a box; whether it opens is another matter. */
export function isSealedBox(value: unknown): value is SealedBox {
  if (typeof value !== 'object' || value === null) return false
  const { kid, iv, tag, data } = value as Record<string, unknown>
  return [kid, iv, tag, data].every((part) => typeof part === 'string')
}

function keyBytes(text: string, where: string): Buffer {
  if (text === '') throw new Error(`${where}: the key is missing`)
  if (HEX_KEY.test(text)) return Buffer.from(text, 'hex')
  if (!BASE64_KEY.test(text)) {
    throw new Error(`${where}: the key must be ${KEY_BYTES} bytes in base64 or hex (openssl rand -base64 32)`)
  }
  return Buffer.from(text, 'base64')
}

function derivedKid(bytes: Buffer): string {
  return createHash('sha256').update(bytes).digest('hex').slice(0, 8)
}

function keyOf(ring: KeyRing, kid: string): KeyObject {
  const key = ring.keys.get(kid)
  if (key === undefined) throw new Error(`ENCRYPTION_KEY holds no key named ${kid}`)
  return key
}
