import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { parseJson, stringifyJson } from '../../src/security/json-text.js'
import type { JsonTree } from '../../src/security/json-tree.js'
import { REDACTED, redactSecrets, redactText } from '../../src/security/redact.js'
import { createToken } from '../../src/security/tokens.js'
import { SETTINGS_SECRETS, settingsDocument } from '../settings-document.js'

describe('redaction by name', () => {
  test('strings at and below sensitive names go, however the name is written', () => {
    const names = [
      'password PASSWORD db_password passwd pwd token access_token accessToken api_key apiKey',
      'X-API-KEY Authorization proxy-authorization cookie Set-Cookie cookies secret client_secret',
      'AWS_SECRET_ACCESS_KEY private_key ssl_key DATABASE_URL api_keys mcp_servers',
    ].flatMap((line) => line.split(' '))
    for (const name of names) {
      const { tree, redacted } = redactSecrets({
        a: [{ [name]: 'x', other: 'y' }],
        [name]: { deep: ['x', '', 1] },
      })
      expect(tree, name).toEqual({
        a: [{ [name]: REDACTED, other: 'y' }],
        [name]: { deep: [REDACTED, '', 1] },
      })
      expect(redacted).toEqual([`/a/0/${name}`, `/${name}/deep/0`])
    }
  })

  test('what is far below a sensitive name goes, with nothing else in the tree to redact', () => {
    for (const below of ['x', ['x'], { a: 'x' }, { a: [{ b: { c: 'x' } }] }]) {
      const { tree, redacted } = redactSecrets({ token: below, n: 1 })
      expect(JSON.stringify(tree)).not.toContain('"x"')
      expect(redacted).toHaveLength(1)
    }
  })

  test('numbers keep their spelling and nothing but strings is touched, also at sensitive names', () => {
    const text =
      '{"token":1.0,"password":null,"max_tokens":12345678901234567890,"secret":true,"tokens":"4","n":-0}'
    const { tree, redacted } = redactSecrets(parseJson(text))
    expect(stringifyJson(tree)).toBe(text)
    expect(redacted).toEqual([])
  })

  test('every secret of the configuration is one here too', () => {
    const { tree, redacted } = redactSecrets(settingsDocument())
    expect(redacted).toEqual(expect.arrayContaining(SETTINGS_SECRETS))
    expect(stringifyJson(tree)).not.toMatch(/made-up-(?!admin)/)
  })
})

describe('redaction by form', () => {
  test('our own tokens vanish from any text and from names', () => {
    for (const prefix of ['gzs_', 'gzk_', 'gzi_'] as const) {
      const token = createToken(prefix)
      expect(redactText(`failed for ${token}, again ${token}.`)).toBe(
        `failed for ${REDACTED}, again ${REDACTED}.`,
      )
      const { tree, redacted } = redactSecrets({ sessions: { [token]: 1, [`${token}x`]: [token] } })
      expect(JSON.stringify(tree)).not.toContain(token)
      expect(redacted).toEqual([
        `/sessions/${REDACTED}`,
        `/sessions/${REDACTED}x`,
        `/sessions/${REDACTED}x/0`,
      ])
    }
    expect(redactText('gzs_short and gzs_')).toBe('gzs_short and gzs_')
  })

  test('credentials in headers, URLs and assignments vanish, what is around them stays', () => {
    const cases = [
      ['Bearer abc.def-ghi', 'Bearer [redacted]'],
      ['authorization: bearer  abc, next', 'authorization: bearer  [redacted], next'],
      ["{'Authorization': 'Basic dXNlcjpwYXNz'}", "{'Authorization': 'Basic [redacted]'}"],
      ['Basic understanding', 'Basic understanding'],
      ['postgres://user:hunter2@db:5432/x', 'postgres://user:[redacted]@db:5432/x'],
      ['to postgresql://u:p@ss:w@rd@db/x?y=a@b.', 'to postgresql://u:[redacted]@db/x?y=a@b.'],
      ['redis://:hunter2@cache', 'redis://:[redacted]@cache'],
      ['http://host:8080/path?mail=a@b', 'http://host:8080/path?mail=a@b'],
      ['postgres://user@db/x', 'postgres://user@db/x'],
      ['host=db password=hunter2 user=x', 'host=db password=[redacted] user=x'],
      ["PGPASSWORD='hunter 2' psql", 'PGPASSWORD=[redacted] psql'],
      ['?password=hunter2&x=1', '?password=[redacted]&x=1'],
    ] as const
    for (const [text, expected] of cases) expect(redactText(text)).toBe(expected)
  })

  test('none of our tokens survives in any surroundings', () => {
    const piece = fc.constantFrom(
      'Bearer ',
      '://',
      'u:',
      'p@',
      'password=',
      "'",
      ' ',
      'authorization: basic ',
      REDACTED,
    )
    const token = createToken('gzs_')
    const around = fc.array(fc.oneof(piece, fc.string())).map((all) => all.join(''))
    fc.assert(
      fc.property(around, around, (before, after) => {
        const { tree } = redactSecrets(
          { [before + token]: [before + token + after] },
          { maxStringLength: 100 },
        )
        expect(JSON.stringify(tree)).not.toContain(token.slice(4))
      }),
      { numRuns: 1_000 },
    )
  })

  test('a tree that is passed over at a glance is one that the whole way leaves as it is', () => {
    const text = fc.oneof(
      fc.constantFrom('Bearer abc', 'pwd=x', 'https://h/x', '://u:p@h', `gzs_${'k'.repeat(43)}`, '', 'fine'),
      fc.string({ maxLength: 30 }),
    )
    const name = fc.oneof(
      fc.constantFrom('a', 'b', 'Set-Cookie', 'apiKey', 'pwd=x', `gzk_${'k'.repeat(43)}`),
      fc.string({ maxLength: 12 }),
    )
    const { tree } = fc.letrec<{ tree: JsonTree }>((tie) => ({
      tree: fc.oneof(
        { depthSize: 'small' },
        text,
        fc.constantFrom(1, true, null),
        fc.array(tie('tree')),
        fc.dictionary(name, tie('tree')),
      ),
    }))
    fc.assert(
      fc.property(tree, fc.constantFrom(8, 20, 65_536), (given, maxStringLength) => {
        const alone = redactSecrets(given, { maxStringLength })
        // Beside something to redact nothing is passed over.
        const beside = redactSecrets([given, 'Bearer x'], { maxStringLength })
        expect((beside.tree as JsonTree[])[0]).toEqual(alone.tree)
        const places = (all: string[]) =>
          all.filter((place) => place.startsWith('/0')).map((place) => place.slice(2))
        expect(places(beside.redacted)).toEqual(alone.redacted)
        expect(places(beside.truncated)).toEqual(alone.truncated)
        if (alone.redacted.length + alone.truncated.length === 0) expect(alone.tree).toBe(given)
      }),
      { numRuns: 2_000 },
    )
  })

  test('a thousand other names do not make it forget which ones are sensitive', () => {
    for (let n = 0; n < 2_500; n += 1) {
      expect(redactSecrets({ [`n${n}`]: 'x' }).redacted).toEqual([])
      expect(redactSecrets({ [`n${n}_token`]: 'x' }).redacted).toHaveLength(1)
      expect(redactSecrets({ [`n${n}_token`]: 'x', token: 'y', other: 'z' }).redacted).toHaveLength(2)
    }
  })

  test('what was redacted once is left as it is the second time', () => {
    const text = 'Bearer abc, postgres://u:p@h, password=x, gzs_' + 'A'.repeat(43)
    const once = redactSecrets({ text, password: 'x', long: 'y'.repeat(100) }, { maxStringLength: 90 })
    expect(once.redacted).toEqual(['/text', '/password'])
    expect(redactSecrets(once.tree, { maxStringLength: 90 })).toEqual({
      tree: once.tree,
      redacted: [],
      truncated: [],
    })
  })

  test('hostile text of a megabyte takes linear time', () => {
    const pieces = [
      'Bearer',
      'bearer ',
      'bearer\t\n',
      '://',
      '://u',
      '://u:',
      '://u:p',
      ':',
      '@',
      "password='",
      'password=',
      "'",
      'authorization',
      'authorization:',
      'authorization: ',
      'authorization : basic',
      'gzs_',
      'gzs_a',
      ' ',
      'a',
      '"',
      '//',
      ':/',
      'pwd=\'"',
      '[redacted]',
      '\\',
      '&',
      'authorization:basic ',
    ]
    for (const piece of pieces) {
      for (const start of ['', 'bearer', 'authorization', '://', '://u:', 'password=', "password='"]) {
        const text = start + piece.repeat(Math.ceil(1_000_000 / piece.length))
        const began = performance.now()
        redactText(text)
        expect(performance.now() - began, JSON.stringify(start + piece)).toBeLessThan(1_000)
      }
    }
  }, 60_000)
})

describe('overlong strings', () => {
  test('are cut to the limit with a mark, never within a character, and listed', () => {
    const { tree, truncated } = redactSecrets({
      a: 'x'.repeat(65_537),
      b: 'x'.repeat(65_536),
      c: ['é'.repeat(70_000)],
    })
    expect(truncated).toEqual(['/a', '/c/0'])
    expect((tree as { a: string }).a).toHaveLength(65_536)
    expect((tree as { a: string }).a).toMatch(/x… \[truncated\]$/)
    expect((tree as { b: string }).b).toBe('x'.repeat(65_536))
    for (const shift of ['', 'x']) {
      const cut = redactSecrets(shift + '😀'.repeat(100), { maxStringLength: 51 }).tree as string
      expect(cut).not.toMatch(/\p{Surrogate}/u)
      expect(cut.length).toBeLessThanOrEqual(51)
    }
  })

  test('a token across the cut leaves no part of itself', () => {
    const token = createToken('gzk_')
    for (let before = 0; before < 60; before += 1) {
      const { tree } = redactSecrets('x '.repeat(before) + token + ' y'.repeat(100), { maxStringLength: 80 })
      expect(tree).not.toContain(token.slice(4, 10))
    }
  })

  test('overlong names are cut too', () => {
    const { tree, truncated } = redactSecrets({ ['n'.repeat(100)]: 1 }, { maxStringLength: 50 })
    expect(Object.keys(tree as object)[0]).toHaveLength(50)
    expect(truncated).toHaveLength(1)
  })

  test('the given tree is not changed', () => {
    const given = { password: 'x', list: [{ token: 'y' }], long: 'z'.repeat(100) }
    const before = structuredClone(given)
    redactSecrets(given, { maxStringLength: 50 })
    expect(given).toEqual(before)
  })
})
