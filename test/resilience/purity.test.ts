import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, test } from 'vitest'

const ROOM = join(import.meta.dirname, '../../src/resilience')
const FILES = readdirSync(ROOM)

/** The code of a file without its comments. */
function codeOf(file: string): string {
  return readFileSync(join(ROOM, file), 'utf8').replaceAll(/\/\*[\s\S]*?\*\/|\/\/.*/g, '')
}

describe('the resilience room', () => {
  test('has no clock, no random source, no timer and no I/O of its own: each is passed in', () => {
    const own =
      /\b(?:setTimeout|setInterval|setImmediate|queueMicrotask|Date|performance|hrtime|Math\.random|crypto|process|console|globalThis|fetch)\b/
    expect(FILES).toContain('circuit-breaker.ts')
    for (const file of FILES) expect(own.exec(codeOf(file))?.[0], file).toBeUndefined()
  })

  test('imports nothing but its own files and the errors', () => {
    for (const file of FILES) {
      const imported = [...codeOf(file).matchAll(/(?:from|import\()\s*'([^']+)'/g)].map(([, path]) => path)
      for (const path of imported) expect(path, file).toMatch(/^(?:\.\.\/errors\.js|\.\/[a-z-]+\.js)$/)
    }
  })
})
