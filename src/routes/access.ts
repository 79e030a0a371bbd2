import type { Scope } from '../db/api-keys.js'
import { ROLES, type Role } from '../db/users.js'
import { validationFailed } from '../errors.js'

/** What an operation takes of whoever asks for it. */
export interface Access {
  /** Who may, by session, and by key if the scope is there. */
  roles: readonly Role[]
  /** What a key must hold; null: no key does this, whatever it holds. */
  scope: Scope | null
  /** Whose things: one's own, those of users whom one outranks, or what belongs to nobody. */
  on: 'self' | 'below' | 'shared'
  /** For keys alone: a person has no business with it. */
  keysOnly?: true
  /** Also while the password must be changed. */
  beforePasswordChange?: true
  /** Who asks is looked up beforehand: the route needs the session itself, or acts before it asks as the caller. */
  lookedUp?: true
  /** Whoever is named by X-On-Behalf-Of is told of and lends no right. */
  attribution?: true
}

const PEOPLE: readonly Role[] = ROLES.filter((role) => role !== 'service')
const MANAGERS: readonly Role[] = ['owner', 'admin']
const MANAGING: readonly Role[] = [...MANAGERS, 'service']
const SHARED_READERS: readonly Role[] = [...MANAGING, 'user', 'subordinate_agent', 'auditor']
const REPORT_READERS: readonly Role[] = [...MANAGING, 'analyst', 'auditor']

/**
 * Who may do what: every route with a caller names its operation here, and requireAccess reads it. Rows are
 * decided by the database's policies as well, which do not know of this table.
 */
export const ACCESS = {
  'session.read': { roles: PEOPLE, scope: null, on: 'self', beforePasswordChange: true, lookedUp: true },
  'session.end': { roles: PEOPLE, scope: null, on: 'self', beforePasswordChange: true, lookedUp: true },
  'password.change': { roles: PEOPLE, scope: null, on: 'self', beforePasswordChange: true, lookedUp: true },
  'password.reauthenticate': { roles: PEOPLE, scope: null, on: 'self', lookedUp: true },
  'password.rotate': { roles: PEOPLE, scope: null, on: 'self', lookedUp: true },
  'password.verify': { roles: MANAGING, scope: 'auth:verify', on: 'shared', keysOnly: true, lookedUp: true },
  'sessions.validate': {
    roles: MANAGING,
    scope: 'sessions:validate',
    on: 'shared',
    keysOnly: true,
    lookedUp: true,
  },
  'sessions.list': { roles: PEOPLE, scope: null, on: 'self', lookedUp: true },
  'sessions.end': { roles: PEOPLE, scope: null, on: 'self', lookedUp: true },
  'users.me': { roles: ROLES, scope: 'users:read', on: 'self' },
  'users.list': { roles: MANAGING, scope: 'users:read', on: 'below' },
  'users.read': { roles: MANAGING, scope: 'users:read', on: 'below' },
  'users.create': { roles: MANAGING, scope: 'users:write', on: 'below', lookedUp: true },
  'users.change': { roles: MANAGING, scope: 'users:write', on: 'below', lookedUp: true },
  'users.deactivate': { roles: MANAGING, scope: 'users:write', on: 'below', lookedUp: true },
  'users.rotate_password': { roles: MANAGING, scope: 'users:write', on: 'below', lookedUp: true },
  'users.unlock': { roles: MANAGING, scope: 'users:write', on: 'below' },
  'users.list_sessions': { roles: MANAGING, scope: 'users:read', on: 'below' },
  'users.end_sessions': { roles: MANAGING, scope: 'users:write', on: 'below' },
  'keys.list': { roles: ROLES, scope: 'users:read', on: 'below' },
  'keys.create': { roles: PEOPLE, scope: null, on: 'below', lookedUp: true },
  'keys.delete': { roles: ROLES, scope: 'users:write', on: 'below' },
  'config.read_shared': { roles: SHARED_READERS, scope: 'config:read', on: 'shared' },
  'config.write_shared': { roles: MANAGING, scope: 'config:write', on: 'shared' },
  'config.read_own': { roles: PEOPLE, scope: 'config:read', on: 'self' },
  'config.write_own': { roles: PEOPLE, scope: 'config:write', on: 'self' },
  'audit.append': { roles: ROLES, scope: 'audit:write', on: 'self', attribution: true },
  'audit.read': { roles: ROLES, scope: 'audit:read', on: 'self' },
  'reports.read': { roles: REPORT_READERS, scope: 'reports:read', on: 'shared' },
} as const satisfies Record<string, Access>

export type Operation = keyof typeof ACCESS

/** Which roles a scope is of any use to: a key may hold no other, and one that its user lost gives nothing. */
export const SCOPE_ROLES: Record<Scope, readonly Role[]> = {
  'auth:verify': MANAGING,
  'sessions:validate': MANAGING,
  'act:on-behalf': MANAGING,
  'users:read': MANAGING,
  'users:write': MANAGING,
  'config:read': ROLES,
  'config:write': ROLES,
  'config:reveal': ['owner', 'service'],
  'audit:write': ROLES,
  'audit:read': ROLES,
  'reports:read': REPORT_READERS,
}

/** Throws `validation_failed` for a scope that one of these roles has no use for. */
export function requireUsable(scopes: readonly Scope[], roles: readonly Role[]): void {
  for (const [index, scope] of scopes.entries()) {
    const role = roles.find((role) => !SCOPE_ROLES[scope].includes(role))
    if (role !== undefined)
      throw validationFailed(`/scopes/${index}`, `The scope ${scope} is of no use to the role ${role}.`)
  }
}

/** 3 to 1, as gary.rank() of the database has it. */
export function rankOf(role: Role): number {
  if (role === 'owner') return 3
  return role === 'admin' ? 2 : 1
}

/** Whether users of that role are this one's to change, and the role this one's to give: as gary.manages() has it. */
export function outranks(role: Role, other: Role): boolean {
  if (role === 'owner') return true
  // A program has no rank of its own: its scope lets it act on all who are no managers.
  return role === 'service' ? rankOf(other) < 2 : rankOf(role) > rankOf(other)
}
