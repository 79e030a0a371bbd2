import * as bcrypt from '@node-rs/bcrypt'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import type { StoredHash } from '../../src/security/stored-hash.js'
import { verificationPlan } from '../../src/security/verification-plan.js'
import { workOfChecks } from './work-of.js'

const NONE = { scrypt: false, pbkdf2: false }
const ALL = { scrypt: true, pbkdf2: true }

function bcryptOf(cost: number): StoredHash {
  return { kind: 'bcrypt', hash: `$2b$${cost}$…`, cost }
}
const scrypt: StoredHash = { kind: 'scrypt', N: 32_768, r: 8, p: 1, salt: 's', key: '00' }
function pbkdf2Of(iterations: number): StoredHash {
  return { kind: 'pbkdf2', digest: 'sha256', iterations, salt: 's', key: '00' }
}

describe('what one verification runs', () => {
  test('a bcrypt of a lower cost is topped up to one of the current cost', () => {
    const plan = verificationPlan(bcryptOf(9), 12, NONE)
    expect(plan.map((check) => check.kind === 'bcrypt' && check.cost)).toEqual([9, 9, 10, 11])
    expect(workOfChecks(plan)).toEqual({ bcrypt: 2 ** 12, scrypt: 0, pbkdf2: 0 })
    expect(verificationPlan(bcryptOf(12), 12, NONE)).toHaveLength(1)
    expect(verificationPlan(null, 12, NONE)).toHaveLength(1)
  })

  test('whatever is stored, the work is the same, and only the stored hash decides', () => {
    const stored = fc.oneof(
      fc.constant(null),
      fc.integer({ min: 4, max: 12 }).map(bcryptOf),
      fc.constant(scrypt),
      fc.integer({ min: 1, max: 1_000_000 }).map(pbkdf2Of),
    )
    fc.assert(
      fc.property(stored, (hash) => {
        const plan = verificationPlan(hash, 12, ALL)
        expect(workOfChecks(plan)).toEqual({ bcrypt: 2 ** 12, scrypt: 32_768 * 8, pbkdf2: 1_000_000 })
        const deciding = plan.filter(({ decides }) => decides)
        expect(deciding).toEqual(hash === null ? [] : [{ ...hash, decides: true }])
      }),
    )
  })

  test('each foreign format is run only while such hashes are stored, or when this hash is one', () => {
    const kinds = (...given: Parameters<typeof verificationPlan>) =>
      verificationPlan(...given).map(({ kind }) => kind)
    expect(kinds(null, 12, { scrypt: true, pbkdf2: false })).toEqual(['bcrypt', 'scrypt'])
    expect(kinds(null, 12, { scrypt: false, pbkdf2: true })).toEqual(['bcrypt', 'pbkdf2'])
    expect(kinds(scrypt, 12, NONE)).toEqual(['scrypt', 'bcrypt'])
    expect(kinds(pbkdf2Of(1000), 12, NONE)).toEqual(['pbkdf2', 'bcrypt'])
  })

  test('the dummies are well-formed: bcrypt reads them, and would return at once otherwise', () => {
    for (const cost of [4, 12, 16]) {
      const [dummy] = verificationPlan(null, cost, NONE)
      expect(dummy?.kind === 'bcrypt' && bcrypt.parseOptions(dummy.hash).cost).toBe(cost)
    }
  })
})
