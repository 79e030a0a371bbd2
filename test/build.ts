import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readdirSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import pg from 'pg'

const root = fileURLToPath(new URL('..', import.meta.url))

/** What the program is made of. */
const SOURCES = [
  'src',
  'prisma/engine.mjs',
  'bundle.mjs',
  'package.json',
  'package-lock.json',
  'tsconfig.json',
  'tsconfig.build.json',
]

/** Builds dist/ for a test that runs the program itself; once, or one file would run what another is writing. */
export async function build(): Promise<void> {
  const client = new pg.Client({ connectionString: process.env['TEST_POSTGRES_URL'] })
  await client.connect()
  try {
    await client.query("select pg_advisory_lock(hashtext('gary-test-build'))")
    if (isBuilt()) return
    const building = spawn('npm', ['run', '--silent', 'build'], { cwd: root, stdio: 'inherit' })
    const [code] = (await once(building, 'exit')) as [number | null]
    if (code !== 0) throw new Error(`the build ended with ${code}`)
  } finally {
    await client.end()
  }
}

function isBuilt(): boolean {
  const program = statSync(join(root, 'dist/hash-worker.mjs'), { throwIfNoEntry: false })
  const files = SOURCES.flatMap((source) => filesIn(join(root, source)))
  return program !== undefined && files.every((file) => statSync(file).mtimeMs < program.mtimeMs)
}

function filesIn(place: string): string[] {
  if (!statSync(place).isDirectory()) return [place]
  return readdirSync(place, { recursive: true, encoding: 'utf8' }).map((name) => join(place, name))
}
