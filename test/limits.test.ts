import { describe, expect, it } from 'vitest'
import { readEnv } from '../src/env.js'
import { limitsOf } from '../src/limits.js'

const limits = (env: Record<string, string>) => limitsOf(readEnv(env))

describe('the time limits', () => {
  it('are 5, 10, 12 and 15 s within the 30 s of DATABASE_TIMEOUT', () => {
    expect(limits({})).toMatchObject({
      budgets: {
        acquireMs: 5000,
        statementMs: 10_000,
        queryMs: 12_000,
        lockMs: 3000,
        idleInTransactionMs: 15_000,
      },
      requestMs: 15_000,
      slowMs: 5000,
      breaker: {
        failureRate: 0.5,
        slowRate: 0.8,
        minCalls: 10,
        windowMs: 10_000,
        probes: 3,
        waitCapMs: 30_000,
      },
    })
  })

  it('follow DATABASE_TIMEOUT in proportion, and one that is set stays as it is', () => {
    expect(limits({ DATABASE_TIMEOUT: '6', DATABASE_QUERY_MS: '2900' })).toMatchObject({
      budgets: { acquireMs: 1000, statementMs: 2000, queryMs: 2900, lockMs: 600, idleInTransactionMs: 3000 },
      requestMs: 3000,
    })
  })

  it.each([
    ['DATABASE_ACQUIRE_MS', '10000', 'DATABASE_STATEMENT_MS'],
    ['DATABASE_STATEMENT_MS', '12000', 'DATABASE_QUERY_MS'],
    ['DATABASE_QUERY_MS', '15000', 'REQUEST_DEADLINE_MS'],
    ['REQUEST_DEADLINE_MS', '30000', 'DATABASE_TIMEOUT'],
    ['DATABASE_LOCK_MS', '10000', 'DATABASE_STATEMENT_MS'],
  ])('in a wrong order are refused by name: %s of %s ms', (name, ms, around) => {
    expect(() => limits({ [name]: ms })).toThrow(new RegExp(`${name} .* must be below ${around} `))
  })

  it('in a wrong order are all told at once', () => {
    const wrong = { DATABASE_ACQUIRE_MS: '11000', REQUEST_DEADLINE_MS: '11000' }
    expect(() => limits(wrong)).toThrow(/DATABASE_ACQUIRE_MS[^]*DATABASE_QUERY_MS/)
  })
})
