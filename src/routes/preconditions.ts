import type { Context } from 'hono'
import type { Expected } from '../db/config.js'
import { AppError } from '../errors.js'
import type { AppEnv } from './context.js'

/** The entity tag of a version (RFC 9110, section 8.8.3). */
export function etag(version: number): string {
  return `"${version}"`
}

/** What If-Match and If-None-Match ask for; undefined when neither is sent. `invalid_request` when malformed. */
export function preconditionOf(c: Context<AppEnv>): Expected | undefined {
  const ifMatch = c.req.header('if-match')?.trim()
  const ifNoneMatch = c.req.header('if-none-match')?.trim()
  if (ifMatch !== undefined && ifNoneMatch !== undefined) {
    throw new AppError('invalid_request', 'Send If-Match or If-None-Match, not both.')
  }
  if (ifNoneMatch !== undefined) {
    if (ifNoneMatch !== '*') throw new AppError('invalid_request', 'If-None-Match on a change takes * only.')
    return { is: 'absent' }
  }
  if (ifMatch === undefined) return undefined
  return ifMatch === '*' ? { is: 'present' } : { is: 'version', versions: versionsOf(ifMatch) }
}

/** True when the copy the caller holds is of this version (a weak comparison: RFC 9110, section 13.1.2). */
export function isUnchanged(c: Context<AppEnv>, version: number): boolean {
  const held = c.req.header('if-none-match')
  if (held === undefined) return false
  return (
    held.trim() === '*' || held.split(',').some((tag) => tag.trim().replace(/^W\//, '') === etag(version))
  )
}

/** A tag that is no version of ours matches nothing: it is well formed, and stale. */
function versionsOf(header: string): number[] {
  const tags = header.split(',').map((tag) => tag.trim())
  if (!tags.every((tag) => /^(W\/)?"[\x21\x23-\x7e]*"$/.test(tag))) {
    throw new AppError('invalid_request', 'If-Match: send the ETag as it was received, in quotes, or *.')
  }
  const versions = tags.flatMap((tag) => (/^"[1-9]\d{0,8}"$/.test(tag) ? [Number(tag.slice(1, -1))] : []))
  return versions.length === 0 ? [0] : versions
}

export function stale(): AppError {
  return new AppError('version_mismatch', 'The resource has another version now, or is not there.')
}

export function preconditionRequired(): AppError {
  return new AppError(
    'precondition_required',
    'It exists: send If-Match with its ETag, or If-Match: * to overwrite.',
  )
}
