import { randomBytes } from 'node:crypto'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import {
  PLACEHOLDER,
  hasPlaceholder,
  maskValue,
  resealValue,
  revealValue,
  sealValue,
  sealedPlaces,
} from '../../src/security/config-secrets.js'
import type { ConfigAddress } from '../../src/security/config-secrets.js'
import { canonicalJson, parseJson, parseStoredJson, stringifyJson } from '../../src/security/json-text.js'
import { childAt } from '../../src/security/json-tree.js'
import type { JsonObject, JsonTree } from '../../src/security/json-tree.js'
import { parseEncryptionKeys } from '../../src/security/secret-box.js'
import type { KeyRing } from '../../src/security/secret-box.js'
import { SETTINGS_SECRETS, settingsDocument, settingsText } from '../settings-document.js'

const key = randomBytes(32).toString('hex')
const ring = parseEncryptionKeys(`k1:${key}`)
const address: ConfigAddress = { scope: 'service', owner: 'gary', environment: 'production', key: 'settings' }

interface Given {
  ring?: KeyRing | null
  address?: ConfigAddress
  secretPaths?: string[]
  stored?: JsonTree
}

function sealed(next: JsonTree, given: Given = {}): JsonTree {
  return sealValue({ ring, address, secretPaths: [], stored: undefined, ...given, next })
}

function refused(path: string, message: RegExp = /./) {
  const fault = { path, message: expect.stringMatching(message) as string }
  return expect.objectContaining({ code: 'validation_failed', errors: [fault] })
}

const INTERNAL = expect.objectContaining({ code: 'internal' })

describe('which values are secret', () => {
  test('strings under names that are or end in a secret word, whatever the case', () => {
    const names = [
      'password rfc_password AUTH_PASSWORD secret client_secret token mcp_server_token api_key',
      'openai_api_key OPENAI_API_KEY private_key database_ssl_key ssl_key database_url',
      'DATABASE_URL reports_database_url mcp_servers MCP_Servers',
    ].flatMap((line) => line.split(' '))
    for (const name of names) {
      expect(maskValue(sealed({ [name]: 'x' })), name).toEqual({ [name]: PLACEHOLDER })
      expect(maskValue(sealed({ a: [{ [name]: 'x' }] })), name).toEqual({ a: [{ [name]: PLACEHOLDER }] })
      expect(maskValue(sealed('x', { address: { ...address, key: name } })), `key ${name}`).toBe(PLACEHOLDER)
    }
  })

  test('neither other names nor empty strings nor values that are no strings', () => {
    const open = {
      max_tokens: 'x',
      tokens: 'x',
      token_count: 5,
      password_hint: 'x',
      api_key_name: 'x',
      keys: 'x',
      url: 'x',
      password: '',
      secret: null,
      token: 7,
      api_key: true,
      my_database_urls: 'x',
      secretary: 'x',
      key: 'x',
      api_keys: {
        none: '',
        count: 3,
        flag: false,
        nothing: null,
      },
      private_key: { kind: 'rsa' },
    }
    expect(sealed(open, { ring: null })).toEqual(open)
    expect(sealed('x', { ring: null })).toBe('x')
  })

  test('every string below api_keys and mcp_servers, also when the key itself is one', () => {
    const value = { a: 'x', b: { c: ['y', '', 3] } }
    const masked = { a: PLACEHOLDER, b: { c: [PLACEHOLDER, '', 3] } }
    for (const name of ['api_keys', 'API_KEYS', 'mcp_servers']) {
      expect(maskValue(sealed({ [name]: value }))).toEqual({ [name]: masked })
      expect(maskValue(sealed(value, { address: { ...address, key: name } }))).toEqual(masked)
    }
    expect(maskValue(sealed('x', { address: { ...address, key: 'api_keys.openai' } }))).toBe(PLACEHOLDER)
  })

  test('a list hands its name to its strings', () => {
    expect(maskValue(sealed({ token: ['a', ['b'], { name: 'c' }] }))).toEqual({
      token: [PLACEHOLDER, [PLACEHOLDER], { name: 'c' }],
    })
  })

  test('secret paths seal any value as a whole, and * stands for any name or index', () => {
    const value = { a: { b: { x: 1 }, 'c/d': [2], '~': null }, list: [{ pin: 1, id: 2 }, { pin: '' }] }
    const cases: [string[], JsonTree][] = [
      [[''], PLACEHOLDER],
      [['/a'], { ...value, a: PLACEHOLDER }],
      [['/a/c~1d', '/a/~0'], { ...value, a: { b: { x: 1 }, 'c/d': PLACEHOLDER, '~': PLACEHOLDER } }],
      [['/a/*'], { ...value, a: { b: PLACEHOLDER, 'c/d': PLACEHOLDER, '~': PLACEHOLDER } }],
      [['/list/*/pin'], { ...value, list: [{ pin: PLACEHOLDER, id: 2 }, { pin: PLACEHOLDER }] }],
      [['/absent', '/a/b/x/y', '/*/*/*/*'], value],
    ]
    for (const [secretPaths, masked] of cases) {
      const stored = sealed(value, { secretPaths })
      expect(maskValue(stored), secretPaths.join()).toEqual(masked)
      expect(revealValue(ring, address, stored)).toEqual(value)
    }
  })

  test('bad secret paths are refused by their index, and so are more than a hundred', () => {
    for (const bad of ['a', '#/a', '/a~2', '/~']) {
      expect(() => sealed({}, { secretPaths: ['/fine', bad] })).toThrow(refused('/secret_paths/1'))
    }
    const many = Array.from({ length: 101 }, (_, i) => `/${i}`)
    expect(() => sealed({}, { secretPaths: many })).toThrow(refused('/secret_paths'))
  })
})

describe('the stored form', () => {
  const canary = 'canary-3f9c'

  test('holds no plain secret, reads back masked, and reveals every value with its spelling', () => {
    const text = `{"password":"${canary}","n":1.0,"big":12345678901234567890,"limits":{"x":1.50}}`
    const stored = parseStoredJson(stringifyJson(sealed(parseJson(text), { secretPaths: ['/limits'] })))
    expect(stringifyJson(stored)).not.toContain(canary)
    expect(stringifyJson(stored)).not.toContain('1.50')
    expect(stringifyJson(maskValue(stored))).toBe(
      `{"password":"${PLACEHOLDER}","n":1.0,"big":12345678901234567890,"limits":"${PLACEHOLDER}"}`,
    )
    expect(stringifyJson(revealValue(ring, address, stored))).toBe(text)
    expect(sealedPlaces(stored)).toEqual(['/password', '/limits'])
  })

  test('a value of the greatest depth can be sealed, stored and read again', () => {
    const text = '{"a":'.repeat(63) + '{"token":"x"}' + '}'.repeat(63)
    const stored = parseStoredJson(stringifyJson(sealed(parseJson(text))))
    expect(stringifyJson(revealValue(ring, address, stored))).toBe(text)
  })

  test('a box opens at its own address and place only', () => {
    const stored = sealed({ password: 'x', list: [{ token: 'y' }, { token: 'z' }] }) as JsonObject
    const other: Partial<ConfigAddress>[] = [
      { scope: 'global' },
      { owner: 'other' },
      { owner: null },
      { environment: 'staging' },
      { environment: null },
      { key: 'other' },
      {
        owner: 'gary","production',
        environment: null,
      },
    ]
    for (const change of other)
      expect(() => revealValue(ring, { ...address, ...change }, stored)).toThrow(INTERNAL)
    expect(() => revealValue(ring, address, { secret: stored['password'] as JsonTree })).toThrow(INTERNAL)
    const [first, second] = stored['list'] as JsonTree[]
    expect(() => revealValue(ring, address, { list: [second as JsonTree, first as JsonTree] })).toThrow(
      INTERNAL,
    )
    expect(() => revealValue(ring, address, { $sealed: 'garbage' })).toThrow(INTERNAL)
    expect(() => revealValue(null, address, stored)).toThrow(INTERNAL)
    expect(maskValue({ a: { $sealed: 'garbage' } })).toEqual({ a: PLACEHOLDER })
  })

  test('a caller cannot write a box, not even one that was stored here', () => {
    const stored = sealed({ password: 'x' }) as JsonObject
    expect(() => sealed({ password: stored['password'] as JsonTree }, { stored })).toThrow(
      refused('/password'),
    )
    for (const box of [null, {}, 'x', { kid: 'a', iv: 'b', tag: 'c', data: 'd' }]) {
      expect(() => sealed({ a: [{ $sealed: box, more: 1 }] })).toThrow(refused('/a/0'))
      expect(() => sealed({ a: { b: { $sealed: box } } }, { secretPaths: ['/a'] })).toThrow(refused('/a/b'))
    }
  })

  test('without ENCRYPTION_KEY a secret is refused by name, boxes are kept and the rest is free', () => {
    const stored = sealed({ password: 'x', a: 1 })
    expect(() => sealed({ a: 1, password: 'x' }, { ring: null })).toThrow(
      refused('/password', /ENCRYPTION_KEY/),
    )
    expect(() => sealed({ a: 1 }, { ring: null, secretPaths: ['/a'] })).toThrow(
      refused('/a', /ENCRYPTION_KEY/),
    )
    const kept = sealed({ password: PLACEHOLDER, a: 2 }, { ring: null, stored })
    expect(revealValue(ring, address, kept)).toEqual({ password: 'x', a: 2 })
  })

  test('no refusal repeats a secret', () => {
    try {
      sealed({ password: canary }, { ring: null })
    } catch (error) {
      expect(JSON.stringify(error) + String(error)).not.toContain(canary)
    }
  })
})

describe('the placeholder on a write', () => {
  test('keeps the very box that is stored at that place', () => {
    const stored = sealed({ password: 'x', api_keys: { a: 'y' }, list: [{ token: 't0' }, { token: 't1' }] })
    const next = {
      api_keys: { a: PLACEHOLDER, b: 'new' },
      list: [{ token: PLACEHOLDER, n: 1 }],
      password: PLACEHOLDER,
    }
    const kept = sealed(next, { stored })
    expect(revealValue(ring, address, kept)).toEqual({
      password: 'x',
      api_keys: {
        a: 'y',
        b: 'new',
      },
      list: [
        {
          token: 't0',
          n: 1,
        },
      ],
    })
    expect(childAt(kept, 'password')).toBe(childAt(stored, 'password'))
  })

  test('keeps by index in a list, so a list that was re-ordered must bring its secrets', () => {
    const stored = sealed([{ token: 't0' }, { token: 't1' }])
    const kept = sealed([{ token: PLACEHOLDER }], { stored })
    expect(revealValue(ring, address, kept)).toEqual([{ token: 't0' }])
    expect(() => sealed([{}, {}, { token: PLACEHOLDER }], { stored })).toThrow(refused('/2/token'))
  })

  test('is refused with its place where nothing sealed is stored', () => {
    const stored = sealed({ password: 'x', plain: 'y', limits: { a: 1 } }, { secretPaths: ['/limits'] })
    const cases: [JsonTree, string, string[]][] = [
      [{ secret: PLACEHOLDER }, '/secret', []],
      [{ plain: PLACEHOLDER }, '/plain', []],
      [{ plain: PLACEHOLDER }, '/plain', ['/plain']],
      [{ other: { password: PLACEHOLDER } }, '/other/password', []],
      [{ password: [PLACEHOLDER] }, '/password/0', []],
      [{ limits: { password: PLACEHOLDER } }, '/limits/password', []],
      [{ limits: { a: PLACEHOLDER, b: 1 } }, '/limits/a', ['/limits']],
      [{ limits: { data: PLACEHOLDER } }, '/limits/data', ['/limits/*']],
      [{ '': PLACEHOLDER }, '/', ['/']],
      [PLACEHOLDER, '', ['']],
    ]
    for (const [next, path, secretPaths] of cases) {
      expect(() => sealed(next, { stored, secretPaths }), JSON.stringify(next)).toThrow(refused(path))
      expect(() => sealed(next, { secretPaths }), JSON.stringify(next)).toThrow(refused(path))
    }
  })

  test('does not unseal: a path stops being secret only with a fresh value', () => {
    const stored = sealed({ pin: 4711, keep: { a: 1 } }, { secretPaths: ['/pin', '/keep'] })
    const next = { pin: PLACEHOLDER, keep: PLACEHOLDER }
    expect(() => sealed(next, { stored, secretPaths: ['/pin'] })).toThrow(refused('/keep', /fresh value/))
    expect(sealed({ pin: 4712, keep: null }, { stored, secretPaths: [] })).toEqual({ pin: 4712, keep: null })
    expect(maskValue(sealed(next, { stored, secretPaths: ['/*'] }))).toEqual(next)
  })

  test('is told from text that merely contains it', () => {
    expect(hasPlaceholder({ a: [{ b: PLACEHOLDER }] })).toBe(true)
    expect(hasPlaceholder({ a: [`x${PLACEHOLDER}`], [PLACEHOLDER]: 1 })).toBe(false)
    expect(sealed({ note: `x${PLACEHOLDER}` })).toEqual({ note: `x${PLACEHOLDER}` })
  })

  test('reading and writing back what was read changes nothing, for any value and any secret paths', () => {
    const name = fc.constantFrom('a', 'password', 'api_keys', 'n', '0', 'toString', '')
    const leaf = fc.constantFrom<JsonTree>('x', '', 0, true, null)
    const { tree } = fc.letrec<{ tree: JsonTree }>((tie) => ({
      tree: fc.oneof({ depthSize: 'small' }, leaf, fc.array(tie('tree')), fc.dictionary(name, tie('tree'))),
    }))
    const pointer = fc.array(fc.oneof(name, fc.constant('*')), { maxLength: 3 })
    fc.assert(
      fc.property(tree, fc.array(pointer, { maxLength: 3 }), (value, pointers) => {
        const secretPaths = pointers.map((parts) => parts.map((part) => `/${part}`).join(''))
        const stored = sealed(value, { secretPaths })
        expect(sealed(maskValue(stored), { stored, secretPaths })).toEqual(stored)
        expect(canonicalJson(revealValue(ring, address, stored))).toBe(canonicalJson(value))
        expect(hasPlaceholder(maskValue(stored))).toBe(sealedPlaces(stored).length > 0)
      }),
      { numRuns: 500 },
    )
  })
})

describe('copy, restore and rotation', () => {
  const to: ConfigAddress = { scope: 'user', owner: '7', environment: null, key: 'copy' }
  const reseal = (given: Partial<Parameters<typeof resealValue>[0]>) =>
    resealValue({ ring, from: address, to: address, secretPaths: [], stored: null, ...given })

  test('a copy opens at its new address only, and stays sealed where the new key is no secret name', () => {
    const from = { ...address, key: 'openai_api_key' }
    const stored = sealed('x', { address: from })
    const copy = reseal({ from, to, stored })
    expect(maskValue(copy)).toBe(PLACEHOLDER)
    expect(sealedPlaces(copy)).toEqual([''])
    expect(revealValue(ring, to, copy)).toBe('x')
    expect(() => revealValue(ring, from, copy)).toThrow(INTERNAL)
    expect(() => reseal({ ring: null, from, to, stored })).toThrow(refused('', /ENCRYPTION_KEY/))
  })

  test('restoring an older form keeps its boxes and seals what has become secret since', () => {
    const old = sealed({ password: 'x', pin: 1, group: { token: 't', n: 1 } })
    const restored = reseal({ stored: old, secretPaths: ['/pin', '/group'] })
    expect(childAt(restored, 'password')).toBe(childAt(old, 'password'))
    expect(sealedPlaces(restored)).toEqual(['/password', '/pin', '/group'])
    expect(revealValue(ring, address, restored)).toEqual({
      password: 'x',
      pin: 1,
      group: { token: 't', n: 1 },
    })
    expect(reseal({ ring: null, stored: old })).toEqual(old)
  })

  test('after a rotation every box is under the writing key, and the old key can go', () => {
    const newer = randomBytes(32).toString('hex')
    const stored = sealed({ password: 'x', n: 1 })
    const rotated = reseal({ ring: parseEncryptionKeys(`k2:${newer},k1:${key}`), stored })
    expect(revealValue(parseEncryptionKeys(`k2:${newer}`), address, rotated)).toEqual({ password: 'x', n: 1 })
  })
})

describe('the settings document of the consumer', () => {
  test('seals exactly its secrets and keeps all else, every spelling included', () => {
    const stored = sealed(parseJson(settingsText()))
    expect(sealedPlaces(stored).sort()).toEqual([...SETTINGS_SECRETS].sort())
    expect(stringifyJson(stored)).not.toMatch(/made-up-(?!admin)/)
    expect(stringifyJson(revealValue(ring, address, stored))).toBe(settingsText())
  })

  test('a form that is saved with one change keeps all secrets', () => {
    const stored = sealed(settingsDocument())
    const form = { ...(maskValue(stored) as JsonObject), agent_memory_subdir: 'changed' }
    const saved = sealed(form, { stored })
    expect(revealValue(ring, address, saved)).toEqual({
      ...settingsDocument(),
      agent_memory_subdir: 'changed',
    })
  })
})
