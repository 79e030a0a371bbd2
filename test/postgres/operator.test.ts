import { randomBytes } from 'node:crypto'
import { userInfo } from 'node:os'
import { setTimeout as sleep } from 'node:timers/promises'
import pg from 'pg'
import { beforeEach, describe, expect, it } from 'vitest'
import { createLogin } from '../../src/db/create-login.js'
import { operatorCaller } from '../../src/operator/operating-system-user.js'
import { PASSWORD, type TestService, useService } from '../harness.js'
import { type Ran, operate } from '../operator-process.js'

const KEY = `test:${Buffer.alloc(32, 1).toString('base64')}`
const ADDRESS = { 'x-forwarded-for': '203.0.113.7' }

const service = useService({ TRUST_PROXY: '1' })
const unused = useService({ AUTH_LOGIN: '', AUTH_PASSWORD: '' })
let name: string

beforeEach(() => {
  name = `user-${randomBytes(4).toString('hex')}`
})

function cli(args: string[], env: Record<string, string> = {}, stdin = ''): Promise<Ran> {
  return operate(args, { DATABASE_URL: service.database.url ?? '', ENCRYPTION_KEY: KEY, ...env }, stdin)
}

/** With --json, done. */
async function done(...args: string[]): Promise<any> {
  const { code, stderr, json } = await cli([...args, '--json'])
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
  return json
}

async function signIn(username: string, password: string): Promise<{ status: number; token: string }> {
  const body = { username, password }
  const answer = await service.call('POST', '/v1/auth/login', { body, headers: ADDRESS })
  return { status: answer.status, token: answer.body.token }
}

async function session(token: string): Promise<number> {
  return (await service.call('GET', '/v1/auth/session', { token })).status
}

async function user(username: string): Promise<any> {
  const [row] = await service.database.read(`select * from auth_users where username = '${username}'`)
  return row
}

/** What the trail says was done to that target, or to a user of that name, by whom. */
async function trail(target: string, of = service): Promise<unknown[]> {
  return await of.database.read(
    `select action, actor_type as type, actor_id as id, actor_name as name from audit_events
      where target = '${target}' or target is null and event::jsonb #>> '{metadata,username}' = '${target}'
      order by id`,
  )
}

/** While the trail takes nothing from an operator. */
async function withoutAudit(of: TestService, work: () => Promise<void>): Promise<void> {
  await of.database.read(
    `alter table audit_events add constraint none check (actor_name not like 'cli:%') not valid`,
  )
  try {
    await work()
  } finally {
    await of.database.read('alter table audit_events drop constraint none')
  }
}

const by = (action: string) => ({ action, type: 'system', id: null, name: `cli:${userInfo().username}` })

describe('user create', () => {
  it('makes a user whose made password is shown once and must be changed, with an audit row of the operator', async () => {
    const made = await done('user', 'create', name)
    expect(made).toMatchObject({ username: name, role: 'user', must_change_password: true })
    expect((await signIn(name, made.password)).status).toBe(200)
    expect(await trail(name)).toEqual([by('user.create')])
  })

  it('tells people what it tells programs', async () => {
    const { code, stdout, stderr } = await cli(['user', 'create', name, '--role', 'admin'])
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
    expect(stdout).toContain(`user ${name} created`)
    expect((await signIn(name, stdout.trim().split('\n').at(-1) ?? '')).status).toBe(200)
  })

  it('takes a password from standard input, which need not be changed and is not shown', async () => {
    const { code, json, stdout } = await cli(
      ['user', 'create', name, '--password-stdin', '--json'],
      {},
      'seven wild geese\n',
    )
    expect({ code, must: json.must_change_password }).toEqual({ code: 0, must: false })
    expect(stdout).not.toContain('seven wild geese')
    expect((await signIn(name, 'seven wild geese')).status).toBe(200)
  })

  it('asks for another password at the first sign-in when told so', async () => {
    await cli(['user', 'create', name, '--password-stdin', '--must-change'], {}, 'seven wild geese')
    expect(await user(name)).toMatchObject({ must_change_password: true })
  })

  it.each([
    ['a common password', 'password1234'],
    ['a short password', 'tiny'],
    ['one that bcrypt would cut', 'long '.repeat(20)],
    ['nothing', ''],
    ['two lines', 'seven wild geese\nand more'],
    ['bytes that are no text', Buffer.from('fffefdfcfbfaf9f8f7f6f5f4f3f2f1f0', 'hex')],
    ['a whole file', 'x'.repeat(10_000)],
  ])('refuses %s, and no user is there', async (_, stdin) => {
    const args = ['user', 'create', name, '--password-stdin']
    const { code, stdout, stderr } = await operate(
      args,
      { DATABASE_URL: service.database.url ?? '', PASSWORD_MIN_LENGTH: '12' },
      stdin,
    )
    expect({ code, stdout, user: await user(name) }).toEqual({ code: 1, stdout: '', user: undefined })
    expect(stderr).toMatch(/^[^\n]+\n$/)
    if (stdin !== '') expect(stderr).not.toContain(String(stdin).slice(0, 10))
  })

  it('folds names as the API does, and tells of a taken one in a line', async () => {
    expect(await done('user', 'create', `  Ｋ${name} `)).toMatchObject({ username: `K${name}` })
    const again = await cli(['user', 'create', `k${name.toUpperCase()}`])
    expect(again).toMatchObject({ code: 1, stdout: '', stderr: 'The username is taken.\n' })
    for (const bad of ['a:b', 'tab\there', 'x'.repeat(256), '\u200b'])
      expect(await cli(['user', 'create', bad])).toMatchObject({ code: 1, stdout: '' })
  })

  it('gives a user of the role service no password', async () => {
    expect(await done('user', 'create', name, '--role', 'service')).not.toHaveProperty('password')
    expect(await user(name)).toMatchObject({ password_hash: '!' })
    const refused = await cli(
      ['user', 'create', `${name}2`, '--role', 'service', '--password-stdin'],
      {},
      PASSWORD,
    )
    expect(refused).toMatchObject({ code: 1, stderr: expect.stringContaining('no password') })
  })

  it('stores passwords as the older application reads them, while that one runs beside', async () => {
    await service.database.read('insert into auth_adoption default values')
    try {
      await done('user', 'create', name)
      expect((await user(name)).password_hash).toMatch(/^scrypt:32768:8:1\$/)
      await done('user', 'rotate-password', name)
      expect((await user(name)).password_hash).toMatch(/^scrypt:32768:8:1\$/)
    } finally {
      await service.database.read('delete from auth_adoption')
    }
  })
})

describe('user list', () => {
  it('names all, or those of a role, or the inactive ones', async () => {
    await done('user', 'create', name, '--role', 'auditor')
    await done('user', 'create', `${name}-2`, '--role', 'auditor')
    await done('user', 'deactivate', `${name}-2`)
    const names = async (...args: string[]) =>
      ((await done('user', 'list', ...args)) as { username: string }[]).map(({ username }) => username)
    expect(await names()).toEqual(expect.arrayContaining(['owner', name, `${name}-2`]))
    expect(await names('--role', 'auditor')).toEqual([name, `${name}-2`])
    expect(await names('--role', 'auditor', '--inactive')).toEqual([`${name}-2`])
    expect(await names('--role', 'guest')).toEqual([])
    expect((await cli(['user', 'list', '--role', 'auditor'])).stdout).toMatch(
      new RegExp(`^ID +NAME +ROLE .*\n\\d+ +${name} +auditor +active`),
    )
  })

  it('goes on behind the first thousand', async () => {
    await service.database.read(
      `insert into auth_users (username, password_hash, role) select 'many-' || n, '!', 'guest' from generate_series(1, 1001) n`,
    )
    expect(await done('user', 'list', '--role', 'guest')).toHaveLength(1001)
    await service.database.read("delete from auth_users where username like 'many-%'")
  })

  it('shows no names that a terminal would obey', async () => {
    await service.database.read(
      `insert into auth_users (username, password_hash) values (E'${name}\\x1b[2J\\u202e', '!')`,
    )
    const { stdout } = await cli(['user', 'list'])
    expect(stdout).toContain(`${name}\ufffd[2J\ufffd`)
    expect(stdout).not.toContain('\u001b')
    expect(stdout).not.toContain('\u202e')
  })
})

describe('user deactivate and activate', () => {
  it('ends the sessions with the change; activating brings the user back, and both are audited once', async () => {
    const { id, password } = await done('user', 'create', name)
    const { token } = await signIn(name, password)
    expect(await done('user', 'deactivate', name)).toMatchObject({ is_active: false })
    expect([await session(token), (await signIn(name, password)).status]).toEqual([401, 401])
    await done('user', 'deactivate', name)
    expect(await done('user', 'activate', name.toUpperCase())).toMatchObject({ is_active: true })
    expect((await signIn(name, password)).status).toBe(200)
    const told = (await trail(`users/${id}`)).filter((row) => (row as { type: string }).type === 'system')
    expect(told).toEqual([
      by('user.deactivate'),
      expect.objectContaining({ action: 'auth.login_failed' }),
      by('user.change'),
    ])
  })

  it('means whom the name signs in, where an older database has two that differ only by case', async () => {
    await service.database.read(
      `insert into auth_users (username, username_key, password_hash)
       values ('Bea-${name}', 'bea-${name}', '!'), ('bea-${name}', null, '!')`,
    )
    await done('user', 'deactivate', `bea-${name}`)
    expect(await user(`bea-${name}`)).toMatchObject({ is_active: false })
    expect(await user(`Bea-${name}`)).toMatchObject({ is_active: true })
  })
})

describe('user role', () => {
  it('gives the role, ends the sessions and is audited', async () => {
    const { id, password } = await done('user', 'create', name)
    const { token } = await signIn(name, password)
    expect(await done('user', 'role', name, 'admin')).toMatchObject({ role: 'admin' })
    expect(await session(token)).toBe(401)
    expect(await trail(`users/${id}`)).toContainEqual(by('user.change'))
  })

  it('neither gives nor takes the role service', async () => {
    await done('user', 'create', name)
    await done('user', 'create', `${name}-svc`, '--role', 'service')
    for (const args of [
      [name, 'service'],
      [`${name}-svc`, 'owner'],
    ])
      expect(await cli(['user', 'role', ...args])).toMatchObject({
        code: 1,
        stderr: expect.stringContaining('for life'),
      })
  })
})

describe('the last active owner', () => {
  it.each([
    ['deactivate', ['user', 'deactivate', 'owner']],
    ['lose the role', ['user', 'role', 'owner', 'admin']],
  ])('cannot %s: one line, exit code 1, nothing changed and nothing audited', async (_, args) => {
    const before = [await user('owner'), await trail('users/1')]
    const refused = await cli([...args, '--json'])
    expect(refused).toMatchObject({ code: 1, stdout: '', stderr: 'The last active owner must stay.\n' })
    expect([await user('owner'), await trail('users/1')]).toEqual(before)
  })

  it('stays also when the other one goes in the same moment', async () => {
    await done('user', 'create', name, '--role', 'owner')
    const other = new pg.Client({ connectionString: service.database.url ?? '' })
    await other.connect()
    try {
      // As a command or the API does it: under the lock of the owners.
      await other.query('begin; select pg_advisory_xact_lock(7305022)')
      const going = cli(['user', 'deactivate', name])
      await untilWaiting(other)
      await other.query(`update auth_users set is_active = false where username = 'owner'; commit`)
      expect(await going).toMatchObject({ code: 1, stderr: 'The last active owner must stay.\n' })
      expect(await user(name)).toMatchObject({ is_active: true })
    } finally {
      await other.end()
      await done('user', 'activate', 'owner')
      await done('user', 'deactivate', name)
    }
  })
})

async function untilWaiting(client: pg.Client): Promise<void> {
  const waiting = `select 1 from pg_locks where locktype = 'advisory' and objid = 7305022 and not granted`
  for (let tries = 0; tries < 400; tries += 1) {
    if (((await client.query(waiting)).rowCount ?? 0) > 0) return
    await sleep(25)
  }
  throw new Error('nobody waits for the lock of the owners')
}

describe('user rotate-password', () => {
  it('makes a password that must be changed; the old one and the sessions are over', async () => {
    const { id, password } = await done('user', 'create', name)
    const { token } = await signIn(name, password)
    const rotated = await done('user', 'rotate-password', name)
    expect(rotated).toMatchObject({ must_change_password: true, password: expect.any(String) })
    expect(await session(token)).toBe(401)
    expect((await signIn(name, password)).status).toBe(401)
    expect((await signIn(name, rotated.password)).status).toBe(200)
    expect(await trail(`users/${id}`)).toContainEqual(by('user.rotate_password'))
  })

  it('takes one from standard input by the rules of the API, the user name among them', async () => {
    await done('user', 'create', name)
    const args = ['user', 'rotate-password', name, '--password-stdin']
    expect(await cli(args, {}, `${name}1`)).toMatchObject({ code: 1, stdout: '' })
    expect(await cli(args, {}, 'seven wild geese')).toMatchObject({ code: 0 })
    expect((await signIn(name, 'seven wild geese')).status).toBe(200)
  })

  it('is refused for the role service', async () => {
    await done('user', 'create', name, '--role', 'service')
    expect(await cli(['user', 'rotate-password', name])).toMatchObject({
      code: 1,
      stderr: expect.stringContaining('no password'),
    })
  })
})

describe('user unlock', () => {
  const OTHER = `other:${Buffer.alloc(32, 9).toString('base64')}`

  async function lock(): Promise<{ id: number; password: string }> {
    const made = await done('user', 'create', name)
    for (let failure = 0; failure < 5; failure += 1) await signIn(name, 'wrong')
    expect((await signIn(name, made.password)).status).toBe(429)
    return made
  }

  it('lets a locked user in at once, and is audited', async () => {
    const { id, password } = await lock()
    expect(await done('user', 'unlock', name)).toEqual({ id, username: name, attempts_forgotten: 2 })
    expect((await signIn(name, password)).status).toBe(200)
    expect(await trail(`users/${id}`)).toContainEqual(by('user.unlock'))
  })

  it('finds what was counted under an older key of the ring', async () => {
    const { password } = await lock()
    expect(await cli(['user', 'unlock', name], { ENCRYPTION_KEY: `${OTHER},${KEY}` })).toMatchObject({
      code: 0,
      stderr: '',
    })
    expect((await signIn(name, password)).status).toBe(200)
  })

  it.each([
    ['another ENCRYPTION_KEY', OTHER, "this ENCRYPTION_KEY is not the service's"],
    ['none', '', 'ENCRYPTION_KEY is not set here'],
  ])('says that it cleared nothing with %s', async (_, key, reason) => {
    const { password } = await lock()
    const { code, json, stderr } = await cli(['user', 'unlock', name, '--json'], { ENCRYPTION_KEY: key })
    expect({ code, forgotten: json.attempts_forgotten }).toEqual({ code: 0, forgotten: 0 })
    expect(stderr).toMatch(/^warning: [^\n]+\n$/)
    expect(stderr).toContain(reason)
    expect((await signIn(name, password)).status).toBe(429)
  })
})

describe('user end-sessions', () => {
  it('ends all of them, and is audited', async () => {
    const { id, password } = await done('user', 'create', name)
    const tokens = [(await signIn(name, password)).token, (await signIn(name, password)).token]
    expect(await done('user', 'end-sessions', name)).toEqual({ id, username: name, sessions_ended: 2 })
    expect(await Promise.all(tokens.map(session))).toEqual([401, 401])
    expect(await trail(`users/${id}`)).toContainEqual(by('user.end_sessions'))
    expect(await done('user', 'end-sessions', name)).toMatchObject({ sessions_ended: 0 })
  })
})

describe('keys', () => {
  it('are made, work, are listed without what opens them, and are revoked: each audited', async () => {
    const { id: userId } = await done('user', 'create', name, '--role', 'service')
    const args = ['--scope', 'users:read', '--scope', 'audit:write,audit:read', '--expires', '2999-12-31']
    const made = await done('key', 'create', name, 'ci', ...args)
    expect(made).toMatchObject({
      username: name,
      user_id: userId,
      scopes: ['users:read', 'audit:write', 'audit:read'],
      expires_at: '2999-12-31T00:00:00.000000Z',
    })
    const asKey = () => service.call('GET', '/v1/users', { token: made.key })
    expect((await asKey()).status).toBe(200)
    const { key, ...shown } = made
    expect(await done('key', 'list', name)).toEqual([{ ...shown, last_used_at: expect.any(String) }])
    expect(await done('key', 'list')).toContainEqual(expect.objectContaining({ id: made.id }))
    expect((await cli(['key', 'list'])).stdout).not.toContain(key)
    expect(await done('key', 'revoke', String(made.id))).toEqual({ id: made.id, revoked: true })
    expect((await asKey()).status).toBe(401)
    expect(await cli(['key', 'revoke', String(made.id)])).toMatchObject({ code: 1 })
    expect(await trail(`users/${userId}`)).toContainEqual(by('api_key.create'))
    expect(await trail(`api-keys/${made.id}`)).toEqual([by('api_key.revoke')])
  })

  it('are made for owners as well: the operator stands above them', async () => {
    const made = await done('key', 'create', 'owner', name, '--scope', 'config:reveal')
    expect(made).toMatchObject({ user_id: 1 })
  })

  it.each([
    ['a scope that the role has no use for', ['--scope', 'config:read', '--scope', 'users:write'], 1],
    ['a scope that there is not', ['--scope', 'config:all'], 2],
    ['no scope', [], 2],
    ['a time that is over', ['--scope', 'config:read', '--expires', '2020-01-01'], 1],
    ['a time that is none', ['--scope', 'config:read', '--expires', '2027-02-30'], 2],
    ['a name of the keys of SERVICE_API_KEY', ['--scope', 'config:read'], 1, 'SERVICE_API_KEY x'],
  ])('are not made with %s', async (_, args, code, called = 'k') => {
    await done('user', 'create', name)
    expect(await cli(['key', 'create', name, called, ...args])).toMatchObject({ code, stdout: '' })
    expect(await done('key', 'list', name)).toEqual([])
  })

  it('are not made for an inactive user', async () => {
    await done('user', 'create', name)
    await done('user', 'deactivate', name)
    expect(await cli(['key', 'create', name, 'k', '--scope', 'config:read'])).toMatchObject({
      code: 1,
      stderr: 'The user is not active.\n',
    })
  })
})

describe('setup-link', () => {
  const link = (...args: string[]) =>
    operate(['setup-link', ...args], { DATABASE_URL: unused.database.url ?? '', PORT: '8123' })
  const setUp = (setup_token: string) =>
    unused.call('POST', '/v1/setup', {
      body: { setup_token, username: 'me', password: 'seven wild geese' },
    })

  it('gives the line of the start-up again, voids the last one, and is audited; refused once there is a user', async () => {
    const first = await link('--json')
    expect(first).toMatchObject({ code: 0, stderr: '', json: { valid_seconds: 3600 } })
    const second = await link()
    expect(second.stdout).toContain(
      "curl -s http://localhost:8123/v1/setup -H 'content-type: application/json'",
    )
    const token = /gzi_[\w-]{43}/.exec(second.stdout)?.[0] ?? ''
    await withoutAudit(unused, async () => expect((await link()).code).toBe(1))
    for (const former of [unused.setupToken, first.json.setup_token])
      expect((await setUp(former)).status).toBe(401)
    expect((await setUp(token)).status).toBe(201)
    expect(await link()).toMatchObject({
      code: 1,
      stdout: '',
      stderr: expect.stringContaining('Set-up is over'),
    })
    expect(
      await unused.database.read(
        `select action, actor_type as type, actor_id as id, actor_name as name from audit_events
          where action = 'setup.renew_token'`,
      ),
    ).toEqual([by('setup.renew_token'), by('setup.renew_token')])
  })
})

describe('every change', () => {
  it('is made with its audit row or not at all', async () => {
    const { password } = await done('user', 'create', name)
    await done('key', 'create', name, 'k', '--scope', 'config:read')
    const keys = await done('key', 'list', name)
    const { token } = await signIn(name, password)
    const before = [await user(name), keys]
    await withoutAudit(service, async () => {
      for (const args of [
        ['user', 'create', `${name}-2`],
        ['user', 'deactivate', name],
        ['user', 'role', name, 'guest'],
        ['user', 'rotate-password', name],
        ['user', 'unlock', name],
        ['user', 'end-sessions', name],
        ['key', 'create', name, 'k2', '--scope', 'config:read'],
        ['key', 'revoke', String(keys[0].id)],
      ])
        expect.soft(await cli(args), args.join(' ')).toMatchObject({ code: 1, stdout: '' })
    })
    expect([await user(name), await done('key', 'list', name), await session(token)]).toEqual([
      ...before,
      200,
    ])
    expect(await user(`${name}-2`)).toBeUndefined()
  })

  it('works with a login that can do nothing else', async () => {
    const login = `cli_${randomBytes(6).toString('hex')}`
    const { password } = await createLogin({ connectionString: service.database.url ?? '' }, login, 10_000)
    const url = new URL(service.database.url ?? '')
    ;[url.username, url.password] = [login, password]
    const env = { DATABASE_URL: url.href, DATABASE_POOLED: 'true' }
    expect(await cli(['user', 'create', name], env)).toMatchObject({ code: 0 })
    expect(await cli(['user', 'unlock', name], env)).toMatchObject({ code: 0 })
    expect(await cli(['user', 'deactivate', name], env)).toMatchObject({ code: 0 })
    await service.database.read(`drop role ${login}`)
  })

  it('is told under the name that the operating system gives, or its number where it has none', () => {
    expect(operatorCaller().actor).toEqual({ type: 'system', id: null, name: `cli:${userInfo().username}` })
    const nameless = operatorCaller(() => {
      throw Object.assign(new Error('uv_os_get_passwd returned ENOENT'), { code: 'ERR_SYSTEM_ERROR' })
    })
    expect(nameless.actor.name).toBe(`cli:uid ${process.getuid?.()}`)
    expect(operatorCaller(() => ({ username: 'x'.repeat(300) })).actor.name).toHaveLength(255)
  })
})
