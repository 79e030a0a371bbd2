// What is measured, as processes: the service, and what it is compared with.
import { existsSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { freePort, start, untilAnswered } from './children.mjs'

const SERVICE = fileURLToPath(new URL('../dist/main.js', import.meta.url))
const file = (/** @type {string} */ name) => fileURLToPath(new URL(name, import.meta.url))

export const POOL_SIZE = process.env['DATABASE_POOL_SIZE'] || '20'

/** @type {Record<string, string[]>} */
const ARGUMENTS = {
  service: [SERVICE, 'serve'],
  known: [file('known-caller.mjs')],
  bare: [file('bare.mjs')],
  prisma: [file('peers/prisma.mjs')],
  fastify: [file('peers/fastify.mjs')],
}

/** @typedef {{ name: string, child: import('./children.mjs').Child, port: number, readyMs: number }} Server */

/**
 * Starts one and waits until it answers from the database.
 * @param {string} name @param {{ url: string, folder: string }} database
 * @param {{ env?: Record<string, string>, nodeArgs?: string[] }} [options] @returns {Promise<Server>}
 */
export async function startServer(name, { url, folder }, { env = {}, nodeArgs = [] } = {}) {
  const port = await freePort()
  const logFile = join(folder, `${name}.log`)
  const started = performance.now()
  const child = start(
    [...nodeArgs, ...(ARGUMENTS[name] ?? [])],
    {
      DATABASE_URL: url,
      DATABASE_SSL: 'disable',
      DATABASE_POOL_SIZE: POOL_SIZE,
      ...given('DATABASE_LANES'),
      ...given('DATABASE_PREPARE'),
      ...given('BENCH_CALLERS'),
      PORT: String(port),
      LOG_LEVEL: 'warn',
      ENCRYPTION_KEY: `bench:${Buffer.alloc(32, 7).toString('base64')}`,
      ...env,
    },
    logFile,
  )
  try {
    const readyMs = await untilAnswered(child, `http://127.0.0.1:${port}/ready`, started)
    return { name, child, port, readyMs }
  } catch (error) {
    const log = existsSync(logFile) ? await readFile(logFile, 'utf8') : ''
    throw new Error(`${name} did not start; its log:\n${log}`, { cause: error })
  }
}

/** @param {string} name @returns {Record<string, string>} */
function given(name) {
  const value = process.env[name]
  return value === undefined ? {} : { [name]: value }
}
