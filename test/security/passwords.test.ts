import * as bcrypt from '@node-rs/bcrypt'
import { describe, expect, test } from 'vitest'
import {
  assertPasswordAcceptable,
  assertPasswordReadable,
  createPasswords,
  hashingConcurrency,
} from '../../src/security/passwords.js'

const passwords = createPasswords({ cost: 4 })

function refused(path = '/password') {
  return expect.objectContaining({ code: 'validation_failed', errors: [expect.objectContaining({ path })] })
}

/** The shortest of three runs: noise only ever adds. An early return takes a hundredth of a real one. */
async function shortestMs(work: () => Promise<unknown>): Promise<number> {
  const times: number[] = []
  for (let run = 0; run < 3; run += 1) {
    const start = performance.now()
    await work()
    times.push(performance.now() - start)
  }
  return Math.min(...times)
}

describe('hashing', () => {
  test('a password verifies against its own hash and no other', async () => {
    const hash = await passwords.hash('correct horse battery')
    expect(hash).toMatch(/^\$2b\$04\$/)
    expect(await passwords.verify('correct horse battery', hash)).toBe(true)
    expect(await passwords.verify('correct horse batterz', hash)).toBe(false)
    expect(await passwords.verify('', hash)).toBe(false)
  })

  test('hashes of other programs verify: $2a$, $2b$, $2y$', async () => {
    for (const version of ['2a', '2b', '2y'] as const) {
      const hash = await bcrypt.hash('imported password', { cost: 4, version })
      expect(await passwords.verify('imported password', hash)).toBe(true)
    }
  })

  test('an unknown user is false, even with the empty password', async () => {
    expect(await passwords.verify('', null)).toBe(false)
    expect(await passwords.verify('whatever', null)).toBe(false)
  })

  const genuine = bcrypt.hashSync('a real password', { cost: 4 })
  const malformed = {
    empty: '',
    'not bcrypt': 'scrypt:32768:8:1$salt$00ff',
    truncated: genuine.slice(0, 59),
    'too long': `${genuine}A`,
    'unknown version': genuine.replace('$2b$', '$2c$'),
    'broken version 2x': genuine.replace('$2b$', '$2x$'),
    'salt with spare bits': `${genuine.slice(0, 28)}9${genuine.slice(29)}`,
    'checksum with spare bits': `${genuine.slice(0, 59)}9`,
    'a cost with a sign': genuine.replace('$04$', '$+4$'),
    'a cost of zero': genuine.replace('$04$', '$00$'),
    'a cost that would take a day': genuine.replace('$04$', '$31$'),
    'a cost beyond bcrypt': genuine.replace('$04$', '$99$'),
    'not ASCII': genuine.replace(/..$/, 'é'),
    NUL: `\0${genuine}`,
    newline: `${genuine}\n`,
  }

  test('unknown user, malformed hash and unreadable password take as long as a wrong password', async () => {
    const slow = createPasswords({ cost: 8 })
    const hash = await slow.hash('a real password')
    const expected = await shortestMs(() => slow.verify('a wrong password', hash))
    const cases: [string, string, string | null][] = [
      ['unknown user', 'a wrong password', null],
      ['73 bytes', 'x'.repeat(73), hash],
      ['lone surrogate', '\ud800', hash],
      ...Object.entries(malformed).map(([name, text]): [string, string, string] => [
        name,
        'a real password',
        text,
      ]),
    ]
    for (const [name, password, stored] of cases) {
      expect(await slow.verify(password, stored), name).toBe(false)
      expect(await shortestMs(() => slow.verify(password, stored)), name).toBeGreaterThan(expected / 4)
    }
  })

  test('what bcrypt would cut or UTF-8 would change never verifies and is never hashed', async () => {
    const cut = await bcrypt.hash('x'.repeat(72), { cost: 4 })
    expect(await bcrypt.verify('x'.repeat(73), cut)).toBe(true) // why the guard is there
    expect(await passwords.verify('x'.repeat(73), cut)).toBe(false)
    const replaced = await bcrypt.hash('\udfff', { cost: 4 })
    expect(await bcrypt.verify('\ud800', replaced)).toBe(true) // and this
    expect(await passwords.verify('\ud800', replaced)).toBe(false)
    for (const password of ['x'.repeat(73), '\ud800', 'a\0b']) {
      await expect(passwords.hash(password)).rejects.toEqual(refused())
    }
  })

  test('a flood is refused instead of queued without end, and the rest is served', async () => {
    const bounded = createPasswords({ cost: 4, maxConcurrent: 1, maxQueued: 2 })
    const results = await Promise.allSettled(Array.from({ length: 50 }, () => bounded.verify('x', null)))
    const refusals = results
      .filter((result) => result.status === 'rejected')
      .map(({ reason }) => reason as unknown)
    expect(refusals).toHaveLength(47)
    expect(refusals[0]).toMatchObject({ code: 'too_many_requests', retryAfterSeconds: 1 })
    expect(await bounded.verify('x', null)).toBe(false)
  })

  test('two threads of the pool stay free, and one hash can always run', () => {
    expect([undefined, 1, 2, 3, 4, 16].map((size) => hashingConcurrency(size))).toEqual([2, 1, 1, 1, 2, 14])
  })

  test('a cost that bcrypt does not know is refused at creation', () => {
    for (const cost of [3, 32, 10.5, Number.NaN]) expect(() => createPasswords({ cost })).toThrow(RangeError)
  })
})

describe('acceptable passwords', () => {
  test('length is counted in code points, the upper bound in UTF-8 bytes', () => {
    expect(() => assertPasswordAcceptable('twelve chars')).not.toThrow()
    expect(() => assertPasswordAcceptable('eleven char')).toThrow(refused())
    expect(() => assertPasswordAcceptable('😀'.repeat(11))).toThrow(refused())
    expect(() => assertPasswordAcceptable('😀'.repeat(18))).not.toThrow()
    expect(() => assertPasswordAcceptable('😀'.repeat(19))).toThrow(refused())
    expect(() => assertPasswordAcceptable('é'.repeat(36))).not.toThrow()
    expect(() => assertPasswordAcceptable('é'.repeat(37))).toThrow(refused())
    expect(() => assertPasswordAcceptable('short', { minLength: 5 })).not.toThrow()
  })

  test('NUL and lone surrogates are refused at new passwords and at log-in, at the given path', () => {
    for (const password of ['long enough \0 but', 'long enough \ud800 but', 'long enough but \udc00']) {
      const path = '/new_password'
      expect(() => assertPasswordAcceptable(password, { path })).toThrow(refused(path))
      expect(() => assertPasswordReadable(password, path)).toThrow(refused(path))
    }
  })

  test('log-in takes any length up to 72 bytes, so that old short passwords still work', () => {
    for (const password of ['', 'x', 'x'.repeat(72)])
      expect(() => assertPasswordReadable(password)).not.toThrow()
    expect(() => assertPasswordReadable('x'.repeat(73))).toThrow(refused())
  })

  test('a refusal never repeats the password', () => {
    try {
      assertPasswordAcceptable('hunter2')
    } catch (error) {
      expect(JSON.stringify(error) + String(error)).not.toContain('hunter2')
    }
  })
})
