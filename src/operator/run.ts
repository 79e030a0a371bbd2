import type { Readable, Writable } from 'node:stream'
import { parseArgs } from 'node:util'
import type { Env } from '../env.js'
import { createPasswords } from '../security/passwords.js'
import { type Answer, type Command, type Given, OPTIONS, type Work, WrongUsage } from './command.js'
import { withDatabase } from './database.js'
import { failureLine } from './failure.js'
import { KEY_COMMANDS } from './keys.js'
import { operatorCaller } from './operating-system-user.js'
import { printable } from './printing.js'
import { setupLink } from './setup-link.js'
import { type Terminal, terminalOf } from './terminal.js'
import { ACCESS_COMMANDS } from './user-access.js'
import { ACCOUNT_COMMANDS } from './user-accounts.js'

const COMMANDS = [...ACCOUNT_COMMANDS, ...ACCESS_COMMANDS, ...KEY_COMMANDS, setupLink]

/** What belongs to a process; a test has its own. */
export interface Process {
  stdin: Readable & { isTTY?: boolean }
  stdout: Writable
  stderr: Writable & { isTTY?: boolean }
}

/** A line a command, for the usage of the whole program. */
export const OPERATOR_USAGE = COMMANDS.map((command) => `  ${usageOf(command)}`).join('\n')

/** Whether these arguments are for runOperator. */
export function isOperators(args: readonly string[]): boolean {
  return COMMANDS.some(({ name }) => name.split(' ')[0] === args[0])
}

/**
 * Runs an operator's command; never rejects. 0: done, and the answer is on standard output. 1: refused or failed, and
 * one line on standard error says why. 2: the arguments are wrong, and nothing was looked at.
 */
export async function runOperator(
  args: readonly string[],
  { stdin, stdout, stderr }: Process,
  environment: () => Env,
): Promise<0 | 1 | 2> {
  // Without a listener a reader that went away would end the process with a stack; write() tells it as well.
  stdout.on('error', () => {})
  stderr.on('error', () => {})
  const terminal = terminalOf(stdin, stderr)
  try {
    const { work, given } = await understand(args, terminal, stdin.isTTY === true)
    const env = environment()
    const answer = await perform(work, env, terminal, stdin)
    const text = given.json === true ? JSON.stringify(answer.json) : answer.lines.join('\n')
    await write(stdout, `${text}\n`).catch((cause: unknown) => {
      throw new Error(`It is done, but nobody was told: ${failureLine(cause)}`)
    })
    if (answer.warning !== undefined)
      await write(stderr, `warning: ${printable(answer.warning)}\n`).catch(() => undefined)
    return 0
  } catch (error) {
    const wrong = error instanceof WrongUsage
    await write(stderr, wrong ? `${error.message}\n` : `${failureLine(error)}\n`).catch(() => undefined)
    return wrong ? 2 : 1
  }
}

async function understand(
  args: readonly string[],
  terminal: Terminal | null,
  isTyped: boolean,
): Promise<{ work: Work; given: Given }> {
  const command = COMMANDS.find(({ name }) => name.split(' ').every((word, at) => args[at] === word))
  if (command === undefined) throw new WrongUsage(`usage: node dist/main.js <command>\n${OPERATOR_USAGE}`)
  try {
    const { words, given } = parse(command, args.slice(command.name.split(' ').length))
    if (given['password-stdin'] === true && isTyped)
      throw new WrongUsage('--password-stdin is for a pipe or a file; a terminal is asked without echo')
    const all = [...words, ...(await askFor(command.words.slice(words.length), command, terminal))]
    return { work: await command.prepare(all, given, terminal), given }
  } catch (error) {
    if (!(error instanceof WrongUsage)) throw error
    throw new WrongUsage(`${error.message}\nusage: node dist/main.js ${usageOf(command)}`)
  }
}

function parse(command: Command, args: readonly string[]): { words: string[]; given: Given } {
  const { values, positionals } = parseWords(args)
  const foreign = (Object.keys(values) as (keyof typeof OPTIONS)[]).find(
    (name) => name !== 'json' && !command.options.includes(name),
  )
  if (foreign !== undefined) throw new WrongUsage(`${command.name} takes no --${foreign}`)
  if (positionals.length > command.words.length + (command.optional === true ? 1 : 0))
    throw new WrongUsage(`${command.name}: too many arguments`)
  return { words: positionals, given: values }
}

function parseWords(args: readonly string[]) {
  try {
    return parseArgs({ args: [...args], options: OPTIONS, allowPositionals: true })
  } catch (error) {
    // It names the option, never what was given to it; behind it comes advice that leads away from here.
    throw new WrongUsage((error as Error).message.split('. ')[0])
  }
}

async function askFor(
  missing: readonly string[],
  command: Command,
  terminal: Terminal | null,
): Promise<string[]> {
  if (missing.length === 0) return []
  if (terminal === null) throw new WrongUsage(`${command.name} needs: ${missing.join(', ')}`)
  return await terminal.converse(async ({ ask }) => {
    const answers: string[] = []
    for (const word of missing) {
      const answer = (await ask(`${word}: `)).trim()
      if (answer === '') throw new WrongUsage(`${command.name} needs: ${word}`)
      answers.push(answer)
    }
    return answers
  })
}

async function perform(work: Work, env: Env, terminal: Terminal | null, stdin: Readable): Promise<Answer> {
  const passwords = createPasswords({
    cost: env.BCRYPT_COST,
    minLength: env.PASSWORD_MIN_LENGTH,
    threads: 1,
  })
  try {
    return await withDatabase(env, (db) =>
      work({ db, env, passwords, caller: operatorCaller(), terminal, stdin }),
    )
  } finally {
    await passwords.close()
  }
}

function usageOf({ name, usage }: Command): string {
  return `${name} ${usage}`.trim()
}

async function write(stream: Writable, text: string): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    stream.write(text, (error) => (error == null ? resolve() : reject(error)))
  })
}
