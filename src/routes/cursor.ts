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
  const bad = (): AppError =>
    new AppError('invalid_request', 'cursor: is not one of this list with these filters.')
  let parts: unknown
  try {
    parts = JSON.parse(Buffer.from(text, 'base64url').toString('utf8'))
  } catch {
    throw bad()
  }
  if (!Array.isArray(parts) || parts[0] !== fingerprint(filters)) throw bad()
  const parsed = position.safeParse(parts.slice(1))
  if (!parsed.success) throw bad()
  return parsed.data
}

/** The id behind which a list by ids goes on; undefined on its first page. */
export function idBehind(cursor: string | undefined, filters: object): number | undefined {
  return cursor === undefined ? undefined : decodeCursor(cursor, filters, z.tuple([z.int().min(1)]))[0]
}

/** A page of `size`, from rows of which one more was asked for; the cursor is the place of its last one. */
export function pageOf<T>(
  rows: readonly T[],
  size: number,
  filters: object,
  placeOf: (row: T) => readonly (string | number)[],
): { items: T[]; next_cursor: string | null } {
  const items = rows.slice(0, size)
  const last = items.at(-1)
  const isMore = rows.length > size && last !== undefined
  return { items, next_cursor: isMore ? encodeCursor(placeOf(last), filters) : null }
}

function fingerprint(filters: object): string {
  const entries = Object.entries(filters).filter(([, value]) => value !== undefined)
  return createHash('sha256').update(JSON.stringify(entries.sort())).digest('base64url').slice(0, 16)
}
