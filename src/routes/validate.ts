import { OpenAPIHono, type RouteConfig, z } from '@hono/zod-openapi'
import type { Context, MiddlewareHandler } from 'hono'
import { bodyLimit } from 'hono/body-limit'
import type { ContentfulStatusCode } from 'hono/utils/http-status'
import { AppError } from '../errors.js'
import { type ReplacedText, parseJson, parseJsonReplacing, stringifyJson } from '../security/json-text.js'
import { type JsonTree, toPointer } from '../security/json-tree.js'
import { type AppEnv, answer } from './context.js'

export const MAX_BODY_BYTES = 1024 * 1024
export const MAX_AUDIT_BODY_BYTES = 8 * 1024 * 1024

/** So many faults are told at most: an answer must not grow with what was sent. */
const MAX_ERRORS = 50

/** A router whose routes validate what they declare, with one shape of error for all of them. */
export function createRouter(): OpenAPIHono<AppEnv> {
  const router = new OpenAPIHono<AppEnv>({
    defaultHook: (result) => {
      if (!result.success) throw validationError(result.target, result.error)
    },
  })
  const add = router.openapi
  // A query that a route does not know is refused, also where it knows none; whoever asks for health may add anything.
  router.openapi = ((route: RouteConfig, ...rest: unknown[]) => {
    if (route.path.startsWith('/v1/')) route.request = { query: z.strictObject({}), ...route.request }
    return (add as (...given: unknown[]) => unknown)(route, ...rest)
  }) as typeof add
  return router
}

/** Bodies are wrong in their content (422), everything else in its form (400). */
function validationError(target: string, error: z.core.$ZodError): AppError {
  const errors = error.issues.slice(0, MAX_ERRORS).flatMap((issue) =>
    issue.code === 'unrecognized_keys'
      ? issue.keys.slice(0, MAX_ERRORS).map((key) => ({
          path: toPointer([...issue.path.map(String), key]),
          message: 'Unknown field.',
        }))
      : [{ path: toPointer(issue.path.map(String)), message: issue.message }],
  )
  if (target === 'json') return new AppError('validation_failed', 'The body does not fit.', { errors })
  const [first] = errors
  return new AppError(
    'invalid_request',
    `${first?.path.slice(1) || 'request'}: ${first?.message ?? 'is not valid'}`,
  )
}

const utf8 = new TextDecoder('utf-8', { fatal: true })

/**
 * Reads a JSON body once: size, content type, UTF-8 and syntax are checked here, before any schema, and
 * numbers keep their spelling. What the schemas see is what c.req.json() answers from then on.
 */
export function jsonBody(mode: 'strict' | 'audit' | 'optional'): MiddlewareHandler<AppEnv> {
  const maxSize = mode === 'audit' ? MAX_AUDIT_BODY_BYTES : MAX_BODY_BYTES
  const limit = bodyLimit({
    maxSize,
    onError: () => {
      throw new AppError('too_large', `The body is larger than ${maxSize} bytes.`)
    },
  })
  return async function jsonBody(c, next) {
    if (c.req.method === 'GET' || c.req.method === 'HEAD' || c.req.method === 'DELETE') return await next()
    // A slow line is not slow work; how long a body may take is Node's requestTimeout to say.
    c.get('deadlineTimer').stop()
    const readBody = async (): Promise<void> => {
      const bytes = await c.req.arrayBuffer().catch((error: unknown) => {
        // Nobody is there to read this answer; it keeps a client's going away out of the errors.
        throw new AppError('invalid_request', 'The body did not arrive whole.', { cause: error })
      })
      c.get('deadlineTimer').restart()
      if (bytes.byteLength === 0 && c.req.header('content-type') === undefined) {
        if (mode === 'optional') return await next()
        throw new AppError('invalid_request', 'The body is empty.')
      }
      requireContentType(c)
      const { tree, replacedAt } = parseBody(bytes, mode)
      c.set('replacedAt', replacedAt)
      c.req.json = <T>() => Promise.resolve(tree as T)
      await next()
    }
    // The adapter reads a body of known length at once; asking for its stream makes a whole Request first.
    const length = c.req.header('content-length')
    if (length !== undefined && c.req.header('transfer-encoding') === undefined) {
      if (Number(length) > maxSize)
        throw new AppError('too_large', `The body is larger than ${maxSize} bytes.`)
      return await readBody()
    }
    return await limit(c, readBody)
  }
}

function parseBody(bytes: ArrayBuffer, mode: 'strict' | 'audit' | 'optional'): ReplacedText {
  let text: string
  try {
    text = utf8.decode(bytes)
  } catch {
    throw new AppError('invalid_request', 'The body is not UTF-8.')
  }
  return mode === 'audit' ? parseJsonReplacing(text) : { tree: parseJson(text), replacedAt: [] }
}

function requireContentType(c: Context<AppEnv>): void {
  const expected = c.req.method === 'PATCH' ? 'application/merge-patch+json' : 'application/json'
  const essence = c.req.header('content-type')?.split(';')[0]?.trim().toLowerCase()
  if (essence !== expected) {
    throw new AppError('unsupported_media_type', `Send the body as ${expected}.`, {
      headers: c.req.method === 'PATCH' ? { 'accept-patch': expected } : { accept: expected },
    })
  }
}

/**
 * An answer whose JSON is made by us, so that numbers keep their spelling. Typed as `never`: the text
 * is beyond what Hono can check against the route's response schema.
 */
export function jsonTree(c: Context<AppEnv>, tree: JsonTree, status: ContentfulStatusCode): never {
  return jsonText(c, stringifyJson(tree), status)
}

/** The same for a text that is JSON already. */
export function jsonText(
  c: Context<AppEnv>,
  text: string,
  status: ContentfulStatusCode,
  headers: Record<string, string> = {},
): never {
  return answer(c, text, status, { ...headers, 'content-type': 'application/json' }) as never
}

/** login, verify, validate and set-up change nothing that could be done twice by mistake. */
export const refuseIdempotencyKey: MiddlewareHandler<AppEnv> = async function refuseIdempotencyKey(c, next) {
  if (c.req.header('idempotency-key') !== undefined) {
    throw new AppError('validation_failed', 'This call takes no Idempotency-Key.', {
      errors: [{ path: '', message: 'Idempotency-Key is not accepted here.' }],
    })
  }
  await next()
}
