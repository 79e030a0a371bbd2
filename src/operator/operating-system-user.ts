import { userInfo } from 'node:os'
import type { Caller } from '../db/as-caller.js'
import { SYSTEM } from '../db/as-caller.js'

/** What the audit trail has room for. */
const MAX_LENGTH = 255

/**
 * The system under the name of whoever runs this process, as the operating system knows it and not as the environment
 * says: `cli:ann`, or `cli:uid 1000` where that number has no name (as in containers).
 */
export function operatorCaller(look: () => { username: string } = userInfo): Caller {
  return {
    ...SYSTEM,
    actor: { type: 'system', id: null, name: `cli:${nameOf(look)}`.slice(0, MAX_LENGTH) },
  }
}

function nameOf(look: () => { username: string }): string {
  try {
    const { username } = look()
    if (username !== '') return username
  } catch {
    // A number without a name is no reason not to work.
  }
  return `uid ${process.getuid?.() ?? 'unknown'}`
}
