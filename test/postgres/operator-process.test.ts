import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { createServer } from 'node:net'
import { PassThrough, Readable, Writable } from 'node:stream'
import { fileURLToPath } from 'node:url'
import pg from 'pg'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { classifyConnect, toAppError } from '../../src/db/pg-errors.js'
import { readEnv } from '../../src/env.js'
import { failureLine } from '../../src/operator/failure.js'
import { runOperator } from '../../src/operator/run.js'
import { build } from '../build.js'
import { createPostgresDatabase } from '../engine.js'
import { operate, operateOnTerminal } from '../operator-process.js'

const root = fileURLToPath(new URL('../..', import.meta.url))
const GOOD = 'seven wild geese'

let env: Record<string, string>
let drop: () => Promise<void>

beforeAll(async () => {
  const database = await createPostgresDatabase()
  drop = database.drop
  env = { DATABASE_URL: database.url }
  expect(await operate(['user', 'create', 'ann', '--role', 'owner'], env)).toMatchObject({ code: 0 })
})
afterAll(async () => await drop())

async function users(): Promise<string[]> {
  return (await operate(['user', 'list', '--json'], env)).json.map(
    ({ username }: { username: string }) => username,
  )
}

describe('exit code 2, before the environment is read, for', () => {
  it.each([
    ['no command of that group', ['user']],
    ['an unknown command', ['user', 'delete', 'ann']],
    ['two words in one', ['user create', 'x']],
    ['a missing name, where nobody can be asked', ['user', 'create']],
    ['a missing role', ['user', 'role', 'ann']],
    ['a word too many', ['user', 'deactivate', 'ann', 'bob']],
    ['an option of another command', ['user', 'list', '--scope', 'config:read']],
    ['a role that there is not', ['user', 'create', 'x', '--role', 'boss']],
    ['an option without its value', ['user', 'create', 'x', '--role']],
    ['a key that is no id', ['key', 'revoke', 'k']],
  ])('%s: the usage, and nothing on standard output', async (_, args) => {
    let text = ''
    const stderr = new Writable({ write: (chunk, _encoding, done) => ((text += String(chunk)), done()) })
    const stdout = new Writable({ write: () => expect.unreachable() })
    const stdin = new PassThrough().end()
    const code = await runOperator(args, { stdin, stdout, stderr }, () => expect.unreachable())
    expect(code).toBe(2)
    expect(text).toMatch(/^usage: node dist\/main\.js /m)
  })

  it.each([['--password'], [`--password=${GOOD}`]])(
    'a password as an argument (%s), and does not repeat it',
    async (option) => {
      const { code, stdout, stderr } = await operate(['user', 'create', 'x', option, GOOD], env)
      expect({ code, stdout }).toEqual({ code: 2, stdout: '' })
      expect(stderr).toContain("Unknown option '--password'\n")
      expect(stderr).not.toContain(GOOD)
    },
  )
})

describe('exit code 1, with one line on standard error and none on standard output, for', () => {
  const failing = async (variables: Record<string, string>, args = ['user', 'list', '--json']) => {
    const { code, stdout, stderr } = await operate(args, variables)
    expect({ code, stdout }).toEqual({ code: 1, stdout: '' })
    expect(stderr).toMatch(/^[^\n]+\n$/)
    expect(stderr).not.toMatch(/ at .*:\d+|p-canary/)
    return stderr
  }

  it.each([
    ['user', 'deactivate', 'nobody'],
    ['user', 'activate', 'nobody'],
    ['user', 'role', 'nobody', 'admin'],
    ['user', 'rotate-password', 'nobody'],
    ['user', 'unlock', 'nobody'],
    ['user', 'end-sessions', 'nobody'],
    ['key', 'create', 'nobody', 'k', '--scope', 'config:read'],
    ['key', 'list', 'nobody'],
  ])('a name that nobody has: %s %s', async (...args) => {
    expect(await failing(env, args)).toBe('There is no user "nobody".\n')
  })

  it('a database that refuses', async () => {
    const line = await failing({ DATABASE_URL: 'postgres://u:p-canary@127.0.0.1:1/x' })
    expect(line).toContain('cannot be reached')
  })

  it('a server that does not answer, within the time a connection may take', async () => {
    const silent = createServer().listen(0, '127.0.0.1')
    await once(silent, 'listening')
    const { port } = silent.address() as { port: number }
    const started = performance.now()
    const line = await failing({
      DATABASE_URL: `postgres://u:p-canary@127.0.0.1:${port}/x`,
      DATABASE_ACQUIRE_MS: '600',
    })
    expect(performance.now() - started).toBeLessThan(3000)
    expect(line).toContain('cannot be reached')
    silent.close()
  })

  it('a database that there is not', async () => {
    const url = new URL(env['DATABASE_URL'] ?? '')
    url.pathname = '/none_of_that_name'
    expect(await failing({ DATABASE_URL: url.href })).toContain('does not exist')
  })

  it('a database that is not migrated, one that an older version migrated, and one that is not safe', async () => {
    const { url, drop } = await createPostgresDatabase()
    const admin = new pg.Client({ connectionString: url })
    await admin.connect()
    try {
      await admin.query('alter table config_entries no force row level security')
      expect(await failing({ DATABASE_URL: url })).toContain('config_entries lacks row-level security')
      await admin.query('alter table config_entries force row level security; drop table auth_adoption')
      expect(await failing({ DATABASE_URL: url }, ['user', 'create', 'x'])).toContain(
        'run the command migrate',
      )
      await admin.query('drop schema public cascade; drop schema gary cascade; create schema public')
      expect(await failing({ DATABASE_URL: url })).toContain('run the command migrate')
    } finally {
      await admin.end()
      await drop()
    }
    // A server on which no database was ever migrated: the role itself is not there.
    const refused = Object.assign(new Error('invalid value for parameter "role"'), { code: '22023' })
    const failure = toAppError(refused, classifyConnect(refused), 'none')
    expect(failureLine(failure)).toContain('run the migrations')
  })

  it('an environment that is wrong, all faults in the one line', async () => {
    const line = await failing({ DATABASE_URL: 'mysql://p-canary', PORT: 'p-canary' })
    expect(line).toMatch(/PORT: .*; DATABASE_URL: /)
    expect(await failing({ DATABASE_URL: '' })).toContain('DATABASE_URL: is not set')
  })

  it('a standard input that is no password, of which it reads no more than a password could be', async () => {
    const args = ['user', 'create', 'endless', '--password-stdin']
    let chunks = 0
    const long = new Readable({
      read: () => void long.push((chunks += 1) > 10_000 ? null : 'x'.repeat(1000)),
    })
    expect(await operate(args, env, long)).toMatchObject({ code: 1, stdout: '' })
    expect(chunks).toBeLessThan(100)
  })

  it('an answer that nobody reads: it says that the change is made', async () => {
    let text = ''
    const stderr = new Writable({ write: (chunk, _, done) => ((text += String(chunk)), done()) })
    const stdout = new Writable({ write: (_chunk, _, done) => done(new Error('write EPIPE')) })
    const stdin = new PassThrough().end()
    const streams = { stdin, stdout, stderr }
    const code = await runOperator(['user', 'create', 'unheard'], streams, () =>
      readEnv({ BCRYPT_COST: '4', ...env }),
    )
    expect({ code, text }).toEqual({ code: 1, text: 'It is done, but nobody was told: write EPIPE\n' })
    expect(await users()).toContain('unheard')
  })
})

describe('on a terminal', () => {
  const ask = (args: string[], dialogue: [string, string][]) => operateOnTerminal(args, env, dialogue)

  it('what is missing is asked for, on standard error; the password twice and without echo', async () => {
    const { code, json, screen } = await ask(
      ['user', 'create', '--json'],
      [
        ['user name: ', 'asked\r'],
        ['new password', `${GOOD}\r`],
        ['the same again: ', `${GOOD}\r`],
      ],
    )
    expect({ code, json }).toMatchObject({
      code: 0,
      json: { username: 'asked', must_change_password: false },
    })
    expect(json).not.toHaveProperty('password')
    expect(screen).toContain('asked')
    expect(screen).not.toContain('geese')
  })

  it('every command asks for each of its words', async () => {
    const role = await ask(
      ['user', 'role'],
      [
        ['user name: ', 'asked\r'],
        ['role (owner, admin,', 'guest\r'],
      ],
    )
    expect(role).toMatchObject({ code: 0, stdout: 'user asked has the role guest\n' })
    const key = await ask(
      ['key', 'create', '--json'],
      [
        ['user name: ', 'asked\r'],
        ['name of the key: ', 'a key\r'],
        ['scopes, of auth:verify', 'config:read audit:write\r'],
      ],
    )
    expect(key).toMatchObject({ code: 0, json: { name: 'a key', scopes: ['config:read', 'audit:write'] } })
    expect(await ask(['key', 'revoke'], [['id of the key: ', `${key.json.id}\r`]])).toMatchObject({ code: 0 })
    for (const command of ['deactivate', 'activate', 'unlock', 'end-sessions'])
      expect(await ask(['user', command], [['user name: ', 'asked\r']])).toMatchObject({ code: 0 })
  })

  it('nothing typed makes a password', async () => {
    const { code, json } = await ask(['user', 'rotate-password', 'asked', '--json'], [['new password', '\r']])
    expect({ code, password: json.password }).toEqual({ code: 0, password: expect.any(String) })
  })

  it('a bad password, or two that differ, are asked for anew, and given up after three times', async () => {
    const { code, screen } = await ask(
      ['user', 'create', 'thrice'],
      [
        ['new password', 'password1234\r'],
        ['too easy to guess', `${GOOD}\r`],
        ['the same again: ', 'seven wild goats\r'],
        ['not the same', 'short\r'],
      ],
    )
    expect(code).toBe(1)
    expect(screen).not.toMatch(/password1234|geese|goats|short\b/)
    expect(await users()).not.toContain('thrice')
  })

  it('keys that correct are no part of the password', async () => {
    const typed = `wrong${'\u007f'.repeat(5)}${GOOD}\r`
    const made = await ask(
      ['user', 'create', 'corrected'],
      [
        ['new password', typed],
        ['the same again: ', `${GOOD}\r`],
      ],
    )
    expect(made).toMatchObject({ code: 0 })
    expect(made.screen).not.toMatch(/wrong|geese/)
  })

  it('what is pasted ahead is not shown either', async () => {
    const { code, screen } = await ask(['user', 'create', 'pasted'], [['new password', `${GOOD}\r${GOOD}\r`]])
    expect(code).toBe(0)
    expect(screen).not.toContain('geese')
    const ahead = await ask(
      ['user', 'create'],
      [
        ['user name: ', `ahead\r${GOOD}\r${GOOD}\r`],
        ['new password', '\u0003'],
      ],
    )
    expect(ahead).toMatchObject({ code: 1 })
    expect(ahead.screen).not.toContain('geese')
  })

  it.each([
    ['Ctrl-C', '\u0003'],
    ['Ctrl-D', '\u0004'],
  ])('%s gives up and changes nothing', async (_, key) => {
    expect(await ask(['user', 'create', 'dropped'], [['new password', key]])).toMatchObject({
      code: 1,
      stderr: expect.stringContaining('Given up; nothing was changed.\n'),
    })
    expect(await ask(['user', 'create'], [['user name: ', key]])).toMatchObject({ code: 1 })
    expect(await users()).not.toContain('dropped')
  })

  it('an empty answer is wrong usage, and so is --password-stdin, which would show what is typed', async () => {
    expect(await ask(['user', 'unlock'], [['user name: ', '\r']])).toMatchObject({ code: 2 })
    expect(await ask(['user', 'create', 'x', '--password-stdin'], [])).toMatchObject({ code: 2 })
  })
})

describe('the program itself', () => {
  const { PATH = '' } = process.env
  const variables = () => ({ PATH, BCRYPT_COST: '4', LOG_LEVEL: 'info', ...env })

  beforeAll(build)

  it('prints one line of JSON, its errors elsewhere, and ends with the codes it promises', () => {
    const run = (...args: string[]) =>
      spawnSync(process.execPath, ['dist/main.js', ...args], {
        cwd: root,
        env: variables(),
        encoding: 'utf8',
      })
    const list = run('user', 'list', '--json')
    expect({ ...list, lines: list.stdout.split('\n').length }).toMatchObject({
      status: 0,
      stderr: '',
      lines: 2,
    })
    expect(JSON.parse(list.stdout)).toContainEqual(expect.objectContaining({ username: 'ann' }))
    expect(run('user', 'deactivate', 'ann', '--json')).toMatchObject({
      status: 1,
      stdout: '',
      stderr: 'The last active owner must stay.\n',
    })
    expect(run('user', 'create')).toMatchObject({ status: 2, stdout: '' })
    expect(run()).toMatchObject({ status: 2, stderr: expect.stringContaining('user create <name>') })
  })

  it('on a real terminal shows no password, nor does the process list while it asks', async ({ skip }) => {
    // util-linux's: others take other arguments.
    if (!String(spawnSync('script', ['--version']).stdout).includes('util-linux')) skip('needs script(1)')
    const command = `'${process.execPath}' dist/main.js user create real`
    const child = spawn('script', ['-qec', command, '/dev/null'], { cwd: root, env: variables() })
    const exit = once(child, 'exit')
    let screen = ''
    const processes: string[] = []
    const answers: [string, string][] = [
      ['new password', `${GOOD}\r`],
      ['the same again: ', `${GOOD}\r`],
    ]
    child.stdout.on('data', (chunk: Buffer) => {
      screen += String(chunk)
      const [next] = answers
      if (next === undefined || !screen.includes(next[0])) return
      answers.shift()
      processes.push(spawnSync('ps', ['-eo', 'args='], { encoding: 'utf8' }).stdout)
      child.stdin.write(next[1])
    })
    expect((await exit)[0]).toBe(0)
    expect(screen).toContain('user real created')
    expect(screen).not.toContain('geese')
    expect(processes).toHaveLength(2)
    for (const list of processes) {
      expect(list).toContain('user create real')
      expect(list).not.toContain('geese')
    }
  })
})
