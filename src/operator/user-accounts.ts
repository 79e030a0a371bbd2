import { asCaller } from '../db/as-caller.js'
import { inTransaction } from '../db/transaction.js'
import { type WantedUser, applyChange, assertNoNamesake } from '../db/user-changes.js'
import {
  NO_PASSWORD,
  ROLES,
  type Role,
  type User,
  createUser,
  lockOwners,
  usernameTaken,
  usersPage,
} from '../db/users.js'
import { AppError } from '../errors.js'
import { username } from '../routes/schemas.js'
import { newHashFormat } from '../routes/sign-in.js'
import { type Command, type Operation, WrongUsage, checked, operatorEvent } from './command.js'
import { namedUser, withPassword } from './named-user.js'
import { newPassword } from './password-input.js'
import { table } from './printing.js'

const PAGE = 1000

const create: Command = {
  name: 'user create',
  usage: '<name> [--role R] [--must-change] [--password-stdin]',
  words: ['user name'],
  options: ['role', 'must-change', 'password-stdin'],
  async prepare([name = ''], given) {
    const role = readRole(given.role ?? 'user')
    return async (operation) => {
      const { db, caller, passwords } = operation
      const wanted = checked(username, 'user name', name)
      if (role === 'service' && given['password-stdin'] === true)
        throw new AppError('validation_failed', 'A user of the role service has no password.')
      await assertNoNamesake(db, wanted)
      const password = role === 'service' ? null : await newPassword(operation, given, wanted)
      const user = {
        username: wanted,
        passwordHash:
          password === null ? NO_PASSWORD : await passwords.hash(password.text, await newHashFormat(db)),
        role,
        mustChangePassword: password !== null && (password.isMade || given['must-change'] === true),
      }
      const event = operatorEvent(caller, {
        action: 'user.create',
        target: null,
        message: `User ${wanted} created`,
        metadata: { username: wanted, role },
      })
      const [created] = await asCaller(db, caller, createUser(db, user, event)).catch(usernameTaken)
      if (created === undefined) throw new AppError('internal', 'The user was not created.')
      return withPassword(created, `user ${wanted} created: id ${created.id}, role ${role}`, password)
    }
  },
}

const list: Command = {
  name: 'user list',
  usage: '[--role R] [--inactive]',
  words: [],
  options: ['role', 'inactive'],
  async prepare(_, given) {
    const role = given.role === undefined ? undefined : readRole(given.role)
    return async ({ db, caller }) => {
      const filters = { role, isActive: given.inactive === true ? false : undefined }
      const users: User[] = []
      for (let page: User[] | undefined; page === undefined || page.length === PAGE;) {
        page = await asCaller(db, caller, usersPage(db, filters, users.at(-1)?.id ?? 0, PAGE))
        users.push(...page)
      }
      const rows = users.map((user) => [
        String(user.id),
        user.username,
        user.role,
        user.is_active ? 'active' : 'inactive',
        user.last_login ?? 'never',
      ])
      return { json: users, lines: table(['ID', 'NAME', 'ROLE', 'STATE', 'LAST SIGN-IN'], rows) }
    }
  },
}

const deactivate: Command = {
  name: 'user deactivate',
  usage: '<name>',
  words: ['user name'],
  options: [],
  async prepare([name = '']) {
    return async (operation) => {
      const user = await change(operation, name, { is_active: false }, 'user.deactivate')
      return { json: user, lines: [`user ${user.username} is inactive: no sessions, and keys do not work`] }
    }
  },
}

const activate: Command = {
  name: 'user activate',
  usage: '<name>',
  words: ['user name'],
  options: [],
  async prepare([name = '']) {
    return async (operation) => {
      const user = await change(operation, name, { is_active: true }, 'user.change')
      return { json: user, lines: [`user ${user.username} is active`] }
    }
  },
}

const role: Command = {
  name: 'user role',
  usage: '<name> <role>',
  words: ['user name', `role (${ROLES.join(', ')})`],
  options: [],
  async prepare([name = '', wanted = '']) {
    const role = readRole(wanted)
    return async (operation) => {
      const user = await change(operation, name, { role }, 'user.change')
      return { json: user, lines: [`user ${user.username} has the role ${user.role}`] }
    }
  },
}

export const ACCOUNT_COMMANDS: readonly Command[] = [create, list, deactivate, activate, role]

async function change(operation: Operation, name: string, wanted: WantedUser, action: string): Promise<User> {
  const { db, caller } = operation
  return await inTransaction(db, caller, async (tx) => {
    await tx.executeQuery(lockOwners(tx))
    const user = await namedUser(tx, operation, name)
    return await applyChange(tx, user, wanted, (change) =>
      operatorEvent(caller, {
        action,
        target: `users/${user.id}`,
        message: `User changed: ${Object.keys(change).join(', ')}`,
        metadata: { ...change },
      }),
    )
  })
}

function readRole(text: string): Role {
  const role = ROLES.find((role) => role === text)
  if (role === undefined) throw new WrongUsage(`a role is one of ${ROLES.join(', ')}`)
  return role
}
