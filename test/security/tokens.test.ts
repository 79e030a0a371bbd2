import { describe, expect, test } from 'vitest'
import { createToken, hashToken, isSetupToken, sameSecret, tokenKind } from '../../src/security/tokens.js'

describe('tokens', () => {
  test('each is a prefix and 256 bits of its own in 43 base64url characters', () => {
    for (const prefix of ['gzs_', 'gzk_', 'gzi_'] as const) {
      const tokens = Array.from({ length: 1_000 }, () => createToken(prefix))
      expect(new Set(tokens).size).toBe(1_000)
      for (const token of tokens) {
        expect(token).toMatch(/^gz[ski]_[A-Za-z0-9_-]{43}$/)
        expect(token.startsWith(prefix)).toBe(true)
        expect(Buffer.from(token.slice(4), 'base64url')).toHaveLength(32)
      }
    }
  })

  test('the kind is told by the exact form only', () => {
    expect(tokenKind(createToken('gzs_'))).toBe('session')
    expect(tokenKind(createToken('gzk_'))).toBe('api_key')
    expect(isSetupToken(createToken('gzi_'))).toBe(true)
    const body = 'A'.repeat(43)
    const wrong = [
      '',
      'gzs_',
      `gzs_${body}A`,
      `gzs_${body.slice(1)}`,
      `gzs_${body}\n`,
      ` gzs_${body}`,
      `GZS_${body}`,
    ]
    for (const text of [
      ...wrong,
      `gzx_${body}`,
      `gzs_${body.slice(1)}=`,
      `gzs_${body.slice(1)}é`,
      `gzi_${body}`,
    ]) {
      expect(tokenKind(text), JSON.stringify(text)).toBeNull()
    }
    for (const text of [...wrong, `gzs_${body}`, `gzi_${body}\n`]) expect(isSetupToken(text)).toBe(false)
  })

  test('a hash is SHA-256 in hex, the same every time, and shows nothing of the token', () => {
    expect(hashToken('abc')).toBe('ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad')
    const token = createToken('gzk_')
    expect(hashToken(token)).toBe(hashToken(token))
    expect(hashToken(token)).not.toContain(token.slice(4, 12))
  })

  test('secrets of any length compare, and only equal ones are the same', () => {
    expect(sameSecret('operations', 'operations')).toBe(true)
    expect(sameSecret('', '')).toBe(true)
    for (const other of ['', 'Operations', 'operation', 'operations ', 'x'.repeat(100_000)]) {
      expect(sameSecret('operations', other)).toBe(false)
    }
  })
})
