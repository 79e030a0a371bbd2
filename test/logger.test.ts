import { mkdtempSync, openSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setImmediate as turn } from 'node:timers/promises'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { createLogger } from '../src/logger.js'

let folder: string
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'gary-log-'))
})
afterAll(() => rmSync(folder, { recursive: true, force: true }))

const messages = (file: string): string[] =>
  readFileSync(file, 'utf8')
    .split('\n')
    .filter(Boolean)
    .map((line) => JSON.parse(line).message)

it('the lines of one turn are written with its end, whole and in order', async () => {
  const file = join(folder, 'turn')
  const log = createLogger('info', openSync(file, 'a'))
  const told = Array.from({ length: 500 }, (_, at) => `${at} ${'ä'.repeat(50)}`)
  log.info({}, 'alone')
  expect(messages(file)).toEqual([])
  await turn()
  expect(messages(file)).toEqual(['alone'])
  for (const message of told) log.info({}, message)
  await turn()
  expect(messages(file)).toEqual(['alone', ...told])
})

it('a place that takes no more ends nothing: the service goes on without its log', async () => {
  const log = createLogger('info', openSync('/dev/full', 'a'))
  for (let n = 0; n < 3; n += 1) {
    log.info({}, 'to nobody '.repeat(2000))
    log.info({}, 'to nobody')
    await turn()
  }
})

it('an exit loses none of them', () => {
  const file = join(folder, 'exit')
  const before = process.listeners('exit')
  const log = createLogger('info', openSync(file, 'a'))
  const onExit = process.listeners('exit').find((listener) => !before.includes(listener))
  log.error({}, 'the last words')
  onExit?.(1)
  expect(messages(file)).toEqual(['the last words'])
})
