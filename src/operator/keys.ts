import { type ApiKey, SCOPES, type Scope, createKey, deleteKey, keysPage } from '../db/api-keys.js'
import { asCaller } from '../db/as-caller.js'
import { inTransaction } from '../db/transaction.js'
import { usernamesOf } from '../db/users.js'
import { AppError } from '../errors.js'
import { requireUsable } from '../routes/access.js'
import { idParam, keyName } from '../routes/schemas.js'
import { readTime } from '../routes/time.js'
import { createToken, hashToken } from '../security/tokens.js'
import { type Command, type Operation, WrongUsage, checked, operatorEvent } from './command.js'
import { namedUser } from './named-user.js'
import { table } from './printing.js'
import type { Terminal } from './terminal.js'

const PAGE = 1000

const create: Command = {
  name: 'key create',
  usage: '<user> <name> --scope S ... [--expires 2027-01-01]',
  words: ['user name', 'name of the key'],
  options: ['scope', 'expires'],
  async prepare([user = '', called = ''], given, terminal) {
    const scopes = readScopes(given.scope ?? [await askScopes(terminal)])
    const expiresAt = given.expires === undefined ? null : readExpiry(given.expires)
    return async (operation) => {
      const { db, caller } = operation
      const name = checked(keyName, 'name of the key', called)
      if (expiresAt !== null && Date.parse(expiresAt) <= Date.now())
        throw new AppError('validation_failed', '--expires: this is over already.')
      const token = createToken('gzk_')
      const { made, username } = await inTransaction(db, caller, async (tx) => {
        const holder = await namedUser(tx, operation, user)
        if (!holder.is_active) throw new AppError('conflict', 'The user is not active.')
        requireUsable(scopes, [holder.role])
        const key = {
          userId: holder.id,
          name,
          prefix: token.slice(0, 8),
          keyHash: hashToken(token),
          scopes,
          expiresAt,
        }
        const event = operatorEvent(caller, {
          action: 'api_key.create',
          target: `users/${holder.id}`,
          message: `Key made for ${holder.username}`,
          metadata: { name, scopes },
        })
        const [made] = await asCaller(tx, caller, createKey(tx, key, event))
        return { made, username: holder.username }
      })
      if (made === undefined) throw new AppError('internal', 'The key was not made.')
      return {
        json: { ...made, username, key: token },
        lines: [`key ${made.id} made for ${username}: ${scopes.join(' ')}`, 'shown once:', token],
      }
    }
  },
}

const list: Command = {
  name: 'key list',
  usage: '[user]',
  words: [],
  optional: true,
  options: [],
  async prepare([user]) {
    return async (operation) => {
      const keys = await allKeys(operation, user)
      const rows = keys.map((key) => [
        String(key.id),
        key.username,
        key.name,
        key.prefix,
        key.scopes.join(' '),
        key.expires_at ?? 'never',
        key.last_used_at ?? 'never',
      ])
      const titles = ['ID', 'USER', 'NAME', 'PREFIX', 'SCOPES', 'EXPIRES', 'LAST USED']
      return { json: keys, lines: table(titles, rows) }
    }
  },
}

const revoke: Command = {
  name: 'key revoke',
  usage: '<id>',
  words: ['id of the key'],
  options: [],
  async prepare([text = '']) {
    const id = idParam.safeParse(text).data
    if (id === undefined) throw new WrongUsage('a key is named by its id, a number (key list shows it)')
    return async ({ db, caller }) => {
      const event = operatorEvent(caller, {
        action: 'api_key.revoke',
        target: `api-keys/${id}`,
        message: 'Key revoked',
      })
      const [revoked] = await asCaller(db, caller, deleteKey(db, id, event))
      if (revoked === undefined) throw new AppError('not_found', `There is no key ${id}.`)
      return { json: { id, revoked: true }, lines: [`key ${id} revoked`] }
    }
  },
}

export const KEY_COMMANDS: readonly Command[] = [create, list, revoke]

async function allKeys(
  operation: Operation,
  user: string | undefined,
): Promise<(ApiKey & { username: string })[]> {
  const { db, caller } = operation
  const holder = user === undefined ? undefined : await namedUser(db, operation, user)
  const keys: (ApiKey & { username: string })[] = []
  for (;;) {
    const page = await asCaller(db, caller, keysPage(db, holder?.id, keys.at(-1)?.id, PAGE))
    if (page.length === 0) return keys
    const ids = [...new Set(page.map(({ user_id }) => user_id))]
    const names = new Map(
      (await asCaller(db, caller, usernamesOf(db, ids))).map(({ id, username }) => [id, username]),
    )
    for (const key of page) keys.push({ ...key, username: names.get(key.user_id) ?? '' })
  }
}

async function askScopes(terminal: Terminal | null): Promise<string> {
  if (terminal === null) throw new WrongUsage('key create needs --scope, once or several times')
  return await terminal.converse(({ ask }) => ask(`scopes, of ${SCOPES.join(' ')}: `))
}

/** Each may hold several, with commas or blanks between. */
function readScopes(given: readonly string[]): Scope[] {
  const words = given.flatMap((text) => text.split(/[\s,]+/)).filter((word) => word !== '')
  const scopes = SCOPES.filter((scope) => words.includes(scope))
  if (scopes.length === 0 || !words.every((word) => (SCOPES as readonly string[]).includes(word)))
    throw new WrongUsage(`a scope is one of ${SCOPES.join(', ')}`)
  return scopes
}

function readExpiry(text: string): string {
  try {
    return readTime(/^\d{4}-\d\d-\d\d$/.test(text) ? `${text}T00:00:00Z` : text)
  } catch {
    throw new WrongUsage(
      '--expires takes a date, which begins in UTC, or a time as 2027-01-01T09:00:00+01:00',
    )
  }
}
