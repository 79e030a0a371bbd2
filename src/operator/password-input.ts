import type { Readable } from 'node:stream'
import { AppError } from '../errors.js'
import { createPassword } from '../security/tokens.js'
import type { Given, Operation } from './command.js'
import type { Terminal } from './terminal.js'

const MAX_TRIES = 3
/** Far more than any password has: who sends more has mixed up the file. */
const MAX_BYTES = 4096

export interface NewPassword {
  text: string
  /** By us: whoever asked for it has to be told. */
  isMade: boolean
}

/**
 * A new password: from standard input when asked for, typed twice on a terminal, else (or when nothing is typed) made.
 * Throws `validation_failed` for one that the API would refuse too.
 */
export async function newPassword(
  { passwords, terminal, stdin }: Pick<Operation, 'passwords' | 'terminal' | 'stdin'>,
  given: Given,
  username: string,
): Promise<NewPassword> {
  const accept = (password: string): Promise<void> => passwords.assertAcceptable(password, { username })
  if (given['password-stdin'] === true) {
    const password = await onlyLine(stdin)
    await accept(password)
    return { text: password, isMade: false }
  }
  const typed = terminal === null ? '' : await typeTwice(terminal, accept)
  return typed === '' ? { text: createPassword(), isMade: true } : { text: typed, isMade: false }
}

async function typeTwice(terminal: Terminal, accept: (password: string) => Promise<void>): Promise<string> {
  return await terminal.converse(async ({ askSecret }) => {
    let reason = ''
    for (let tries = 0; tries < MAX_TRIES; tries += 1) {
      const password = await askSecret(`${reason}new password (nothing: one is made): `)
      if (password === '') return ''
      try {
        await accept(password)
      } catch (error) {
        if (!(error instanceof AppError) || error.code !== 'validation_failed') throw error
        reason = `${error.message}\n`
        continue
      }
      if ((await askSecret('the same again: ')) === password) return password
      reason = 'These are not the same.\n'
    }
    throw new AppError('validation_failed', `${reason.trim()} Nothing was changed.`)
  })
}

async function onlyLine(stdin: Readable): Promise<string> {
  const chunks: Buffer[] = []
  let size = 0
  for await (const chunk of stdin) {
    chunks.push(Buffer.from(chunk as Buffer))
    size += chunks.at(-1)?.length ?? 0
    if (size > MAX_BYTES) throw unusable('is too long for a password')
  }
  let text: string
  try {
    text = new TextDecoder('utf-8', { fatal: true }).decode(Buffer.concat(chunks))
  } catch {
    throw unusable('is not UTF-8')
  }
  const password = text.replace(/\r?\n$/, '')
  if (password === '') throw unusable('holds no password')
  if (/[\r\n]/.test(password)) throw unusable('holds more than one line')
  return password
}

function unusable(why: string): AppError {
  return new AppError('validation_failed', `The standard input ${why}; nothing was changed.`)
}
