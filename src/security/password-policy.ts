import type { Strength } from './hash-task.js'

/** Of zxcvbn's 0 to 4: fewer than a million guesses are 0 and 1. */
const MIN_SCORE = 2
/** What must be there beside the user name. */
const MIN_OTHER_CHARACTERS = 4
const SERVICE_WORDS = ['gary', 'zero', 'garyzero', 'gary-zero']

const REASONS: Record<string, string> = {
  topTen: 'it is one of the most common passwords',
  topHundred: 'it is one of the most common passwords',
  common: 'it is a common password',
  similarToCommon: 'it is much like a common password',
  pwned: 'it is a common password',
  wordByItself: 'it is a single word',
  namesByThemselves: 'it is a name',
  commonNames: 'it is a name',
  userInputs: 'it is built on the user name or the name of the service',
  straightRow: 'it is a row of keys on a keyboard',
  keyPattern: 'it is a pattern of keys on a keyboard',
  simpleRepeat: 'it repeats one character',
  extendedRepeat: 'it repeats itself',
  sequences: 'it is a sequence such as abc or 123',
  recentYears: 'it is a year',
  dates: 'it is a date',
}

/** Why a new password is refused by its looks alone, null when it is not. `minLength` is in code points. */
export function shapeFault(password: string, minLength: number, username: string | undefined): string | null {
  if (lengthOf(password) < minLength) return `A password needs at least ${minLength} characters.`
  if (username !== undefined && wraps(password, username)) {
    return `A password needs at least ${MIN_OTHER_CHARACTERS} characters beside the user name.`
  }
  return null
}

/** Names that someone who knows the user would try first. */
export function expectedWords(username: string | undefined): string[] {
  if (username === undefined) return SERVICE_WORDS
  return [
    username,
    ...username.split(/[^\p{L}\p{N}]+/u).filter((part) => lengthOf(part) > 2),
    ...SERVICE_WORDS,
  ]
}

/**
 * Why a password of that strength is refused, null when it is not: it would be among the first million guesses
 * (NIST SP 800-63B section 3.1.1.2, the blocklist; there are no rules of composition, as it asks).
 */
export function guessFault({ score, warning }: Strength): string | null {
  if (score >= MIN_SCORE) return null
  return `The password is too easy to guess: ${REASONS[warning ?? ''] ?? 'it is among the first that are tried'}.`
}

function wraps(password: string, username: string): boolean {
  const [text, name] = [fold(password), fold(username)]
  return name !== '' && text.includes(name) && lengthOf(text) - lengthOf(name) < MIN_OTHER_CHARACTERS
}

function fold(text: string): string {
  return text.normalize('NFKC').toLowerCase()
}

function lengthOf(text: string): number {
  return Array.from(text).length
}
