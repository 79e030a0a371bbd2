import { execFile } from 'node:child_process'
import { cp, mkdir, mkdtemp, readFile, rm, symlink } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { afterAll, beforeAll, expect, it } from 'vitest'

const root = fileURLToPath(new URL('../..', import.meta.url))
let folder: string

beforeAll(async () => {
  // Outside the project: prisma-kysely formats by the configuration of the folder above it.
  folder = await mkdtemp(join(tmpdir(), 'gary-schema-'))
  await symlink(join(root, 'node_modules'), join(folder, 'node_modules'))
})
afterAll(async () => await rm(folder, { recursive: true, force: true }))

function prisma(args: string[], cwd = root) {
  const env = {
    ...process.env,
    DATABASE_URL: process.env['TEST_POSTGRES_URL'],
    CHECKPOINT_DISABLE: '1',
    NO_COLOR: '1',
    PATH: `${join(root, 'node_modules/.bin')}:${process.env['PATH']}`,
  }
  return promisify(execFile)(process.execPath, [join(root, 'node_modules/prisma/build/index.js'), ...args], {
    cwd,
    env,
  })
}

it('schema and migrations agree: no drift', async () => {
  const { stdout } = await prisma([
    'migrate',
    'diff',
    '--from-migrations',
    'prisma/migrations',
    '--to-schema',
    'prisma/schema.prisma',
    '--exit-code',
  ])
  expect(stdout).toContain('No difference detected')
})

it('the generated types are those of the schema', async () => {
  await cp(join(root, 'prisma'), join(folder, 'prisma'), { recursive: true })
  await mkdir(join(folder, 'src/db'), { recursive: true })
  await cp(join(root, 'prisma.config.ts'), join(folder, 'prisma.config.ts'))
  await prisma(['generate'], folder)
  expect(await readFile(join(folder, 'src/db/types.ts'), 'utf8')).toBe(
    await readFile(join(root, 'src/db/types.ts'), 'utf8'),
  )
})

it('no Prisma client is a dependency or imported', async () => {
  const { dependencies } = JSON.parse(await readFile(join(root, 'package.json'), 'utf8')) as {
    dependencies: object
  }
  expect(Object.keys(dependencies)).not.toContain('@prisma/client')
  expect(Object.keys(dependencies)).not.toContain('prisma')
})
