import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import pg from 'pg'

const root = fileURLToPath(new URL('..', import.meta.url))

/** Builds dist/ for a test that runs the program itself; one file at a time, or one would run what another is writing. */
export async function build(): Promise<void> {
  const client = new pg.Client({ connectionString: process.env['TEST_POSTGRES_URL'] })
  await client.connect()
  try {
    await client.query("select pg_advisory_lock(hashtext('gary-test-build'))")
    const building = spawn('npm', ['run', '--silent', 'build'], { cwd: root, stdio: 'inherit' })
    const [code] = (await once(building, 'exit')) as [number | null]
    if (code !== 0) throw new Error(`the build ended with ${code}`)
  } finally {
    await client.end()
  }
}
