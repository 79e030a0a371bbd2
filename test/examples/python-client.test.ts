import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { type Server, createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { createPostgresDatabase } from '../engine.js'
import { type Service, run, startService } from './running.js'

// Debian's packages are for this interpreter; another one may come first in PATH.
const PYTHON = '/usr/bin/python3'
const owner = { GARY_LOGIN: 'made-up-owner', GARY_PASSWORD: 'made-up "long" \\ pässword' }
const apiKey = `gzk_${randomBytes(32).toString('base64url')}`

let database: Awaited<ReturnType<typeof createPostgresDatabase>>
let service: Service | undefined
let variables: Record<string, string>
let port = '0'
let control: Server

beforeAll(async () => {
  const { code, stderr } = await run(PYTHON, ['-c', 'import flask'])
  if (code !== 0) throw new Error(`${PYTHON} has no Flask: apt-get install -y python3-flask\n${stderr}`)
  database = await createPostgresDatabase()
  variables = {
    DATABASE_URL: database.url,
    ENCRYPTION_KEY: `ex:${randomBytes(32).toString('base64')}`,
    SERVICE_API_KEY: apiKey,
    AUTH_LOGIN: owner.GARY_LOGIN,
    AUTH_PASSWORD: owner.GARY_PASSWORD,
    // Long enough for requests to meet while a password is verified.
    BCRYPT_COST: '8',
  }
  await start()
  port = new URL(service?.base ?? '').port
  control = createServer((request, response) => {
    const press = request.url === '/stop' ? stop : start
    press().then(
      () => response.end('{}'),
      (error: unknown) => response.writeHead(500).end(JSON.stringify(String(error))),
    )
  }).listen(0, '127.0.0.1')
  await once(control, 'listening')
})
afterAll(async () => {
  control?.close()
  await stop()
  await database?.drop()
})

/** At the same address each time, as a service that is deployed anew. */
async function start(): Promise<void> {
  service ??= await startService(['serve'], { ...variables, PORT: port })
}

async function stop(): Promise<void> {
  const stopping = service
  service = undefined
  expect(await stopping?.stop()).toBe(stopping && 0)
}

/** The test cases of a file in clients/python/tests, all run, none skipped, nothing left open. */
async function unittest(file: string): Promise<void> {
  const folder = ['-s', 'clients/python/tests', '-p', file]
  const { code, stderr } = await run(PYTHON, ['-m', 'unittest', 'discover', ...folder], {
    PYTHONDONTWRITEBYTECODE: '1',
    GARY_URL: `http://127.0.0.1:${port}`,
    GARY_API_KEY: apiKey,
    GARY_CONTROL: `http://127.0.0.1:${(control.address() as AddressInfo).port}`,
    ...owner,
  })
  expect(code, stderr).toBe(0)
  expect(stderr).toMatch(/^Ran [1-9]\d* tests? in [\d.]+s\n\nOK\n$/m)
  expect(stderr).not.toMatch(/warning/i)
}

describe('gary_zero_auth.py', () => {
  it('takes no answer, connection or process for what it is not', () => unittest('test_answers.py'))

  it('is DatabaseAuth against the service, which stops and starts', () => unittest('test_service.py'))

  it('signs in once for a Flask page that is polled 50 times a second', () => unittest('test_flask.py'))
})
