import { randomBytes } from 'node:crypto'
import pg from 'pg'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { onServer } from '../engine.js'
import { OLDER_SESSIONS, OLDER_START_UP, OLDER_USERS, makeOlderDatabase } from '../postgres/older-database.js'
import { run, startService } from './running.js'

// Debian's psycopg2 is for this interpreter.
const PYTHON = '/usr/bin/python3'
const KEY = `k1:${Buffer.alloc(32, 5).toString('base64')}`
const [ALICE, BOB, , CAROL] = OLDER_USERS

describe.each(['the superuser', 'the login that owned the tables'])(
  'the older application itself, connected as %s',
  (who) => {
    const database = `adopt_${randomBytes(6).toString('hex')}`
    const login = `older_${randomBytes(6).toString('hex')}`
    const superuserUrl = new URL(process.env['TEST_POSTGRES_URL'] ?? '')
    superuserUrl.pathname = `/${database}`
    const url = new URL(superuserUrl)
    if (who !== 'the superuser') {
      url.username = login
      url.password = login
    }

    beforeAll(async () => {
      await onServer(`create role ${login} login password '${login}'`)
      await onServer(`create database ${database} owner ${login}`)
      await onServer(`alter database ${database} set timezone to 'UTC'`)
      const client = new pg.Client({ connectionString: url.href })
      await client.connect()
      await makeOlderDatabase(client)
      await client.end()
    })
    afterAll(async () => {
      await onServer(`drop database if exists ${database} with (force)`)
      await onServer(`drop role ${login}`)
    })

    const main = (args: string[], env: Record<string, string> = {}) =>
      run(process.execPath, ['dist/main.js', ...args], {
        DATABASE_URL: superuserUrl.href,
        ENCRYPTION_KEY: KEY,
        ...env,
      })

    /** The answers to the steps, in one process of the older application. */
    async function play(steps: unknown[][]): Promise<unknown[]> {
      const { code, stdout, stderr } = await run(
        PYTHON,
        ['-W', 'ignore::DeprecationWarning', 'test/examples/older_application.py'],
        { DATABASE_URL: url.href },
        JSON.stringify(steps),
      )
      expect([code, stderr]).toEqual([0, ''])
      return JSON.parse(stdout) as unknown[]
    }

    it('signs in before anything is taken over, with each hash that it can read', async () => {
      expect(
        await play([
          ['start_up', OLDER_START_UP],
          ['sign_in', ALICE.username, ALICE.password],
          ['sign_in', CAROL.username, CAROL.password],
          ['validate_session', OLDER_SESSIONS.live],
        ]),
      ).toEqual([null, 'signed in', 'inactive', 'alice'])
    })

    it('is taken over by `migrate`, which says what it did', async () => {
      const { code, stdout } = await main(['migrate'], {
        AUTH_LOGIN: 'dave',
        AUTH_PASSWORD: 'a long password',
      })
      expect(code).toBe(0)
      const lines = stdout
        .trim()
        .split('\n')
        .map((line) => JSON.parse(line) as { level: string; message: string })
      expect(lines).toContainEqual(
        expect.objectContaining({ level: 'info', message: 'the owner is "dave", named by AUTH_LOGIN' }),
      )
      expect(lines.filter(({ level }) => level === 'warn')).toEqual([
        expect.objectContaining({ message: expect.stringContaining('"Bob" (2) and "bob" (3)') }),
      ])
    })

    it('goes on as before: its start, its locks by a clock without a zone, its users, sessions and tokens', async () => {
      expect(
        await play([
          ['start_up', OLDER_START_UP],
          ['sign_in', ALICE.username, ALICE.password],
          ['sign_in', CAROL.username, CAROL.password],
          // Locked long ago, so free again by now.
          ['sign_in', BOB.username, BOB.password],
          ...Array.from({ length: 5 }, () => ['sign_in', BOB.username, 'not it']),
          ['sign_in', BOB.username, BOB.password],
          ['wait', 14],
          ['sign_in', BOB.username, BOB.password],
          ['wait', 2],
          ['sign_in', BOB.username, BOB.password],
          ['add_user', 'Newcomer', ALICE.hash],
          ['sign_in', 'Newcomer', ALICE.password],
          ['change_password', 'Newcomer', BOB.hash],
          ['sign_in', 'Newcomer', BOB.password],
          ['open_session', ALICE.id, 'short', 10],
          ['open_session', ALICE.id, 'long', 60],
          ['validate_session', 'short'],
          ['wait', 20],
          ['validate_session', 'short'],
          ['validate_session', 'long'],
          ['clean_up'],
          ['store_token', ALICE.id, 'github', 'over an adopted one'],
          ['store_token', CAROL.id, 'github', 'first'],
          ['store_token', CAROL.id, 'github', 'second'],
        ]),
      ).toEqual([
        null,
        'signed in',
        'inactive',
        'signed in',
        ...Array.from({ length: 5 }, () => 'wrong password'),
        'locked',
        null,
        'locked',
        null,
        'signed in',
        1,
        'signed in',
        1,
        'signed in',
        1,
        1,
        'alice',
        null,
        null,
        'alice',
        1,
        1,
        1,
        1,
      ])
    })

    it('`serve` beside it has its users, and asks for no first owner', async () => {
      const service = await startService(['serve'], { DATABASE_URL: superuserUrl.href })
      try {
        const response = await fetch(`${service.base}/v1/setup`, {
          method: 'POST',
          headers: { 'content-type': 'application/json' },
          body: JSON.stringify({
            setup_token: `gzi_${'x'.repeat(43)}`,
            username: 'me',
            password: 'a long password',
          }),
        })
        expect(response.status).toBe(404)
      } finally {
        await service.stop()
      }
    })

    it('`adopt` tells the state, and `adopt --finish` ends it, once', async () => {
      const state = await main(['adopt'])
      expect([state.code, state.stderr]).toEqual([0, ''])
      expect(state.stdout).toContain('both applications run side by side')
      expect(state.stdout).toContain('made by the older application: "Newcomer"')
      const refused = await main(['adopt', '--finish'], { ENCRYPTION_KEY: '' })
      expect(refused.code).toBe(1)
      expect(refused.stdout).toContain('stored 2 OAuth tokens in the clear. Set ENCRYPTION_KEY')
      const finished = await main(['adopt', '--finish'])
      expect([finished.code, finished.stderr]).toEqual([0, ''])
      expect(finished.stdout).toContain('must not be started again')
      expect((await main(['adopt', '--finish'])).stdout).toMatch(/^finished already, at /)
      expect((await main(['adopt', '--something'])).code).toBe(2)
    })
  },
)
