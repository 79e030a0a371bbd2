import { describe, expect, it } from 'vitest'
import { readEnv } from '../src/env.js'
import { AppError } from '../src/errors.js'
import { parseEncryptionKeys } from '../src/security/secret-box.js'

function faultsOf(source: Record<string, string>): string {
  try {
    readEnv(source, { ENCRYPTION_KEY: parseEncryptionKeys })
  } catch (error) {
    expect(error).toBeInstanceOf(AppError)
    return (error as AppError).message
  }
  return ''
}

describe('the environment', () => {
  it('has a default for everything but the database', () => {
    expect(readEnv({})).toMatchObject({
      PORT: 8080,
      HOST: '::',
      DATABASE_POOL_SIZE: 20,
      DATABASE_LANES: 4,
      DATABASE_PREPARE: true,
      DATABASE_TIMEOUT: 30,
      BCRYPT_COST: 12,
      HASHING_THREADS: undefined,
      PASSWORD_MIN_LENGTH: 12,
    })
    expect(readEnv({ PORT: '', DATABASE_URL: '' }).DATABASE_URL).toBeUndefined()
  })

  it('is refused with all faults at once, by name and without a value', () => {
    const faults = faultsOf({
      PORT: '99999',
      DATABASE_POOL_SIZE: '0',
      DATABASE_LANES: '65',
      DATABASE_PREPARE: 'maybe',
      SESSION_IDLE_MINUTES: '1',
      DATABASE_TIMEOUT: '1.5',
      DATABASE_URL: 'mysql://secret-host/x',
      ENCRYPTION_KEY: 'secret-but-short',
      OPERATIONS_TOKEN: 'secret',
      HASHING_THREADS: '65',
      PASSWORD_MIN_LENGTH: '7',
      AUTH_LOGIN: 'admin',
    })
    for (const name of [
      'PORT',
      'DATABASE_POOL_SIZE',
      'DATABASE_LANES',
      'DATABASE_PREPARE',
      'SESSION_IDLE_MINUTES',
      'DATABASE_TIMEOUT',
      'DATABASE_URL',
      'ENCRYPTION_KEY',
      'OPERATIONS_TOKEN',
      'HASHING_THREADS',
      'PASSWORD_MIN_LENGTH',
      'AUTH_LOGIN',
    ]) {
      expect(faults).toContain(name)
    }
    expect(faults).not.toContain('secret')
  })

  it('with an unresolved reference is refused by the variable that holds it', () => {
    expect(faultsOf({ DATABASE_URL: 'postgres://${{Postgres.PGUSER}}@h/d' })).toContain(
      'DATABASE_URL: holds an unresolved reference',
    )
    expect(faultsOf({ POSTGRES_URL: '${{x}}' })).toContain('POSTGRES_URL: holds an unresolved reference')
  })

  it('refuses admin/admin', () => {
    expect(faultsOf({ AUTH_LOGIN: 'admin', AUTH_PASSWORD: 'admin' })).toContain('admin/admin')
  })

  it('takes the fallbacks of the platforms in their order', () => {
    const url = 'postgres://a@b/c'
    expect(readEnv({ DATABASE_URL: url, POSTGRES_URL: 'postgres://x@y/z' }).DATABASE_URL).toBe(url)
    expect(readEnv({ POSTGRES_URL: url }).DATABASE_URL).toBe(url)
    expect(readEnv({ POSTGRES_PRISMA_URL: url }).DATABASE_URL).toBe(url)
    expect(readEnv({ POSTGRES_URL_NON_POOLING: url }).DATABASE_UNPOOLED_URL).toBe(url)
    const parts = { PGHOST: 'h', PGPORT: '6543', PGUSER: 'u', PGPASSWORD: 'p@:/', PGDATABASE: 'd' }
    expect(readEnv(parts).DATABASE_URL).toBe('postgres://u:p%40%3A%2F@h:6543/d')
    expect(readEnv({ POSTGRES_HOST: '::1', POSTGRES_DB: 'd' }).DATABASE_URL).toBe(
      'postgres://postgres@[::1]:5432/d',
    )
  })
})
