import type { Context } from 'hono'
import type { AppEnv } from './context.js'

/**
 * The pieces as a body, made as fast as they are read. What fails on the way cuts the connection, so that no part
 * is taken for the whole. `release` gives back what the pieces are made from: at their end, when they fail, and when
 * the client leaves, be it before anything was read. It must not mind being called twice.
 */
export function streamed(
  c: Context<AppEnv>,
  pieces: AsyncGenerator<string | Uint8Array>,
  release: () => Promise<unknown>,
): Response {
  const encoder = new TextEncoder()
  const deadline = c.get('deadline')
  const log = c.get('log')
  const leave = (): void =>
    void release().catch((error: unknown) => log.warn({ err: error }, 'a stream was not given back'))
  const body = new ReadableStream<Uint8Array>(
    {
      async pull(controller) {
        try {
          const { value, done } = await pieces.next()
          if (done !== true)
            return controller.enqueue(typeof value === 'string' ? encoder.encode(value) : value)
          await release()
          controller.close()
        } catch (error) {
          if (deadline.ended === 'client_gone') log.info({}, 'the client left a stream')
          else log.warn({ err: error }, 'a stream was cut')
          leave()
          controller.error(error)
        }
      },
      cancel: leave,
    },
    // Nothing is made before somebody reads.
    { highWaterMark: 0 },
  )
  // Who is gone already reads nothing and cancels nothing.
  if (deadline.ended === undefined) deadline.listen(leave)
  else leave()
  return c.body(body)
}
