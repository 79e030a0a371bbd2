import { createHash } from 'node:crypto'
import { z } from '@hono/zod-openapi'
import { AppError } from '../errors.js'

/** How many items a page holds: 1 to 1000. */
export const limit = z
  .string()
  .regex(/^[1-9]\d{0,3}$/, 'must be a whole number from 1 to 1000')
  .transform(Number)
  .refine((value) => value <= 1000, 'must be from 1 to 1000')
  .default(50)

/** Where a page ended, bound to its filters: opaque to callers, not secret. */
export function encodeCursor(position: readonly (string | number)[], filters: object): string {
  return Buffer.from(JSON.stringify([fingerprint(filters), ...position])).toString('base64url')
}

/** The position in a cursor of ours; `invalid_request` for any other text and for other filters. */
export function decodeCursor<T extends z.ZodType>(text: string, filters: object, position: T): z.output<T> {
  const bad = new AppError('invalid_request', 'cursor: is not one of this list with these filters.')
  let parts: unknown
  try {
    parts = JSON.parse(Buffer.from(text, 'base64url').toString('utf8'))
  } catch {
    throw bad
  }
  if (!Array.isArray(parts) || parts[0] !== fingerprint(filters)) throw bad
  const parsed = position.safeParse(parts.slice(1))
  if (!parsed.success) throw bad
  return parsed.data
}

function fingerprint(filters: object): string {
  const entries = Object.entries(filters).filter(([, value]) => value !== undefined)
  return createHash('sha256').update(JSON.stringify(entries.sort())).digest('base64url').slice(0, 16)
}
