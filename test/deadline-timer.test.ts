import { setTimeout as sleep } from 'node:timers/promises'
import { expect, it } from 'vitest'
import type { Log } from '../src/routes/context.js'
import { requestContext } from '../src/routes/context.js'
import { createRouter, jsonBody } from '../src/routes/validate.js'

const log: Log = { info: () => {}, warn: () => {}, error: () => {}, child: () => log }

it('the deadline of a request stands still while its body arrives, and runs in full from then on', async () => {
  const app = createRouter()
  app.use(requestContext(log, { requestMs: 100, trustedProxy: 0 }))
  app.post('/', jsonBody('strict'), async (c) => {
    const atStart = c.var.deadline.ended
    await sleep(200)
    return c.json([atStart ?? 'running', c.var.deadline.ended])
  })
  const body = new ReadableStream<Uint8Array>({
    async start(controller) {
      controller.enqueue(new TextEncoder().encode('{"a":'))
      await sleep(250)
      controller.enqueue(new TextEncoder().encode('1}'))
      controller.close()
    },
  })
  const init = { method: 'POST', body, duplex: 'half', headers: { 'content-type': 'application/json' } }
  const response = await app.request('/', init as RequestInit)
  expect(await response.json()).toEqual(['running', 'expired'])
})
