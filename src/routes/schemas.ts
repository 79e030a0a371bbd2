import { z } from '@hono/zod-openapi'
import type { ListedSession } from '../db/sessions.js'
import { ROLES, normalizeUsername } from '../db/users.js'
import { isWellFormedText } from '../security/well-formed-text.js'

/** What several routes answer with, as the OpenAPI document will show it. */
export const timestamp = z.iso.datetime({ precision: 6 })

/** A new user name: NFKC and trimmed, no control characters, no ':' (RFC 7617 ends the name there). */
export const username = z
  .string()
  .max(255)
  .refine(isWellFormedText, 'must be well-formed text without NUL')
  .transform(normalizeUsername)
  .refine((name) => name.length >= 1 && name.length <= 255, 'must have 1 to 255 characters')
  .refine((name) => !/[\p{Cc}\p{Cf}:]/u.test(name), 'must have no control characters and no ":"')

/** Names of the keys that SERVICE_API_KEY makes and revokes. */
const RESERVED = /^SERVICE_API_KEY\b/

/** What a new key is called. */
export const keyName = z
  .string()
  .trim()
  .min(1)
  .max(128)
  .refine(
    (name) => isWellFormedText(name) && !/\p{Cc}/u.test(name),
    'must be text without control characters',
  )
  .refine((name) => !RESERVED.test(name), 'is reserved')

export const userSchema = z
  .object({
    id: z.int(),
    username: z.string(),
    role: z.enum(ROLES),
    is_active: z.boolean(),
    must_change_password: z.boolean(),
    created_at: timestamp,
    updated_at: timestamp,
    last_login: timestamp.nullable(),
    password_changed_at: timestamp,
    version: z.int(),
  })
  .openapi('User')

export const sessionSchema = z
  .object({
    id: z.int(),
    created_at: timestamp,
    last_activity: timestamp,
    expires_at: timestamp,
    idle_expires_at: timestamp,
    ip_address: z.string().nullable(),
    user_agent: z.string().nullable(),
    current: z.boolean(),
  })
  .openapi('Session')

/** A session as the API shows it; `current` when it is the one that asks. */
export function sessionOut(row: ListedSession, currentId: number | null): z.output<typeof sessionSchema> {
  return {
    id: row.session_id,
    created_at: row.session_created_at,
    last_activity: row.last_activity,
    expires_at: row.expires_at,
    idle_expires_at: row.idle_expires_at,
    ip_address: row.ip_address,
    user_agent: row.user_agent,
    current: row.session_id === currentId,
  }
}

/** An id in an address. */
export const idParam = z
  .string()
  .regex(/^[1-9]\d{0,9}$/, 'must be an id')
  .transform(Number)
  .refine((value) => value < 2 ** 31, 'must be an id')

export const problemSchema = z
  .object({
    type: z.string(),
    title: z.string(),
    status: z.int(),
    detail: z.string(),
    code: z.string(),
    errors: z.array(z.object({ path: z.string(), message: z.string() })).optional(),
    error: z.string(),
    message: z.string(),
    timestamp: z.number(),
    request_id: z.string(),
  })
  .openapi('Problem')

/** A JSON body or answer as createRoute takes it. */
export function json<T extends z.ZodType>(schema: T) {
  return { content: { 'application/json': { schema } } }
}

/** The answers every route can give, by status. */
export const problems = {
  default: {
    description: 'Any error, as application/problem+json (RFC 9457)',
    content: { 'application/problem+json': { schema: problemSchema } },
  },
} as const
