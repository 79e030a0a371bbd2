// npm run soak -- <minutes> [seed]: faults at random under load, and at the end a reckoning. Exit code 1 when a
// promise was broken. The same seed hurts in the same order.
import { relative } from 'node:path'
import { fileURLToPath } from 'node:url'
import { startVitest } from 'vitest/node'

const [minutes = '1', seed = String(Math.floor(Math.random() * 2 ** 32))] = process.argv.slice(2)
if (!(Number(minutes) > 0) || !/^\d+$/.test(seed)) {
  process.stderr.write('usage: npm run soak -- <minutes> [seed]\n')
  process.exit(2)
}
process.env.SOAK_MINUTES = minutes
process.env.SOAK_SEED = seed
// vitest is here only because it runs TypeScript and is there: its configuration knows nothing of this file.
const vitest = await startVitest('test', [], {
  config: false,
  watch: false,
  include: [relative(process.cwd(), fileURLToPath(new URL('soak.ts', import.meta.url)))],
  testTimeout: Number(minutes) * 60_000 + 300_000,
  hookTimeout: 120_000,
})
await vitest.close()
