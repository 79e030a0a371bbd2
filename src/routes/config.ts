import { setTimeout as sleep } from 'node:timers/promises'
import { createRoute, z } from '@hono/zod-openapi'
import type { Context } from 'hono'
import type { Compilable } from 'kysely'
import { asCaller } from '../db/as-caller.js'
import type { ServiceEvent } from '../db/audit.js'
import {
  type Address,
  type EntryWrite,
  type Expected,
  type StoredEntry,
  entryAt,
  entryAtAudited,
  revisionsOf,
  writeEntry,
  writeEntryOnce,
} from '../db/config.js'
import type { Db } from '../db/database.js'
import type { MadeOnce, OnceValues } from '../db/idempotency.js'
import { sqlState, violatesUnique } from '../db/pg-errors.js'
import { AppError, notFound, validationFailed } from '../errors.js'
import { PLACEHOLDER, hasPlaceholder, maskValue, revealValue, sealValue } from '../security/config-secrets.js'
import { parseStoredJson, stringifyJson } from '../security/json-text.js'
import { type JsonTree, childAt, exceedsNodes, isJsonObject, toPointer } from '../security/json-tree.js'
import { mergePatch } from '../security/merge-patch.js'
import type { KeyRing } from '../security/secret-box.js'
import { type CallerDeps, guard, lookUp, requireFreshPassword } from './caller.js'
import { ADDRESSES, addressFor, addressText } from './config-address.js'
import { type AppEnv, setHeader } from './context.js'
import { decodeCursor, limit, pageOf } from './cursor.js'
import {
  anyJson,
  entryAnswer,
  entryResponse,
  maskedText,
  entrySchema,
  putBody,
  revisionOut,
  revisionSchema,
  sealAddress,
} from './config-entry.js'
import { type IdempotencyDeps, idempotencyKey, idempotent, idempotentStatement } from './idempotency.js'
import { etag, isUnchanged, preconditionOf, preconditionRequired, stale } from './preconditions.js'
import { json, problems } from './schemas.js'
import { createRouter, jsonBody, jsonTree } from './validate.js'

export interface ConfigDeps extends IdempotencyDeps, CallerDeps {
  /** null without ENCRYPTION_KEY: what holds a secret is refused. */
  ring: KeyRing | null
}

export const MAX_VALUE_BYTES = 256 * 1024
/** How often a change without If-Match is tried again when others change the same entry. */
const MAX_ATTEMPTS = 100
/** What a value may be made of: sealing and masking visit every node. */
const MAX_NODES = 20_000

const entryShown = { description: 'The entry, secrets masked; ETag is its version', ...json(entrySchema) }

/** Entries of all four scopes: read, create or replace, merge, delete; every change has its revision. */
export function configRoutes(deps: ConfigDeps) {
  const { db, ring } = deps
  const router = createRouter()

  for (const { scope, path, params, query } of ADDRESSES) {
    const operation = scope === 'user' ? 'config.read_own' : 'config.read_shared'
    const reads = guard(deps, operation)
    const writes = guard(
      deps,
      scope === 'user' ? 'config.write_own' : 'config.write_shared',
      jsonBody('strict'),
    )
    const environmentOf = (given: object): string | undefined =>
      (given as { environment?: string }).environment

    router.openapi(
      createRoute({
        method: 'get',
        path,
        summary: `Read a ${scope} entry`,
        ...reads,
        request: { params, query: query.extend({ reveal: z.enum(['true', 'false']).optional() }) },
        responses: { 200: entryShown, 304: { description: 'Unchanged since If-None-Match' }, ...problems },
      }),
      async (c) => {
        const { reveal, ...rest } = c.req.valid('query')
        if (reveal === 'true') {
          await lookUp(deps, c, operation)
          requireReveal(c)
        }
        const caller = c.get('caller')
        const address = addressFor(caller, scope, c.req.valid('param'), environmentOf(rest))
        const statement =
          reveal === 'true'
            ? entryAtAudited(db, address, configEvent(c, address, 'config.reveal'))
            : entryAt(db, address)
        const [entry] = await asCaller(db, caller, statement)
        if (entry === undefined) throw notFound('entry')
        if (reveal !== 'true' && isUnchanged(c, entry.version))
          return c.body(null, 304, { etag: etag(entry.version) }) as never
        if (reveal === 'true') setHeader(c, 'cache-control', 'no-store')
        const value =
          reveal === 'true'
            ? stringifyJson(revealValue(ring, sealAddress(address), parseStoredJson(entry.value)))
            : maskedText(entry.value)
        return entryResponse(c, entry, 200, value)
      },
    )

    router.openapi(
      createRoute({
        method: 'put',
        path,
        summary: `Create or replace a ${scope} entry`,
        ...writes,
        parameters: [idempotencyKey],
        request: { params, query, body: { required: true, ...json(putBody) } },
        responses: { 200: entryShown, 201: entryShown, ...problems },
      }),
      async (c) => {
        const address = addressFor(
          c.get('caller'),
          scope,
          c.req.valid('param'),
          environmentOf(c.req.valid('query')),
        )
        const body = c.req.valid('json')
        const precondition: Expected = preconditionOf(c) ?? { is: 'absent' }
        const write = (stored: JsonTree | undefined): EntryWrite => ({
          operation: 'put',
          value: sealedText(address, body.secret_paths, body.value as JsonTree, stored),
          secretPaths: body.secret_paths,
          tags: body.tags,
          description: body.description,
        })
        const status = precondition.is === 'absent' ? 201 : 200
        const answer = (entry: StoredEntry | undefined) => {
          if (entry === undefined) throw notAsExpected(c)
          return entryResponse(c, entry, status, maskedText(entry.value))
        }
        // What the placeholders stand for has to be read first.
        if (hasPlaceholder(body.value as JsonTree))
          return await idempotent(c, deps, async (db) =>
            answer(
              await changeStored(db, c, address, precondition, (stored) =>
                write(stored && parseStoredJson(stored.value)),
              ),
            ),
          )
        return await idempotentStatement(c, deps, {
          change: async () => answer(await tryWrite(db, c, address, write(undefined), precondition)),
          once: (values) => tryWriteOnce(c, address, write(undefined), precondition, values),
          refuse() {
            throw notAsExpected(c)
          },
          status,
        })
      },
    )

    router.openapi(
      createRoute({
        method: 'patch',
        path,
        summary: `Merge into a ${scope} entry's value (RFC 7396)`,
        ...writes,
        parameters: [idempotencyKey],
        request: {
          params,
          query,
          body: { required: true, content: { 'application/merge-patch+json': { schema: anyJson } } },
        },
        responses: { 200: entryShown, ...problems },
      }),
      async (c) => {
        const address = addressFor(
          c.get('caller'),
          scope,
          c.req.valid('param'),
          environmentOf(c.req.valid('query')),
        )
        const patch = (await c.req.json<JsonTree>()) as JsonTree
        const precondition = preconditionOf(c) ?? { is: 'present' }
        const merged = (current: StoredEntry | undefined): EntryWrite => {
          if (current === undefined) throw notFound('entry')
          const stored = parseStoredJson(current.value)
          const masked = maskValue(stored)
          refusePatchBelowSecret(masked, patch, [])
          return {
            operation: 'patch',
            value: sealedText(address, current.secret_paths, mergePatch(masked, patch), stored),
            secretPaths: current.secret_paths,
            tags: current.tags,
            description: current.description,
          }
        }
        return await idempotent(c, deps, async (db) => {
          const entry = await changeStored(db, c, address, precondition, merged)
          if (entry === undefined) throw stale()
          return entryResponse(c, entry, 200, maskedText(entry.value))
        })
      },
    )

    router.openapi(
      createRoute({
        method: 'delete',
        path,
        summary: `Delete a ${scope} entry; its versions go on when it is created again`,
        ...writes,
        parameters: [idempotencyKey],
        request: { params, query },
        responses: { 204: { description: 'Deleted' }, ...problems },
      }),
      async (c) => {
        const address = addressFor(
          c.get('caller'),
          scope,
          c.req.valid('param'),
          environmentOf(c.req.valid('query')),
        )
        const tombstone: EntryWrite = {
          operation: 'delete',
          value: 'null',
          secretPaths: [],
          tags: [],
          description: null,
        }
        const asked = preconditionOf(c)
        // No version is 0: nothing is deleted, and the refusal says why.
        const expected: Expected =
          asked === undefined || asked.is === 'absent' ? { is: 'version', versions: [0] } : asked
        const refuse = async (): Promise<never> => {
          const [current] = await asCaller(db, c.get('caller'), entryAt(db, address))
          throw current === undefined ? notFound('entry') : notAsExpected(c)
        }
        return await idempotentStatement(c, deps, {
          async change() {
            const deleted = await tryWrite(db, c, address, tombstone, expected)
            return deleted === undefined ? await refuse() : c.body(null, 204)
          },
          once: (values) => tryWriteOnce(c, address, tombstone, expected, values),
          refuse,
          status: 204,
        })
      },
    )

    router.openapi(
      createRoute({
        method: 'get',
        path: `${path}/revisions`,
        summary: `The versions of a ${scope} entry, newest first`,
        ...reads,
        request: {
          params,
          query: query.extend({
            limit,
            cursor: z.string().max(512).optional(),
            values: z.enum(['true', 'false']).optional(),
          }),
        },
        responses: {
          200: {
            description: 'A page of revisions; secrets masked',
            ...json(z.object({ items: z.array(revisionSchema), next_cursor: z.string().nullable() })),
          },
          ...problems,
        },
      }),
      async (c) => {
        const { limit: size, cursor, values, ...rest } = c.req.valid('query')
        const address = addressFor(c.get('caller'), scope, c.req.valid('param'), environmentOf(rest))
        const before =
          cursor === undefined
            ? undefined
            : decodeCursor(
                cursor,
                address,
                z.tuple([
                  z
                    .int()
                    .min(1)
                    .max(2 ** 31 - 1),
                ]),
              )[0]
        const rows = await asCaller(db, c.get('caller'), revisionsOf(db, address, size + 1, before))
        if (rows.length === 0 && cursor === undefined) throw notFound('entry')
        const { items, next_cursor } = pageOf(rows, size, address, ({ version }) => [version])
        return jsonTree(
          c,
          { items: items.map((row) => revisionOut(row, values === 'true')), next_cursor },
          200,
        )
      },
    )
  }
  return router

  /** Reads, changes and writes on the version read; tried again when the caller named no version. */
  async function changeStored(
    db: Db,
    c: Context<AppEnv>,
    address: Address,
    precondition: Expected,
    change: (current: StoredEntry | undefined) => EntryWrite,
  ): Promise<StoredEntry | undefined> {
    for (let attempt = 1; attempt <= MAX_ATTEMPTS; attempt += 1) {
      const [current] = await asCaller(db, c.get('caller'), entryAt(db, address))
      const write = change(current)
      if (precondition.is === 'absent')
        return current === undefined ? await tryWrite(db, c, address, write, precondition) : undefined
      if (current === undefined) return undefined
      if (precondition.is === 'version' && !precondition.versions.includes(current.version)) return undefined
      const written = await tryWrite(db, c, address, write, { is: 'version', versions: [current.version] })
      if (written !== undefined || precondition.is === 'version') return written
      await sleep(Math.random() * Math.min(10 * attempt, 200))
    }
    throw new AppError('conflict', 'Others keep changing this entry; try again.', { retryAfterSeconds: 1 })
  }

  /**
   * The entry written; undefined when what was expected is not there. A statement that fails throws,
   * always: inside a transaction nothing can follow it.
   */
  async function tryWrite(
    db: Db,
    c: Context<AppEnv>,
    address: Address,
    write: EntryWrite,
    expected: Expected,
  ): Promise<StoredEntry | undefined> {
    const event = configEvent(c, address, `config.${write.operation}`)
    return await attempt(db, c, writeEntry(db, address, write, expected, event))
  }

  /** The same under an Idempotency-Key, with its answer. */
  async function tryWriteOnce(
    c: Context<AppEnv>,
    address: Address,
    write: EntryWrite,
    expected: Expected,
    values: OnceValues,
  ): Promise<MadeOnce | undefined> {
    const { operation, secretPaths: secret_paths, tags, description, value } = write
    const updated_by = c.get('caller').actor.name
    const answer =
      operation === 'delete'
        ? undefined
        : entryAnswer({ ...address, secret_paths, tags, description, updated_by }, maskedText(value))
    const event = configEvent(c, address, `config.${operation}`)
    return await attempt(db, c, writeEntryOnce(db, address, write, expected, event, values, answer))
  }

  function sealedText(
    address: Address,
    secretPaths: string[],
    next: JsonTree,
    stored: JsonTree | undefined,
  ): string {
    if (exceedsNodes(next, MAX_NODES))
      throw new AppError('too_large', `A value has at most ${MAX_NODES} parts.`)
    if (Buffer.byteLength(stringifyJson(next)) > MAX_VALUE_BYTES) {
      throw new AppError('too_large', `A value has at most ${MAX_VALUE_BYTES} bytes.`)
    }
    return stringifyJson(sealValue({ ring, address: sealAddress(address), secretPaths, next, stored }))
  }
}

/** What is sealed as a whole has no members that a patch could merge with: they would be lost in silence. */
function refusePatchBelowSecret(masked: JsonTree | undefined, patch: JsonTree, place: string[]): void {
  if (!isJsonObject(patch)) return
  if (masked === PLACEHOLDER)
    throw validationFailed(toPointer(place), 'This is sealed as a whole: send it in full by PUT.')
  for (const [name, child] of Object.entries(patch))
    refusePatchBelowSecret(childAt(masked, name), child, [...place, name])
}

async function attempt<R>(db: Db, c: Context<AppEnv>, statement: Compilable<R>): Promise<R | undefined> {
  try {
    const [row] = await asCaller(db, c.get('caller'), statement)
    return row
  } catch (error) {
    // Someone else created it in the same moment.
    if (violatesUnique(error, 'config_entries_pkey')) throw notAsExpected(c)
    if (sqlState(error) === '42501')
      throw new AppError('forbidden', 'You may not change this entry.', { cause: error })
    throw error
  }
}

/** Why a write met another state than it is for: one that the caller named, or none where one is required. */
function notAsExpected(c: Context<AppEnv>): AppError {
  return preconditionOf(c) === undefined ? preconditionRequired() : stale()
}

function requireReveal(c: Context<AppEnv>): void {
  const caller = c.get('caller')
  if (caller.sessionId === null) {
    if (!caller.scopes.includes('config:reveal')) {
      throw new AppError('insufficient_scope', 'The key lacks the scope config:reveal.')
    }
    return
  }
  if (caller.role !== 'owner') throw new AppError('forbidden', 'Only owners may read secrets in the clear.')
  requireFreshPassword(c)
}

function configEvent(c: Context<AppEnv>, address: Address, action: string): ServiceEvent {
  const caller = c.get('caller')
  const correlation = c.get('correlation')
  return {
    caller,
    correlation,
    eventType: 'config_change',
    level: 'info',
    action,
    target: addressText(address),
    message: `Configuration: ${action.slice('config.'.length)} ${addressText(address)}`,
  }
}
