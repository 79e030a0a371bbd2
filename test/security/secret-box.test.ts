import { randomBytes } from 'node:crypto'
import { inspect } from 'node:util'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { isSealedBox, parseEncryptionKeys, seal, unseal } from '../../src/security/secret-box.js'

const INTERNAL = expect.objectContaining({ code: 'internal' })

function newKey(): string {
  return randomBytes(32).toString('base64')
}

function flipBit(base64url: string, bit: number): string {
  const bytes = Buffer.from(base64url, 'base64url')
  const at = Math.floor(bit / 8) % bytes.length
  bytes[at] = (bytes[at] ?? 0) ^ (1 << (bit % 8))
  return bytes.toString('base64url')
}

describe('sealing', () => {
  const ring = parseEncryptionKeys(`now:${newKey()}`)

  test('what was sealed opens again with the same associated data, whatever the text', () => {
    fc.assert(
      fc.property(fc.string({ unit: 'binary' }), fc.string({ unit: 'binary' }), (text, data) => {
        expect(unseal(ring, seal(ring, text, data), data)).toBe(text)
      }),
    )
  })

  test('the same text never gives the same box, and a box shows nothing of it', () => {
    const [one, two] = [seal(ring, 'hunter2-hunter2', 'a'), seal(ring, 'hunter2-hunter2', 'a')]
    expect(one.iv).not.toBe(two.iv)
    expect(one.data).not.toBe(two.data)
    expect(JSON.stringify(one)).not.toContain('hunter2')
    expect(isSealedBox(one)).toBe(true)
  })

  test('one changed bit anywhere in the box is noticed', () => {
    fc.assert(
      fc.property(fc.constantFrom('iv', 'tag', 'data'), fc.nat(1_000), (part, bit) => {
        const box = seal(ring, 'a secret', 'here')
        expect(() => unseal(ring, { ...box, [part]: flipBit(box[part], bit) }, 'here')).toThrow(INTERNAL)
      }),
    )
  })

  test('a box does not open at another place', () => {
    expect(() => unseal(ring, seal(ring, 'a secret', 'here'), 'there')).toThrow(INTERNAL)
  })

  test('a shortened tag or initialisation vector is refused', () => {
    const box = seal(ring, 'a secret', 'here')
    for (const bytes of [0, 4, 8, 12, 15]) {
      const tag = Buffer.from(box.tag, 'base64url').subarray(0, bytes).toString('base64url')
      expect(() => unseal(ring, { ...box, tag }, 'here')).toThrow(INTERNAL)
    }
    expect(() => unseal(ring, { ...box, iv: 'AAAA' }, 'here')).toThrow(INTERNAL)
  })

  test('an unknown key is an internal error whose cause names the kid, and its message nothing', () => {
    const box = seal(ring, 'a secret', 'here')
    let failure: unknown
    try {
      unseal(parseEncryptionKeys(`other:${newKey()}`), box, 'here')
    } catch (error) {
      failure = error
    }
    expect(failure).toEqual(INTERNAL)
    expect((failure as Error).message).not.toContain('now')
    expect(String((failure as Error).cause)).toContain('now')
  })
})

describe('ENCRYPTION_KEY', () => {
  test('the first key writes and all read: that is rotation', () => {
    const [oldKey, newerKey] = [newKey(), newKey()]
    const before = parseEncryptionKeys(`k1:${oldKey}`)
    const after = parseEncryptionKeys(` k2:${newerKey} , k1:${oldKey} `)
    expect(unseal(after, seal(before, 'old secret', ''), '')).toBe('old secret')
    expect(seal(after, 'x', '').kid).toBe('k2')
  })

  test('a bare key gets the same kid in base64, base64url and hex, and reads on when it moves to second place', () => {
    const bytes = randomBytes(32)
    const texts = [bytes.toString('base64'), bytes.toString('base64url'), bytes.toString('hex')]
    const kids = texts.map((text) => parseEncryptionKeys(text).writer)
    expect(new Set(kids).size).toBe(1)
    expect(kids[0]).toMatch(/^[0-9a-f]{8}$/)
    const box = seal(parseEncryptionKeys(texts[0] as string), 'a secret', '')
    expect(unseal(parseEncryptionKeys(`${newKey()},${texts[2]}`), box, '')).toBe('a secret')
  })

  test('errors name the entry and the problem, never a value', () => {
    const key = newKey()
    const faulty = [
      ['', /entry 1 of 1: the key is missing/],
      [`k1:${key},`, /entry 2 of 2: the key is missing/],
      [`k1:${key},k1:${newKey()}`, /entry 2 of 2: this kid is already taken/],
      [`k1:${key.slice(4)}`, /must be 32 bytes/],
      [`k1:${randomBytes(31).toString('base64')}`, /must be 32 bytes/],
      [`k1:${randomBytes(33).toString('base64')}`, /must be 32 bytes/],
      [`k1:${randomBytes(64).toString('base64')}`, /must be 32 bytes/],
      [`${key}:k1`, /must be 32 bytes/],
      [`${key}:${newKey()}`, /the kid must be/],
      [`:${key}`, /the kid must be/],
      [`k 1:${key}`, /the kid must be/],
      ['correct horse battery staple', /must be 32 bytes/],
      ['${{shared.ENCRYPTION_KEY}}', /must be 32 bytes/],
    ] as const
    for (const [text, problem] of faulty) {
      expect(() => parseEncryptionKeys(text), text).toThrow(problem)
      try {
        parseEncryptionKeys(text)
      } catch (error) {
        for (const value of [key, key.slice(4), 'battery', 'shared'])
          expect(String(error)).not.toContain(value)
      }
    }
  })

  test('a ring that is logged by mistake shows no key', () => {
    const bytes = randomBytes(32)
    const ring = parseEncryptionKeys(`k1:${bytes.toString('base64')}`)
    const shown = inspect(ring, { depth: 10, showHidden: true }) + JSON.stringify([...ring.keys])
    for (const encoding of ['base64', 'hex'] as const) expect(shown).not.toContain(bytes.toString(encoding))
  })
})
