import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import pg from 'pg'
import { connectionConfig } from '../src/db/connection.js'
import { startEmbedded } from '../src/db/embedded.js'
import { migrate } from '../src/db/migrate.js'

/**
 * One server for all files of the project: TEST_POSTGRES_URL (a superuser's) or an embedded one, with a
 * migrated template that each file's own database is copied from.
 */
export async function setup(): Promise<() => Promise<void>> {
  const given = process.env['TEST_POSTGRES_URL']
  const folder = await mkdtemp(join(tmpdir(), 'gary-test-'))
  const embedded = given === undefined ? await startEmbedded({ dataDir: folder }) : undefined
  const url = given ?? embedded?.url ?? ''
  process.env['TEST_POSTGRES_URL'] = url
  const template = `gary_template_${process.pid}`
  process.env['TEST_TEMPLATE'] = template
  const admin = new pg.Client({ connectionString: url })
  await admin.connect()
  const { rows } = await admin.query<{ version: string }>('select version()')
  process.stdout.write(
    `PostgreSQL tests run on ${rows[0]?.version.split(' on ')[0] ?? 'an unknown server'}\n`,
  )
  await admin.query(`create database ${template}`)
  const target = new URL(url)
  target.pathname = `/${template}`
  await migrate({
    pgConfig: connectionConfig({ url: target.href, ssl: 'disable', sslCa: undefined }),
    folder: fileURLToPath(new URL('../prisma/migrations', import.meta.url)),
    log: () => {},
    waitMs: 10_000,
  })
  return async () => {
    await admin.query(`drop database if exists ${template} with (force)`)
    await admin.end()
    await embedded?.stop()
    await rm(folder, { recursive: true, force: true })
  }
}
