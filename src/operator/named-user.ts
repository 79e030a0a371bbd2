import { asCaller } from '../db/as-caller.js'
import type { Db, Tx } from '../db/database.js'
import { type User, userByName } from '../db/users.js'
import { AppError } from '../errors.js'
import type { Answer, Operation } from './command.js'
import type { NewPassword } from './password-input.js'

/** Who signs in by that name; throws `not_found` when nobody does. */
export async function namedUser(
  db: Db | Tx,
  { caller }: Pick<Operation, 'caller'>,
  name: string,
): Promise<User> {
  const [user] = await asCaller(db, caller, userByName(db, name))
  if (user === undefined) throw new AppError('not_found', `There is no user ${JSON.stringify(name)}.`)
  return user
}

/** The user, and the password if it was made here: what was typed is known to whoever typed it. */
export function withPassword(user: User, line: string, password: NewPassword | null): Answer {
  if (password?.isMade !== true) return { json: user, lines: [line] }
  return {
    json: { ...user, password: password.text },
    lines: [line, 'password, shown once; it must be changed at the first sign-in:', password.text],
  }
}
