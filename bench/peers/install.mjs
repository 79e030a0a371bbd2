// The peers' packages, and Prisma's client for the product's own schema. All of it lies in node_modules here.
import { execFileSync } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

const here = fileURLToPath(new URL('.', import.meta.url))
const CLIENT = `${here}node_modules/.bench-client`
const GENERATOR = `generator client {
  provider   = "prisma-client-js"
  engineType = "client"
  output     = "."
}`

/** @param {(line: string) => void} log */
export function installPeers(log) {
  if (!existsSync(`${here}node_modules`)) {
    log('installing the peers')
    // No scripts: Prisma's would download an engine that nothing here needs.
    run('npm', ['ci', '--ignore-scripts', '--no-audit', '--no-fund'])
  }
  const schema = readFileSync(new URL('../../prisma/schema.prisma', import.meta.url), 'utf8')
  mkdirSync(CLIENT, { recursive: true })
  const file = `${CLIENT}/schema.prisma`
  writeFileSync(file, schema.replace(/^generator kysely \{[^}]*\}/m, GENERATOR))
  log("generating Prisma's client")
  run(process.execPath, [`${here}node_modules/prisma/build/index.js`, 'generate', '--schema', file])
}

/** @param {string} command @param {string[]} args */
function run(command, args) {
  const engine = fileURLToPath(new URL('../../prisma/schema-engine.mjs', import.meta.url))
  execFileSync(command, args, {
    cwd: here,
    stdio: ['ignore', 2, 2],
    // A table goes to stdout; a schema engine that is named is not downloaded.
    env: {
      ...process.env,
      PRISMA_SCHEMA_ENGINE_BINARY: engine,
      CHECKPOINT_DISABLE: '1',
      PRISMA_HIDE_UPDATE_MESSAGE: '1',
    },
  })
}
