import { asApp, asCaller } from '../db/as-caller.js'
import { endSessions } from '../db/sessions.js'
import { anyAttempt } from '../db/throttle.js'
import { inTransaction } from '../db/transaction.js'
import { forgetFailures, replacePassword } from '../db/user-changes.js'
import { bucketNames, bucketsOf, newHashFormat } from '../routes/sign-in.js'
import { type KeyRing, parseEncryptionKeys } from '../security/secret-box.js'
import { type Command, operatorEvent } from './command.js'
import { namedUser, withPassword } from './named-user.js'
import { newPassword } from './password-input.js'

const rotatePassword: Command = {
  name: 'user rotate-password',
  usage: '<name> [--password-stdin]',
  words: ['user name'],
  options: ['password-stdin'],
  async prepare([name = ''], given) {
    return async (operation) => {
      const { db, caller, passwords } = operation
      // Before anything is typed or hashed.
      const { username } = await namedUser(db, operation, name)
      const password = await newPassword(operation, given, username)
      const hash = await passwords.hash(password.text, await newHashFormat(db))
      const user = await inTransaction(db, caller, async (tx) => {
        const user = await namedUser(tx, operation, name)
        const event = operatorEvent(caller, {
          action: 'user.rotate_password',
          target: `users/${user.id}`,
          message: password.isMade ? 'Password made anew' : 'Password set anew',
        })
        return await replacePassword(tx, user, hash, event)
      })
      return withPassword(user, `user ${username} has a new password; all sessions are over`, password)
    }
  },
}

const unlock: Command = {
  name: 'user unlock',
  usage: '<name>',
  words: ['user name'],
  options: [],
  async prepare([name = '']) {
    return async (operation) => {
      const { db, caller, env } = operation
      const ring = env.ENCRYPTION_KEY === undefined ? null : parseEncryptionKeys(env.ENCRYPTION_KEY)
      const { user, forgotten } = await inTransaction(db, caller, async (tx) => {
        const user = await namedUser(tx, operation, name)
        const event = operatorEvent(caller, {
          action: 'user.unlock',
          target: `users/${user.id}`,
          message: 'Failed sign-ins forgotten',
        })
        const accounts = accountNames(ring, user.username)
        return { user, forgotten: await forgetFailures(tx, caller, user, accounts, event) }
      })
      const { id, username } = user
      const isSuspicious = forgotten === 0 && (await asApp(db, anyAttempt(db))).length > 0
      return {
        json: { id, username, attempts_forgotten: forgotten },
        lines: [`user ${username} may try again at once`],
        ...(isSuspicious ? { warning: nothingForgotten(ring, username) } : {}),
      }
    }
  },
}

const endAllSessions: Command = {
  name: 'user end-sessions',
  usage: '<name>',
  words: ['user name'],
  options: [],
  async prepare([name = '']) {
    return async (operation) => {
      const { db, caller } = operation
      return await inTransaction(db, caller, async (tx) => {
        const { id, username } = await namedUser(tx, operation, name)
        const event = operatorEvent(caller, {
          action: 'user.end_sessions',
          target: `users/${id}`,
          message: 'All sessions ended',
        })
        const ended = await asCaller(tx, caller, endSessions(tx, id, null, event))
        return {
          json: { id, username, sessions_ended: ended.length },
          lines: [`user ${username} has no sessions any more; ended now: ${ended.length}`],
        }
      })
    }
  },
}

export const ACCESS_COMMANDS: readonly Command[] = [rotatePassword, unlock, endAllSessions]

/** Under each key and under none: the service may write with another one of them, or have none yet. */
function accountNames(ring: KeyRing | null, username: string): string[] {
  const rings =
    ring === null ? [] : [...ring.keys.keys()].map((writer): KeyRing => ({ writer, keys: ring.keys }))
  return [...rings, null].map((each) => bucketsOf({ bucketName: bucketNames(each) }, username, null).account)
}

function nothingForgotten(ring: KeyRing | null, username: string): string {
  const here = ring === null ? 'ENCRYPTION_KEY is not set here' : "this ENCRYPTION_KEY is not the service's"
  return `nothing was counted against ${username}; if sign-ins are refused all the same, ${here}: the counts are kept under names made with it`
}
