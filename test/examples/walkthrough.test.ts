import { randomBytes } from 'node:crypto'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { createPostgresDatabase } from '../engine.js'
import { type Service, run, startService } from './running.js'

// Quotes, a backslash and a letter beyond ASCII: what a client has to encode by itself.
const login = { GARY_LOGIN: 'walker', GARY_PASSWORD: 'made-up "long" \\ pässword' }
const firstOwner = { AUTH_LOGIN: login.GARY_LOGIN, AUTH_PASSWORD: login.GARY_PASSWORD }

beforeAll(async () => {
  expect(await run('npm', ['run', '--silent', 'build'])).toMatchObject({ code: 0 })
})

const python = (service: Service, env: Record<string, string> = {}) =>
  run('python3', ['examples/walkthrough.py'], { GARY_URL: service.base, ...login, ...env })
const shell = (service: Service, env: Record<string, string> = {}) =>
  run('sh', ['examples/walkthrough.sh'], { GARY_URL: service.base, ...login, ...env })

function pythonSays(events: number): unknown {
  return {
    code: 0,
    stderr: '',
    stdout: expect.stringMatching(
      new RegExp(
        [
          'logged in: walker, owner, user \\d+',
          'stored settings: 102 keys, version \\d+',
          'read settings: equal, 10 secrets masked; revealed: equal',
          'changed settings: 40 changes by 4 writers, none lost, \\d+ tried again',
          `sent events: ${events} in batches of 500`,
          'sent one batch again: accepted 0, duplicates 500',
          `read events: ${events} distinct on ${events / 500} pages, every field as it was sent`,
          'read errors of one user: \\d+',
          'report logins-per-day: \\d+ rows\n  day,succeeded,failed,users(\n  [0-9-]{10},\\d+,\\d+,1)+',
          'logged out: the token opens nothing any more',
          'all as expected\n$',
        ].join('\n'),
      ),
    ),
  }
}

const SHELL_SAYS = {
  code: 0,
  stderr: '',
  stdout: expect.stringMatching(
    new RegExp(
      [
        'logged in: walker',
        'stored settings: version \\d+',
        'read settings: secrets masked, ETag "\\d+"',
        'changed settings: a stale change was refused.*',
        'sent events: 3, one of them twice',
        'read events: 3 on 2 pages',
        'report logins-per-day:\n  day,succeeded,failed,users(\n  [0-9-]{10},\\d+,\\d+,1)+',
        'logged out',
        'all as expected\n$',
      ].join('\n'),
    ),
  ),
}

describe('against serve on PostgreSQL', () => {
  let database: Awaited<ReturnType<typeof createPostgresDatabase>>
  let service: Service

  beforeAll(async () => {
    database = await createPostgresDatabase()
    service = await startService(['serve'], {
      DATABASE_URL: database.url,
      ENCRYPTION_KEY: `ex:${randomBytes(32).toString('base64')}`,
      ...firstOwner,
    })
  })
  afterAll(async () => {
    const code = await service?.stop()
    await database?.drop()
    expect(code).toBe(0)
  })

  it('walks through in Python, twice', async () => {
    expect(await python(service)).toEqual(pythonSays(5000))
    expect(await python(service)).toEqual(pythonSays(5000))
  })

  it('walks through in curl, twice', async () => {
    expect(await shell(service)).toEqual(SHELL_SAYS)
    expect(await shell(service)).toEqual(SHELL_SAYS)
  })

  it('stops at a wrong password and says so, in both', async () => {
    for (const walk of [python, shell]) {
      const outcome = await walk(service, { GARY_PASSWORD: 'not-the-password' })
      expect(outcome).toMatchObject({
        code: 1,
        stderr: expect.stringMatching(/^FAILED: .*invalid_credentials/),
      })
      expect(outcome.stderr).not.toContain('not-the-password')
    }
  })
})

describe('against dev --memory', () => {
  it('walks through in both, with fewer events, and ends with 0', async () => {
    const service = await startService(['dev', '--memory'], firstOwner)
    try {
      expect(await python(service, { GARY_EVENTS: '500' })).toEqual(pythonSays(500))
      expect(await shell(service)).toEqual(SHELL_SAYS)
    } finally {
      expect(await service.stop()).toBe(0)
    }
  })
})
