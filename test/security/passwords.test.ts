import { Worker } from 'node:worker_threads'
import * as bcrypt from '@node-rs/bcrypt'
import { afterAll, describe, expect, test, vi } from 'vitest'
import type { HashTask } from '../../src/security/hash-task.js'
import { assertPasswordReadable, createPasswords, queueLength } from '../../src/security/passwords.js'
import { workOf } from './work-of.js'

const passwords = createPasswords({ cost: 4, threads: 2 })
const others = [passwords]

/** Closed after the file. */
function create(options: Parameters<typeof createPasswords>[0]) {
  const created = createPasswords(options)
  others.push(created)
  return created
}

afterAll(async () => void (await Promise.all(others.map((each) => each.close()))))

function refused(path = '/password', message: RegExp | string = '') {
  return expect.objectContaining({
    code: 'validation_failed',
    message: expect.stringMatching(message),
    errors: [expect.objectContaining({ path })],
  })
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

/** What the threads are asked while `work` runs; nothing is hashed, and each is answered with no. */
async function tasksOf(work: () => Promise<unknown>): Promise<HashTask[]> {
  const posted = vi.spyOn(Worker.prototype, 'postMessage').mockImplementation(function (this: Worker) {
    this.emit('message', false)
  })
  try {
    await work()
    return posted.mock.calls.map(([task]) => task as HashTask)
  } finally {
    posted.mockRestore()
  }
}

async function refusalsOf(calls: Promise<unknown>[]): Promise<unknown[]> {
  const results = await Promise.allSettled(calls)
  return results.filter((result) => result.status === 'rejected').map(({ reason }) => reason as unknown)
}

// Made by Python's hashlib.scrypt and hashlib.pbkdf2_hmac, and checked by Werkzeug 3.1.9.
const KAESE = 'grüner Käse am Sonntag'
const FOREIGN = {
  'scrypt as Werkzeug writes it':
    'scrypt:32768:8:1$q8Zr2LdYp0VnT5xK$51ad4cac720e1c00e6b36a1a478848cb45ef1ca088b8d2e5dd3fec362e02d304ece85db830bba363ed49614bdf0bccbf0020bc3ea78772cfb53ffb9b0f56984e',
  'scrypt with other parameters, and a salt that is not ASCII':
    'scrypt:1024:8:2$salzig-ü$c1a00dda620c23fc672fb39150df01f5055c471516a90b406f5126701d98b74d363eecf105a7486f21f1c7d5f80b03a98f06512c5e6f9cffae5745996495d78e',
  'pbkdf2 of Werkzeug 2.1':
    'pbkdf2:sha256:260000$Hk3vWm9sQe1TzB7c$6db683b46bc67343b63c7f91647eaf3e981c046b00644637f51ca4695f493e2f',
  'pbkdf2 without iterations':
    'pbkdf2:sha256$Hk3vWm9sQe1TzB7c$e59d6da641ec2d80a5ccc69f9b5d63dd6a8dc9856048aaf1b792bcd1b0e55854',
  'pbkdf2 with SHA-1': 'pbkdf2:sha1:1000$uJ4nRf6y$68b8a5a9040189daf8e89edce75457857fa30fe5',
  'pbkdf2 with SHA-512':
    'pbkdf2:sha512:5000$Xa2Lp8Dg0sNw5Vtb$a11454e3f68183dfe9a34ac3b411b9ccd81287bf3f494af9d14e85badea77d5e8d5e423efcb97d4dca15cd3e17c921df1d7e60c82855bbe8025a1b5d72358f5d',
}
const SCRYPT_OF_73_X =
  'scrypt:1024:8:1$q8Zr2LdYp0VnT5xK$b299aa8a4a441ddc88395bc1f23fd6f71ec4c97dae9dca6b425df7bba45895d0cd52142030b6b3d685767d8dc19e269d45b40ea0cd693f8eea4db55d70a9d123'

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

  test.each(Object.entries(FOREIGN))('hashes of Werkzeug verify: %s', async (_, hash) => {
    expect(await passwords.verify(KAESE, hash)).toBe(true)
    expect(await passwords.verify('grüner Käse am Montag', hash)).toBe(false)
  })

  test('the whole key and the whole salt of a Werkzeug hash count', async () => {
    for (const hash of [
      FOREIGN['scrypt with other parameters, and a salt that is not ASCII'],
      FOREIGN['pbkdf2 with SHA-1'],
    ]) {
      const [method = '', salt = '', key = ''] = hash.split('$')
      const altered = [
        [method, salt, key.replace(/^./, (digit) => (digit === '0' ? '1' : '0'))],
        [method, salt, key.replace(/.$/, (digit) => (digit === '0' ? '1' : '0'))],
        [method, `${salt}x`, key],
        [method, salt.slice(1), key],
      ].map((parts) => parts.join('$'))
      for (const other of altered) expect(await passwords.verify(KAESE, other), other).toBe(false)
    }
  })

  test('a hash for Werkzeug has its form and a salt of its own, and verifies', async () => {
    const [hash, other] = await Promise.all([
      passwords.hash(KAESE, 'werkzeug'),
      passwords.hash(KAESE, 'werkzeug'),
    ])
    expect(hash).toMatch(/^scrypt:32768:8:1\$[a-zA-Z0-9]{16}\$[0-9a-f]{128}$/)
    expect(hash.split('$')[1]).not.toBe(other?.split('$')[1])
    expect(await passwords.verify(KAESE, hash)).toBe(true)
  })

  test('an unknown user is false, even with the empty password', async () => {
    expect(await passwords.verify('', null)).toBe(false)
    expect(await passwords.verify('whatever', null)).toBe(false)
  })

  const genuine = bcrypt.hashSync('a real password', { cost: 4 })
  const scrypt = FOREIGN['scrypt as Werkzeug writes it']
  const pbkdf2 = FOREIGN['pbkdf2 of Werkzeug 2.1']
  const malformed = {
    empty: '',
    'no known format': 'md5$salt$00ff',
    truncated: genuine.slice(0, 59),
    'too long': `${genuine}A`,
    'unknown version': genuine.replace('$2b$', '$2c$'),
    'broken version 2x': genuine.replace('$2b$', '$2x$'),
    'salt with spare bits': `${genuine.slice(0, 28)}9${genuine.slice(29)}`,
    'checksum with spare bits': `${genuine.slice(0, 59)}9`,
    'a cost with a sign': genuine.replace('$04$', '$+4$'),
    'a cost of zero': genuine.replace('$04$', '$00$'),
    'a cost below bcrypt': genuine.replace('$04$', '$03$'),
    'a cost that would take long': genuine.replace('$04$', '$17$'),
    'a cost that would take a day': genuine.replace('$04$', '$31$'),
    'a cost beyond bcrypt': genuine.replace('$04$', '$99$'),
    'not ASCII': genuine.replace(/..$/, 'é'),
    NUL: `\0${genuine}`,
    newline: `${genuine}\n`,
    'scrypt with a short key': scrypt.slice(0, -2),
    'scrypt with a long key': `${scrypt}00`,
    'scrypt without a salt': scrypt.replace(/\$.*\$/, '$$$$'),
    'scrypt in capitals': scrypt.toUpperCase(),
    'scrypt with N of no power of two': scrypt.replace(':32768:', ':32767:'),
    'scrypt with N of 1': scrypt.replace(':32768:', ':1:'),
    'scrypt with N too large for r': scrypt.replace(':32768:8:', ':65536:1:'),
    'scrypt that takes gigabytes': scrypt.replace(':32768:', ':4194304:'),
    'scrypt with large blocks': scrypt.replace(':32768:8:', ':2:33:'),
    'scrypt with blocks of gigabytes': scrypt.replace(':32768:8:', ':2:524288:'),
    'scrypt that takes seconds': scrypt.replace(':8:1$', ':8:5$'),
    'scrypt with tiny blocks, very many': scrypt.replace(':32768:8:1$', ':2:1:33$'),
    'scrypt with a missing parameter': scrypt.replace(':8:1$', ':8$'),
    'scrypt with a sign': scrypt.replace(':8:1$', ':-8:1$'),
    'pbkdf2 of an unknown digest': pbkdf2.replace('sha256', 'sha224'),
    'pbkdf2 with a key of another digest': pbkdf2.replace('sha256', 'sha1'),
    'pbkdf2 with no iteration': pbkdf2.replace('260000', '0'),
    'pbkdf2 that takes minutes': pbkdf2.replace('260000', '10000001'),
    'pbkdf2 with a fraction': pbkdf2.replace('260000', '1.5'),
    'a newline after the key': `${pbkdf2}\n`,
  }

  test('a malformed hash, or one that would take too long, decides nothing and takes the work of a dummy', async () => {
    const expected = await tasksOf(() => passwords.verify('a real password', null))
    for (const [name, text] of Object.entries(malformed))
      expect(await tasksOf(() => passwords.verify('a real password', text)), name).toEqual(expected)
  })

  test('what is read as bcrypt is what bcrypt itself reads, so that no check returns at once', () => {
    const alphabet = './ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789'
    for (const position of [7, 27, 28, 29, 58, 59]) {
      for (const character of alphabet) {
        const text = genuine.slice(0, position) + character + genuine.slice(position + 1)
        const readable = (() => {
          try {
            return bcrypt.parseOptions(text).cost === 4
          } catch {
            return false
          }
        })()
        expect(passwords.isCurrent(text), text).toBe(readable)
      }
    }
  })

  test('unknown user, malformed hash and unreadable password take as long as a wrong password', async () => {
    const slow = create({ cost: 8, threads: 1 })
    const hash = await slow.hash('a real password')
    const expected = await shortestMs(() => slow.verify('a wrong password', hash))
    const cases: [string, string, string | null][] = [
      ['unknown user', 'a wrong password', null],
      ['malformed', 'a wrong password', malformed.truncated],
      ['73 bytes', 'x'.repeat(73), hash],
      ['lone surrogate', '\ud800', hash],
    ]
    for (const [name, password, stored] of cases) {
      expect(await slow.verify(password, stored), name).toBe(false)
      expect(await shortestMs(() => slow.verify(password, stored)), name).toBeGreaterThan(expected / 4)
    }
  })

  test('a right password against an old cheap hash takes as long as a wrong one: nothing is skipped', async () => {
    const slow = create({ cost: 8, threads: 1 })
    expect(await slow.verify('a real password', genuine)).toBe(true)
    const expected = await shortestMs(() => slow.verify('a wrong password', null))
    expect(await shortestMs(() => slow.verify('a real password', genuine))).toBeGreaterThan(expected / 4)
  })

  test('each verification is one message, of the same work for unknown, wrong and right', async () => {
    const foreign = { scrypt: true, pbkdf2: true }
    const expected = workOf(await tasksOf(() => passwords.verify('x', null, foreign)))
    expect(expected).toEqual([{ kind: 'verify', bcrypt: 16, scrypt: 32_768 * 8, pbkdf2: 1_000_000 }])
    for (const stored of [genuine, scrypt, pbkdf2]) {
      for (const password of ['wrong', stored === genuine ? 'a real password' : KAESE]) {
        expect(workOf(await tasksOf(() => passwords.verify(password, stored, foreign)))).toEqual(expected)
      }
    }
  })

  test('what bcrypt would cut or UTF-8 would change never verifies and is never hashed', async () => {
    const cut = await bcrypt.hash('x'.repeat(72), { cost: 4 })
    expect(await bcrypt.verify('x'.repeat(73), cut)).toBe(true) // why the guard is there
    expect(await passwords.verify('x'.repeat(73), cut)).toBe(false)
    const replaced = await bcrypt.hash('\udfff', { cost: 4 })
    expect(await bcrypt.verify('\ud800', replaced)).toBe(true) // and this
    expect(await passwords.verify('\ud800', replaced)).toBe(false)
    // Werkzeug cuts nothing, but the hash that would take its place does.
    expect(await passwords.verify('x'.repeat(73), SCRYPT_OF_73_X)).toBe(false)
    for (const password of ['x'.repeat(73), '\ud800', 'a\0b']) {
      for (const format of ['bcrypt', 'werkzeug'] as const)
        await expect(passwords.hash(password, format)).rejects.toEqual(refused())
    }
  })

  test('a hash is current when a new one would look the same: version, format and cost', async () => {
    expect(passwords.isCurrent(await passwords.hash('x'))).toBe(true)
    const old = [genuine.replace('$2b$', '$2a$'), genuine.replace('$2b$', '$2y$'), scrypt, pbkdf2, '', '!']
    for (const hash of old) expect(passwords.isCurrent(hash), hash).toBe(false)
    for (const cost of [5, 12]) expect(create({ cost }).isCurrent(genuine)).toBe(false)
  })

  test('a cost that bcrypt does not know is refused at creation', () => {
    for (const cost of [3, 32, 10.5, Number.NaN]) expect(() => createPasswords({ cost })).toThrow(RangeError)
  })
})

describe('room', () => {
  test('about a second of hashing may wait, no fewer than threads and no more than 1000', () => {
    expect([4, 10, 12, 14, 16].map((cost) => queueLength(cost, 2))).toEqual([1000, 36, 9, 3, 2])
    expect(queueLength(12, 8)).toBe(36)
    expect(queueLength(16, 64)).toBe(64)
  })

  test('what has no room is refused at once and never called, and room comes back', async () => {
    const bounded = create({ cost: 16, threads: 1 })
    const ends: (() => void)[] = []
    const held = [1, 2].map(() => bounded.whenRoom(() => new Promise<void>((resolve) => ends.push(resolve))))
    await vi.waitFor(() => expect(ends).toHaveLength(2))
    const task = vi.fn(async () => 'done')
    await expect(bounded.whenRoom(task)).rejects.toMatchObject({
      code: 'too_many_requests',
      retryAfterSeconds: 1,
    })
    expect(task).not.toHaveBeenCalled()
    for (const end of ends) end()
    await Promise.all(held)
    expect(await bounded.whenRoom(task)).toBe('done')
  })

  test('at most 64 new passwords wait to be hashed', async () => {
    const bounded = create({ cost: 4, threads: 1 })
    const refusals = await refusalsOf(Array.from({ length: 100 }, () => bounded.hash('x')))
    expect(refusals).toHaveLength(100 - 64 - 1)
    expect(refusals[0]).toMatchObject({ code: 'too_many_requests', retryAfterSeconds: 1 })
    expect(await bounded.hash('x')).toMatch(/^\$2b\$/)
  })

  test('whoever forgets to ask for room is stopped at 1000', async () => {
    const bounded = create({ cost: 4, threads: 1 })
    let refusals: unknown[] = []
    const asked = await tasksOf(async () => {
      refusals = await refusalsOf(Array.from({ length: 1100 }, () => bounded.verify('x', null)))
    })
    expect(asked).toHaveLength(1000 + 1)
    expect(refusals).toHaveLength(100 - 1)
    expect(refusals[0]).toMatchObject({ code: 'too_many_requests', retryAfterSeconds: 1 })
    expect(await bounded.verify('x', null)).toBe(false)
  })

  test('new passwords of those who are signed in do not wait behind a flood of sign-ins', async () => {
    const shared = create({ cost: 4, threads: 1 })
    const order: string[] = []
    const flood = Array.from({ length: 200 }, () => shared.verify('x', null).then(() => order.push('flood')))
    await shared.hash('x').then(() => order.push('hash'))
    await Promise.all(flood)
    expect(order.indexOf('hash')).toBeLessThan(10)
  })
})

describe('acceptable passwords', () => {
  const MIXED = 'ä😀ö🦄ü🐢ß🍋é🚲ñ🪁ø🧦'

  test('length is counted in code points, the upper bound in UTF-8 bytes', async () => {
    await passwords.assertAcceptable('twelve chars')
    await expect(passwords.assertAcceptable('eleven char')).rejects.toEqual(
      refused('/password', /at least 12/),
    )
    await passwords.assertAcceptable(Array.from(MIXED).slice(0, 12).join(''))
    await expect(passwords.assertAcceptable(Array.from(MIXED).slice(0, 11).join(''))).rejects.toEqual(
      refused('/password', /at least 12/),
    )
    await passwords.assertAcceptable(`${MIXED}and thirty letters beside them`)
    await expect(passwords.assertAcceptable(`${MIXED}and thirty letters beside them!`)).rejects.toEqual(
      refused('/password', /at most 72 bytes/),
    )
    const shorter = create({ cost: 4, minLength: 8, threads: 1 })
    await shorter.assertAcceptable('8 Wörter')
    await expect(shorter.assertAcceptable('7 Worte')).rejects.toEqual(refused('/password', /at least 8/))
  })

  test.each([
    ['password1234', /common/],
    ['iloveyou1234', /common/],
    ['aaaaaaaaaaaa', /repeats/],
    ['zaq1zaq1zaq1', /repeats/],
    ['abcdefghijkl', /sequence/],
    ['qwertyuiop12', /common|keyboard/],
    ['garyzero2024', /name of the service/],
    ['Gary-Zero123', /name of the service/],
    ['alice.blixwang1999', /user name/],
    ['blixwang2024', /user name/],
  ])('what is guessed first is refused with the reason: %s', async (password, reason) => {
    await expect(passwords.assertAcceptable(password, { username: 'alice.blixwang' })).rejects.toEqual(
      refused('/password', reason),
    )
  })

  test.each(['correct horse battery', 'a long password', 'a long smoke password', 'password-canary-1'])(
    'no rule of composition refuses %s',
    async (password) => await passwords.assertAcceptable(password, { username: 'alice.smith' }),
  )

  test('the user name with fewer than 4 characters around it is refused, in any case and form', async () => {
    const username = 'vXq7-Kd0p-Lw3z'
    for (const password of [username, 'VXQ7-kd0p-LW3Z', `!${username}#9`, `ｖ${username.slice(1)}`]) {
      await expect(passwords.assertAcceptable(password, { username })).rejects.toEqual(
        refused('/password', /beside the user name/),
      )
    }
    await passwords.assertAcceptable(`!${username}#9-jR`, { username: 'another' })
    await passwords.assertAcceptable('vXq7-Kd0p-Lw3z')
    await expect(passwords.assertAcceptable(`!${username}#9`, { username: '' })).resolves.toBeUndefined()
  })

  test('NUL and lone surrogates are refused at new passwords and at sign-in, at the given path', async () => {
    for (const password of ['long enough \0 but', 'long enough \ud800 but', 'long enough but \udc00']) {
      const path = '/new_password'
      await expect(passwords.assertAcceptable(password, { path })).rejects.toEqual(refused(path))
      expect(() => assertPasswordReadable(password, path)).toThrow(refused(path))
    }
  })

  test('sign-in takes any length up to 72 bytes, so that old short passwords still work', () => {
    for (const password of ['', 'x', 'x'.repeat(72)])
      expect(() => assertPasswordReadable(password)).not.toThrow()
    expect(() => assertPasswordReadable('x'.repeat(73))).toThrow(refused())
  })

  test('a refusal never repeats the password or the user name', async () => {
    for (const password of ['hunter2', 'hunter2hunter2', 'hunter2-alice!', 'hunter2\0']) {
      const error: unknown = await passwords
        .assertAcceptable(password, { username: 'hunter2-alice' })
        .catch((thrown: unknown) => thrown)
      expect(error).toEqual(refused())
      expect(JSON.stringify(error) + String(error)).not.toContain('hunter2')
    }
  })
})
