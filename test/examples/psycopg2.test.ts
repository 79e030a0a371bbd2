import pg from 'pg'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { createPostgresDatabase } from '../engine.js'
import { run } from './running.js'

// Debian's package is for this interpreter; another one may come first in PATH.
const PYTHON = '/usr/bin/python3'
const HASH = 'pbkdf2:sha256:1000$salt$0123456789abcdef'

let database: Awaited<ReturnType<typeof createPostgresDatabase>>

beforeAll(async () => {
  const { code, stderr } = await run(PYTHON, ['-c', 'import psycopg2'])
  if (code !== 0) throw new Error(`${PYTHON} has no psycopg2: apt-get install -y python3-psycopg2\n${stderr}`)
  database = await createPostgresDatabase()
  const client = new pg.Client({ connectionString: database.url })
  await client.connect()
  await client.query('INSERT INTO auth_users (username, password_hash) VALUES ($1, $2)', ["O'Hara ü", HASH])
  await client.end()
})
afterAll(() => database?.drop())

const lookUp = (username: string) =>
  run(PYTHON, ['examples/psycopg2_lookup.py', username], { DATABASE_URL: database.url })

describe('psycopg2_lookup.py', () => {
  it('finds a user by name and prints the row without the hash', async () => {
    const { code, stdout, stderr } = await lookUp("O'Hara ü")
    expect([code, stderr]).toEqual([0, ''])
    const row = Object.fromEntries(stdout.split('\n').map((line) => line.split(/: (.*)/s).slice(0, 2)))
    expect(row).toMatchObject({
      id: '1',
      username: "O'Hara ü",
      is_active: 'True',
      last_login: 'None',
      failed_login_attempts: '0',
      locked_until: 'None',
      must_change_password: 'False',
      role: 'user',
    })
    expect(stdout).not.toMatch(/password_hash|pbkdf2/)
  })

  it('exits with 1 for an unknown name, whatever it holds', async () => {
    expect(await lookUp("' OR 1=1 --")).toEqual({
      code: 1,
      stdout: '',
      stderr: "no user named ' OR 1=1 --\n",
    })
  })
})
