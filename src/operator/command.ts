import type { Readable } from 'node:stream'
import type { ParseArgsConfig, parseArgs } from 'node:util'
import type { z } from 'zod'
import type { Caller } from '../db/as-caller.js'
import { NO_REQUEST, type ServiceEvent } from '../db/audit.js'
import type { Db } from '../db/database.js'
import type { Env } from '../env.js'
import { AppError } from '../errors.js'
import type { JsonObject } from '../security/json-tree.js'
import type { Passwords } from '../security/passwords.js'
import type { Terminal } from './terminal.js'

/** All there are; each command names those it takes. No password among them: the process list shows arguments. */
export const OPTIONS = {
  role: { type: 'string' },
  scope: { type: 'string', multiple: true },
  expires: { type: 'string' },
  inactive: { type: 'boolean' },
  'must-change': { type: 'boolean' },
  'password-stdin': { type: 'boolean' },
  json: { type: 'boolean' },
} as const satisfies NonNullable<ParseArgsConfig['options']>

/** The options as they were given. */
export type Given = ReturnType<typeof parseArgs<{ options: typeof OPTIONS }>>['values']

export interface Command {
  /** The words that name it, then what follows them, as usage shows it. */
  name: string
  usage: string
  /** The words that must follow, as they are asked for; a further one may follow where `optional` says so. */
  words: readonly string[]
  optional?: boolean
  options: readonly (keyof typeof OPTIONS)[]
  /** Reads and asks for what is given; throws WrongUsage before anything is looked at. What comes back does it. */
  prepare(words: readonly string[], given: Given, terminal: Terminal | null): Promise<Work>
}

export type Work = (operation: Operation) => Promise<Answer>

/** What a command works with. */
export interface Operation {
  db: Db
  env: Env
  passwords: Passwords
  /** The system, under the operator's name. */
  caller: Caller
  terminal: Terminal | null
  stdin: Readable
}

export interface Answer {
  /** One line with --json. */
  json: object
  /** For people. */
  lines: readonly string[]
  /** Goes to standard error in either form. */
  warning?: string
}

/** The command line cannot be understood: exit code 2. */
export class WrongUsage extends Error {}

/** The audit event of what an operator does. */
export function operatorEvent(
  caller: Caller,
  event: { action: string; target: string | null; message: string; metadata?: JsonObject },
): ServiceEvent {
  return { caller, correlation: NO_REQUEST, eventType: 'user_action', level: 'warning', ...event }
}

/** The text as the API would read it; throws `validation_failed` in its words. */
export function checked<T>(schema: z.ZodType<T>, what: string, text: string): T {
  const { success, data, error } = schema.safeParse(text)
  if (success) return data
  const reasons = error.issues.map(({ message }) => message).join(', ')
  throw new AppError('validation_failed', `${what}: ${reasons}`)
}
