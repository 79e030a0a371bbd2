#!/usr/bin/env node
// Stands in for the native `schema-engine` that Prisma's CLI would download: the CLI runs it by
// PRISMA_SCHEMA_ENGINE_BINARY (prisma.config.ts sets it) and talks JSON-RPC over stdin and stdout.
import { readFile } from 'node:fs/promises'
import { createInterface } from 'node:readline'
import { parseArgs } from 'node:util'
import pg from 'pg'
import { parseIntoClientConfig } from 'pg-connection-string'
import { createEngine } from './engine.mjs'

// The CLI reads stderr as JSON lines; a warning of Node or pg in between would break it.
process.removeAllListeners('warning')

const { values, positionals } = parseArgs({
  allowPositionals: true,
  strict: false,
  options: { datasource: { type: 'string' }, datamodels: { type: 'string', multiple: true } },
})

function readPgConfig() {
  return parseIntoClientConfig(JSON.parse(values.datasource ?? '{}').url ?? '')
}

/** What the CLI runs before anything else: `cli can-connect-to-database` and `cli create-database`. */
async function runCommand(command) {
  const pgConfig = { connectionTimeoutMillis: 10_000, ...readPgConfig() }
  const creates = command === 'create-database'
  const client = new pg.Client(creates ? { ...pgConfig, database: 'postgres' } : pgConfig)
  await client.connect()
  if (creates) await client.query(`CREATE DATABASE ${pg.escapeIdentifier(pgConfig.database)}`)
  await client.end()
}

function logFailure(error) {
  const codes = { '3D000': 'P1003', '28P01': 'P1000', 28000: 'P1000' }
  const message = error.message || error.code // an AggregateError of several addresses has no message
  const fields = { message, error_code: codes[error.code] ?? 'P1001' }
  // The CLI skips the first line and reads every other one as JSON.
  console.error('schema-engine')
  console.error(JSON.stringify({ level: 'ERROR', target: 'schema_engine::logger', fields }))
}

function send(message) {
  process.stdout.write(`${JSON.stringify({ jsonrpc: '2.0', ...message })}\n`)
}

async function serve() {
  const readDatamodel = async (path) => [path, await readFile(path, 'utf8')]
  let started
  // A panic of the engine rejects nobody's promise but ends the process, whereupon the CLI may exit with 0 as
  // if all were well. So every request is answered.
  const panic = new Promise((_, reject) => {
    process.on('uncaughtException', async (error) => {
      await started?.close() // the CLI kills this process on the answer, before a shadow database is dropped
      reject(error)
    })
  })
  panic.catch(() => {})
  for await (const line of createInterface({ input: process.stdin })) {
    const { id, method, params } = JSON.parse(line)
    if (method === undefined) continue // the CLI's answer to a `print`
    try {
      started ??= await createEngine({
        pgConfig: readPgConfig(),
        datamodels: await Promise.all((values.datamodels ?? []).map(readDatamodel)),
      })
      const call = started.engine[method === 'getDatabaseVersion' ? 'version' : method](params)
      const result = await Promise.race([call, panic])
      // The native engine prints a diff by itself; this one returns it, and the CLI would drop it.
      if (method === 'diff' && result.stdout) {
        send({ id: 'diff', method: 'print', params: { content: result.stdout } })
        result.stdout = null
      }
      send({ id, result: result ?? {} })
    } catch (error) {
      const data = { is_panic: false, message: error.message, error_code: error.code, meta: error.meta }
      send({ id, error: { code: 4466, message: error.message, data } })
    }
  }
  await started?.close()
}

if (positionals[0] === 'cli') {
  await runCommand(positionals[1]).catch((error) => {
    logFailure(error)
    process.exitCode = 1
  })
} else {
  await serve()
}
