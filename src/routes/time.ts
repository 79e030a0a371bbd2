import { z } from '@hono/zod-openapi'
import { AppError } from '../errors.js'
import { type JsonTree, isJsonNumber } from '../security/json-tree.js'

/** A time that comes in, in a query or a body: RFC 3339 with any offset, or epoch seconds; as readTime gives it. */
export const timeIn = z.union([z.string(), z.number()]).transform((value, context) => {
  try {
    return readTime(value)
  } catch {
    context.addIssue('must be RFC 3339 or epoch seconds')
    return z.NEVER
  }
})

/** From 0001 to 9999; RFC 3339 knows no other years and PostgreSQL none that are not finite. */
const MIN_EPOCH = -62_135_596_800
const MAX_EPOCH = 253_402_300_799
const RFC3339 =
  /^(\d{4}-\d\d-\d\d)[Tt ](?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.(\d{1,9}))?(?:[Zz]|[+-]\d\d:\d\d)$/

/**
 * A time as RFC 3339 in UTC to the microsecond, from RFC 3339 with any offset or epoch seconds. null is now.
 * Throws `invalid_request` for all else, the 30th of February among it.
 */
export function readTime(time: JsonTree): string {
  if (time === null) return new Date().toISOString().replace('Z', '000Z')
  if (isJsonNumber(time)) return epochToIso(String(time))
  if (typeof time === 'string') {
    const [, day = '', fraction = ''] = RFC3339.exec(time) ?? []
    const ms = day === '' ? NaN : Date.parse(time)
    // Date.parse rolls the 30th of February over; the day itself must come back.
    if (isInRange(ms / 1000) && new Date(`${day}T00:00:00Z`).toISOString().startsWith(day)) {
      return isoOf(Math.floor(ms / 1000), fraction)
    }
    if (/^-?\d{1,12}(\.\d+)?$/.test(time)) return epochToIso(time)
  }
  throw new AppError('invalid_request', 'A time is RFC 3339 or epoch seconds.')
}

function isInRange(seconds: number): boolean {
  const whole = Math.floor(seconds)
  return whole >= MIN_EPOCH && whole <= MAX_EPOCH
}

/** Whole seconds and the digits behind the point, of which six are kept. */
function isoOf(wholeSeconds: number, fraction: string): string {
  const second = new Date(wholeSeconds * 1000).toISOString().slice(0, -'.000Z'.length)
  return `${second}.${fraction.slice(0, 6).padEnd(6, '0')}Z`
}

/** A double has no room for microseconds since 1970 in milliseconds: whole seconds and fraction go apart. */
function epochToIso(token: string): string {
  const seconds = Number(token)
  if (!isInRange(seconds)) throw new AppError('invalid_request', 'This time is out of range.')
  const whole = Math.floor(seconds)
  const digits = seconds >= 0 ? /^\d+\.(\d+)$/.exec(token)?.[1] : undefined
  return isoOf(whole, digits ?? String(Math.floor((seconds - whole) * 1e6)).padStart(6, '0'))
}
