import fc from 'fast-check'
import { LosslessNumber } from 'lossless-json'
import { describe, expect, test } from 'vitest'
import { AppError } from '../../src/errors.js'
import {
  canonicalJson,
  parseJson,
  parseJsonReplacing,
  parseStoredJson,
  stringifyJson,
} from '../../src/security/json-text.js'
import { isJsonNumber, isJsonObject, nearestDouble } from '../../src/security/json-tree.js'
import type { JsonTree } from '../../src/security/json-tree.js'
import { settingsDocument, settingsText } from '../settings-document.js'

function refused(path: string) {
  return expect.objectContaining({ code: 'validation_failed', errors: [expect.objectContaining({ path })] })
}

function nested(depth: number): string {
  return '['.repeat(depth) + ']'.repeat(depth)
}

const numberToken = fc
  .tuple(
    fc.constantFrom('', '-'),
    fc.oneof(fc.constant('0'), fc.stringMatching(/^[1-9][0-9]{0,24}$/)),
    fc.oneof(fc.constant(''), fc.stringMatching(/^\.[0-9]{1,24}$/)),
    fc.oneof(fc.constant(''), fc.stringMatching(/^[eE][+-]?[0-9]{1,3}$/)),
  )
  .map((parts) => parts.join(''))

const space = fc.constantFrom('', ' ', '\n\t', '\r')

// Names that are no array index, because JavaScript moves those to the front.
const name = fc.string({ unit: 'grapheme' }).map((text) => `n${text.replaceAll('\0', '')}`)

/** JSON text as others might write it: any spelling of numbers, any white space. */
const { json: jsonText } = fc.letrec<{ json: string }>((tie) => ({
  json: fc.oneof(
    { depthSize: 'small', withCrossShrink: true },
    numberToken,
    fc.oneof(
      name.map((text) => JSON.stringify(text)),
      fc.constantFrom('true', 'false', 'null', '"1.0"', '"\\"-0"'),
    ),
    fc
      .array(fc.tuple(space, tie('json'), space).map((parts) => parts.join('')))
      .map((items) => `[${items.join(',')}]`),
    fc
      .uniqueArray(fc.tuple(name, tie('json'), space), { selector: ([key]) => key })
      .map(
        (members) =>
          `{${members.map(([key, value, gap]) => JSON.stringify(key) + gap + ':' + value).join(',')}}`,
      ),
  ),
}))

/** Number tokens outside of strings, by a way of its own. */
function numberTokens(text: string): string[] {
  return text.replace(/"(?:[^"\\]|\\.)*"/gs, ' ').match(/-?\d[\d.eE+-]*/g) ?? []
}

describe('numbers', () => {
  test('every number keeps its exact spelling, wherever it stands', () => {
    fc.assert(
      fc.property(jsonText, (text) => {
        expect(numberTokens(stringifyJson(parseJson(text)))).toEqual(numberTokens(text))
        expect(numberTokens(stringifyJson(parseStoredJson(text)))).toEqual(numberTokens(text))
      }),
      { numRuns: 2_000 },
    )
  })

  test('all else is what JSON.parse gives', () => {
    fc.assert(
      fc.property(jsonText, (text) => {
        expect(JSON.stringify(JSON.parse(stringifyJson(parseJson(text))))).toBe(
          JSON.stringify(JSON.parse(text)),
        )
      }),
    )
  })

  test('a number is plain unless JavaScript would spell it otherwise', () => {
    for (const token of ['0', '1', '-7', '1.5', '0.7', '1e+21', '9007199254740992', '1698765432.123456']) {
      expect(parseJson(`[1.0,${token}]`)).toEqual([new LosslessNumber('1.0'), Number(token)])
    }
    const kept = ['1.0', '1e5', '-0', '0.0000001', '12345678901234567890', '1E3', '1e21', '5e-400', '0.10']
    for (const token of kept) {
      const tree = parseJson(token)
      expect(tree).toEqual(new LosslessNumber(token))
      expect(isJsonNumber(tree) && nearestDouble(tree)).toBe(Number(token))
      expect(stringifyJson(tree)).toBe(token)
      expect(canonicalJson(tree)).toBe(token)
    }
  })

  test('no JSON text can pretend to be a number', () => {
    for (const text of ['{"isLosslessNumber":true,"value":"1"}', '"1.0"', '{"value":"1.0","x":1.0}']) {
      const tree = parseJson(text)
      expect(isJsonNumber(tree)).toBe(false)
      expect(stringifyJson(tree)).toBe(text)
    }
  })

  test('what PostgreSQL cannot hold is refused with its place; its limits, tried on 15, are taken', () => {
    const zeros = (count: number) => '0'.repeat(count)
    const tooLarge = [
      '1e400000',
      '-1e131072',
      '0.00001e131077',
      `1${zeros(131_072)}`,
      '1e99999999999999999999',
    ]
    const tooFine = ['1e-16384', '0e-16384', `0.${zeros(16_383)}1`, `1.${zeros(16_384)}`, '0e1073741824']
    for (const token of [...tooLarge, ...tooFine]) {
      expect(() => parseJson(`{"a":[0,${token}]}`), token.slice(0, 30)).toThrow(refused('/a/1'))
    }
    const fine = ['1e131071', '0.00001e131076', '0e400000', '1e-16383', '0e-16383', `0.${zeros(16_382)}1`]
    for (const token of [...fine, `1.${zeros(16_384)}e1`, `1${zeros(131_071)}`, '1e308', '5e-324']) {
      expect(stringifyJson(parseJson(token)), token.slice(0, 30)).toBe(token)
    }
  })
})

/** All that makes a quick way give up: escapes of every kind, names that objects list first, refused names. */
const awkward = fc.constantFrom(
  ...['a', 'b', '10', '9', '__proto__', 'constructor', 'toJSON', 'é', '\u2028', '"', '\\', '\n', '\u007f'],
  ...['\\u0000', '\ud83d\ude00', '\ufb33'],
)
const awkwardText = fc.oneof(awkward, fc.string({ unit: awkward, maxLength: 4 }))
const awkwardNumber = fc.oneof(
  fc.constantFrom('0', '-0', '1e21', '999999999999999', '9007199254740993', '0.1', '-1', '100', '1e-7'),
  numberToken,
)
const spell = (text: string) =>
  fc.constantFrom(
    JSON.stringify(text),
    `"${Array.from(text, (_, at) => `\\u${text.charCodeAt(at).toString(16).padStart(4, '0')}`).join('')}"`,
  )
const { json: awkwardJson } = fc.letrec<{ json: string }>((tie) => ({
  json: fc.oneof(
    { depthSize: 'small', withCrossShrink: true },
    awkwardNumber,
    awkwardText.chain(spell),
    fc.constantFrom('null', 'true', '"\\u0000"', '"\\ud800"', '"\\/"'),
    fc.array(tie('json')).map((items) => `[${items.join(',')}]`),
    fc
      .array(fc.tuple(awkwardText.chain(spell), tie('json')))
      .map((members) => `{${members.map((member) => member.join(':')).join(',')}}`),
  ),
}))

/** The tree, or what it was refused for. */
function outcome(text: string, read: (text: string) => JsonTree): unknown {
  try {
    return read(text)
  } catch (error) {
    return (error as AppError).errors ?? error
  }
}

/** Canonical JSON by its definition, one value at a time. */
function slowCanonical(tree: JsonTree): string {
  if (Array.isArray(tree)) return `[${tree.map(slowCanonical).join(',')}]`
  if (!isJsonObject(tree)) return isJsonNumber(tree) ? String(tree) : JSON.stringify(tree)
  const members = Object.keys(tree).toSorted()
  return `{${members.map((key) => `${JSON.stringify(key)}:${slowCanonical(tree[key] as JsonTree)}`).join(',')}}`
}

describe('the quick ways', () => {
  // In a list with `1.0` the same text goes the slow way: numbers must keep their spelling.
  const slowly =
    (read: (text: string) => JsonTree) =>
    (text: string): JsonTree => {
      const [tree] = read(`[${text},1.0]`) as JsonTree[]
      return tree as JsonTree
    }

  test('read and refuse the same, at the same place, as those that keep numbers', () => {
    fc.assert(
      fc.property(awkwardJson, (text) => {
        const inList = outcome(`[${text}]`, (list) => (parseJson(list) as JsonTree[])[0] as JsonTree)
        expect(inList).toEqual(outcome(text, slowly(parseJson)))
        const replaced = outcome(`[${text}]`, (list) => parseJsonReplacing(list) as unknown as JsonTree)
        const slow = outcome(`[${text},1.0]`, (list) => parseJsonReplacing(list) as unknown as JsonTree)
        if ('tree' in (slow as object)) (slow as { tree: JsonTree[] }).tree.pop()
        expect(replaced).toEqual(slow)
      }),
      { numRuns: 2_000 },
    )
  })

  test('write the same as value by value, in and out of order', () => {
    fc.assert(
      fc.property(awkwardJson, (text) => {
        fc.pre(!/__proto__|constructor/.test(JSON.stringify(JSON.parse(text))))
        const { tree } = parseJsonReplacing(text)
        expect(canonicalJson(tree)).toBe(slowCanonical(tree))
        expect(canonicalJson(reversed(tree))).toBe(slowCanonical(tree))
        expect(stringifyJson([tree, new LosslessNumber('1.0')])).toBe(`[${stringifyJson(tree)},1.0]`)
      }),
      { numRuns: 1_000 },
    )
  })

  test('change nothing in the tree they write', () => {
    const tree = { a: [{ c: 1, b: 2 }, 3], d: { f: { h: 1, g: [] }, e: 4 } }
    const before = stringifyJson(tree)
    canonicalJson(tree)
    expect(stringifyJson(tree)).toBe(before)
  })

  test('an own member __proto__ is written, in order and out of it', () => {
    for (const text of ['{"__proto__":{"b":1,"a":2}}', '{"b":1,"__proto__":{"x":1},"a":2}']) {
      expect(canonicalJson(JSON.parse(text) as JsonTree)).toBe(slowCanonical(JSON.parse(text) as JsonTree))
    }
  })
})

describe('what a body may be', () => {
  test('malformed or empty JSON is 400, without a piece of the body in the message', () => {
    const canary = 'hunter2'
    const faulty = [
      '',
      ' ',
      '{',
      `{"a":${canary}}`,
      '[1,]',
      '01',
      '.5',
      '1.',
      '+1',
      'NaN',
      "{'a':1}",
      '\ufeff1',
      '1 2',
    ]
    for (const text of [...faulty, '{"a":1.0,}', '"\n"', '{"a" 1.0}', '[1.0']) {
      let failure: unknown
      try {
        parseJson(text)
      } catch (error) {
        failure = error
      }
      expect(failure, text).toBeInstanceOf(AppError)
      expect(failure).toMatchObject({ code: 'invalid_request' })
      expect((failure as Error).message).not.toContain(canary)
    }
  })

  test('depth 64 passes and 65 is refused, however much deeper, with the place', () => {
    expect(stringifyJson(parseJson(nested(64)))).toBe(nested(64))
    expect(() => parseJson(nested(65))).toThrow(refused('/0'.repeat(64)))
    expect(() => parseJson(nested(1_000_000))).toThrow(refused('/0'.repeat(64)))
    expect(() => parseJson('{"a":'.repeat(65) + '1.0' + '}'.repeat(65))).toThrow(refused('/a'.repeat(64)))
    expect(() => parseJson(`"${'['.repeat(100)}"`)).not.toThrow()
    expect(() => parseJson(String.raw`["\"${'['.repeat(100)}\\", 1.0]`)).not.toThrow()
  })

  test('depth hidden in a member that a duplicate name drops is refused too, and does not overflow', () => {
    expect(() => parseJson(`{"a":${nested(1_000_000)},"a":1.0}`)).toThrow(refused(''))
  })

  test('of duplicate names the last counts, with and without spelt numbers', () => {
    for (const number of ['1', '1.0']) {
      const text = `{"a":[${number}],"b":0,"a":{"0":${number}},"c":{"x":1,"x":[]}}`
      expect(stringifyJson(parseJson(text))).toBe(`{"a":{"0":${number}},"b":0,"c":{"x":[]}}`)
    }
  })

  test('__proto__ and constructor are refused as names at any depth and pollute nothing', () => {
    for (const number of ['1', '1.0']) {
      expect(() => parseJson(`{"__proto__":{"polluted":${number}}}`)).toThrow(refused('/__proto__'))
      expect(() => parseJson(`{"\\u005f_proto__":${number}}`)).toThrow(refused('/__proto__'))
      expect(() => parseJson(`{"a":[{"constructor":${number}}]}`)).toThrow(refused('/a/0/constructor'))
    }
    expect(({} as Record<string, unknown>)['polluted']).toBeUndefined()
    const harmless = '{"prototype":1,"toString":2,"hasOwnProperty":3,"toJSON":4,"x":"__proto__"}'
    expect(stringifyJson(parseJson(harmless))).toBe(harmless)
  })

  test('NUL and lone surrogates are refused in strings and names, with the place', () => {
    for (const bad of [
      String.raw`\u0000`,
      String.raw`\ud800`,
      String.raw`\udc00x`,
      String.raw`\udc00\ud800`,
    ]) {
      expect(() => parseJson(`{"a/b":{"~":["fine","x${bad}"]}}`)).toThrow(refused('/a~1b/~0/1'))
      expect(() => parseJson(`{"a":{"x${bad}":1.0}}`)).toThrow(refused('/a'))
    }
    expect(parseJson(String.raw`"\ud83d\ude00 \uffff \u0001"`)).toBe('😀 \uffff \u0001')
  })
})

describe('replacing in audit data', () => {
  test('bad characters become U+FFFD and the places tell which event was touched', () => {
    const text = String.raw`[{"m":"a\u0000b"},{"m":"fine"},{"deep":{"x":["\ud800","😀",1.0]}}]`
    const { tree, replacedAt } = parseJsonReplacing(text)
    expect(stringifyJson(tree)).toBe('[{"m":"a\ufffdb"},{"m":"fine"},{"deep":{"x":["\ufffd","😀",1.0]}}]')
    expect(replacedAt).toEqual(['/0/m', '/2/deep/x/0'])
  })

  test('names that become equal are numbered, no member is lost, and untouched names keep theirs', () => {
    const text = String.raw`{"a\u0000":1,"a\ud800":2,"a\ufffd":3,"a\udc00":4,"a\ufffd_2":5}`
    const { tree, replacedAt } = parseJsonReplacing(text)
    expect(tree).toEqual({ 'a\ufffd': 3, 'a\ufffd_2': 5, 'a\ufffd_3': 1, 'a\ufffd_4': 2, 'a\ufffd_5': 4 })
    expect(replacedAt).toEqual(['/a\ufffd_3', '/a\ufffd_4', '/a\ufffd_5'])
  })

  test('a hundred thousand names that become equal do not take quadratic time', () => {
    const bad = Array.from({ length: 320 }, (_, i) => String.fromCharCode(0xd800 + i))
    const members = bad.flatMap((a) => bad.map((b) => `${JSON.stringify(a + '-' + b)}:1`))
    const start = performance.now()
    const { tree } = parseJsonReplacing(`{${members.join(',')}}`)
    expect(Object.keys(tree as object)).toHaveLength(102_400)
    expect(performance.now() - start).toBeLessThan(5_000)
  })

  test('the result always passes parseJson, and a well-formed text is not touched', () => {
    const bad = fc.string({ unit: fc.constantFrom('\0', '\ud800', '\udc00', 'a', '\ufffd') })
    const tree = fc.letrec<{ tree: JsonTree }>((tie) => ({
      tree: fc.oneof({ depthSize: 'small' }, bad, fc.array(tie('tree')), fc.dictionary(bad, tie('tree'))),
    })).tree
    fc.assert(
      fc.property(tree, (input) => {
        const { tree: output, replacedAt } = parseJsonReplacing(JSON.stringify(input))
        expect(() => parseJson(stringifyJson(output))).not.toThrow()
        expect(replacedAt.length > 0).toBe(/[\0\p{Surrogate}]/u.test(flatten(input)))
        if (replacedAt.length === 0) expect(output).toEqual(input)
      }),
    )
  })

  test('all other rules hold: depth, names, numbers', () => {
    expect(() => parseJsonReplacing(nested(65))).toThrow(refused('/0'.repeat(64)))
    expect(() => parseJsonReplacing('[{},{"__proto__":1}]')).toThrow(refused('/1/__proto__'))
    expect(() => parseJsonReplacing('[1e400000]')).toThrow(refused('/0'))
    expect(() => parseJsonReplacing('')).toThrow(expect.objectContaining({ code: 'invalid_request' }))
  })
})

describe('the canonical form', () => {
  test('is a fixpoint, and the same for any order of names and any white space', () => {
    fc.assert(
      fc.property(jsonText, (text) => {
        const canonical = canonicalJson(parseJson(text))
        expect(canonicalJson(parseJson(canonical))).toBe(canonical)
        expect(canonicalJson(reversed(parseJson(text)))).toBe(canonical)
      }),
      { numRuns: 1_000 },
    )
  })

  test('orders names by UTF-16 code units, as in RFC 8785 section 3.2.3, numbers among them too', () => {
    const names = ['\u20ac', '\r', '\ufb33', '1', '\ud83d\ude00', '\u0080', '\u00f6']
    const tree = Object.fromEntries(names.map((key) => [key, 0]))
    expect(canonicalJson(tree)).toBe('{"\\r":0,"1":0,"\u0080":0,"ö":0,"€":0,"😀":0,"\ufb33":0}')
    expect(canonicalJson(parseJson('{"b":0,"10":0,"9":0,"a":0,"-1":0}'))).toBe(
      '{"-1":0,"10":0,"9":0,"a":0,"b":0}',
    )
  })

  test('what JSON cannot say is an error, not a null or a hole', () => {
    for (const value of [Number.NaN, Number.POSITIVE_INFINITY, undefined, () => 1, Symbol('x'), 1n]) {
      expect(() => canonicalJson([value as JsonTree])).toThrow(TypeError)
      expect(() => stringifyJson({ a: value as JsonTree })).toThrow(TypeError)
    }
  })
})

describe('size', () => {
  const twoMebibytes = 2 * 1024 * 1024

  test('hostile bodies of 2 MiB are read or refused within seconds', () => {
    const bodies = {
      'one number': '9'.repeat(twoMebibytes),
      'one fraction': `0.${'9'.repeat(twoMebibytes)}`,
      'one exponent': `1e${'9'.repeat(twoMebibytes)}`,
      'backslashes and quotes': `"${String.raw`\\\"`.repeat(twoMebibytes / 4)}"`,
      'only backslashes': `["${'\\'.repeat(twoMebibytes)}",1.0]`,
      'many numbers': `[${'0.0,'.repeat(twoMebibytes / 4)}0]`,
      brackets: nested(twoMebibytes / 2),
      'empty arrays': `[${'[],'.repeat(twoMebibytes / 3)}1.0]`,
    }
    for (const [body, text] of Object.entries(bodies)) {
      const start = performance.now()
      try {
        stringifyJson(parseJson(text))
      } catch (error) {
        expect(error, body).toBeInstanceOf(AppError)
      }
      expect(performance.now() - start, body).toBeLessThan(5_000)
    }
  }, 30_000)

  test('the settings document of the consumer survives, `1.0` included', () => {
    expect(stringifyJson(parseJson(settingsText()))).toBe(settingsText())
    expect(settingsText()).toContain('"browser_model_temperature":1.0')
  })
})

describe('the settings document', () => {
  test('has the consumer’s shape', () => {
    const values = Object.values(settingsDocument())
    const floats = values.filter((value) => typeof value === 'number' && !Number.isInteger(value))
    expect(values).toHaveLength(102)
    expect(values.filter((value) => typeof value === 'string')).toHaveLength(42)
    expect(values.filter((value) => typeof value === 'boolean')).toHaveLength(20)
    expect(values.filter((value) => isJsonObject(value))).toHaveLength(7)
    expect(values.filter((value) => typeof value === 'number')).toHaveLength(29 + 4)
    expect(floats).toHaveLength(3) // the fourth is 1.0
    expect(settingsText().length).toBeGreaterThan(3_000)
    expect(settingsText().length).toBeLessThan(4_096)
  })
})

function flatten(tree: JsonTree): string {
  if (typeof tree === 'string') return `${tree} `
  if (Array.isArray(tree)) return tree.map(flatten).join('')
  if (!isJsonObject(tree)) return ''
  return Object.entries(tree)
    .map(([key, child]) => `${key} ${flatten(child)}`)
    .join('')
}

function reversed(tree: JsonTree): JsonTree {
  if (Array.isArray(tree)) return tree.map(reversed)
  if (!isJsonObject(tree)) return tree
  const members = Object.entries(tree).reverse()
  return Object.fromEntries(members.map(([key, child]) => [key, reversed(child)]))
}
