import { z } from '@hono/zod-openapi'
import type { Context } from 'hono'
import type { Address, EntryAnswer, Revision, StoredEntry } from '../db/config.js'
import type { ConfigAddress } from '../security/config-secrets.js'
import { maskValue } from '../security/config-secrets.js'
import { parseStoredJson, stringifyJson } from '../security/json-text.js'
import { type JsonTree, fromPointer } from '../security/json-tree.js'
import { isWellFormedText } from '../security/well-formed-text.js'
import type { AppEnv } from './context.js'
import { etag } from './preconditions.js'
import { timestamp } from './schemas.js'
import { jsonText } from './validate.js'

const plainText = (max: number) =>
  z.string().min(1).max(max).refine(isWellFormedText, 'must be well-formed text without NUL')
export const anyJson = z.unknown().openapi({ description: 'Any JSON; numbers keep their spelling' })

/** What PUT takes: all of an entry that a caller may say. */
export const putBody = z.strictObject({
  value: anyJson,
  tags: z.array(plainText(64)).max(32).default([]),
  description: plainText(1024).nullable().default(null),
  secret_paths: z
    .array(z.string().max(1024).refine(isPointer, 'must be a JSON Pointer (RFC 6901)'))
    .max(100)
    .default([]),
})

export const entrySchema = z
  .object({
    scope: z.enum(['global', 'environment', 'service', 'user']),
    owner: z.string().nullable(),
    environment: z.string().nullable(),
    key: z.string(),
    value: anyJson,
    version: z.int(),
    secret_paths: z.array(z.string()),
    tags: z.array(z.string()),
    description: z.string().nullable(),
    created_at: timestamp,
    updated_at: timestamp,
    updated_by: z.string(),
  })
  .openapi('ConfigEntry')

export const revisionSchema = z
  .object({
    version: z.int(),
    operation: z.enum(['put', 'patch', 'delete', 'restore']),
    created_at: timestamp,
    actor: z.object({ type: z.string(), id: z.int().nullable(), name: z.string() }),
    tags: z.array(z.string()),
    description: z.string().nullable(),
    secret_paths: z.array(z.string()),
    request_id: z.string().nullable(),
    value: anyJson.optional(),
  })
  .openapi('ConfigRevision')

function isPointer(text: string): boolean {
  try {
    fromPointer(text, '')
    return isWellFormedText(text)
  } catch {
    return false
  }
}

/** What a sealed box is bound to. */
export function sealAddress({ scope, owner, environment, key }: Address): ConfigAddress {
  return { scope, owner: owner || null, environment: environment || null, key }
}

/** A stored value as callers read it: secrets masked, and untouched text where there are none. */
export function maskedText(stored: string): string {
  return stored.includes('"$sealed"') ? stringifyJson(maskValue(parseStoredJson(stored))) : stored
}

/** The entry with its ETag; `value` is JSON text, masked or revealed, and is not parsed again. */
export function entryResponse(
  c: Context<AppEnv>,
  entry: StoredEntry,
  status: 200 | 201,
  value: string,
): never {
  const [toVersion, toCreated, toUpdated, rest] = entryTexts(entry, value)
  const { version, created_at, updated_at } = entry
  const text = `${toVersion}${version}${toCreated}${created_at}${toUpdated}${updated_at}${rest}`
  return jsonText(c, text, status, { etag: etag(version) })
}

/** The same answer as idempotency.ts keeps it, around what the statement alone will know. */
export function entryAnswer(entry: KnownEntry, value: string): EntryAnswer {
  const inJson = (text: string): string => JSON.stringify(text).slice(1, -1)
  const [toVersion, toCreated, toUpdated, rest] = entryTexts(entry, value)
  return {
    answer: '{"headers":{"content-type":"application/json","etag":"\\"',
    behindTag: `\\""},"body":"${inJson(toVersion)}`,
    behindVersion: inJson(toCreated),
    behindCreated: inJson(toUpdated),
    behindUpdated: `${inJson(rest)}"}`,
  }
}

type KnownEntry = Omit<StoredEntry, 'value' | 'version' | 'created_at' | 'updated_at'>

/** An entry's JSON around its version, and when it was made and changed. */
function entryTexts(entry: KnownEntry, value: string): [string, string, string, string] {
  const { scope, key, secret_paths, tags, description, updated_by } = entry
  const owner = entry.owner === '' ? null : entry.owner
  const environment = entry.environment === '' ? null : entry.environment
  const members = (part: object): string => JSON.stringify(part).slice(1, -1)
  return [
    `{${members({ scope, key })},"version":`,
    `,${members({ secret_paths, tags, description })},"created_at":"`,
    '","updated_at":"',
    `",${members({ updated_by, owner, environment })},"value":${value}}`,
  ]
}

/** A revision as callers see it; secrets stay masked. */
export function revisionOut(row: Revision, withValue: boolean): JsonTree {
  const { version, operation, created_at, tags, description, secret_paths, request_id } = row
  const actor = { type: row.actor_type, id: row.actor_id, name: row.actor_name }
  const value = withValue ? { value: maskValue(parseStoredJson(row.value)) } : {}
  return { version, operation, created_at, actor, tags, description, secret_paths, request_id, ...value }
}
