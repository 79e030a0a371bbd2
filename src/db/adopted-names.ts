import { usernameKey } from './users.js'

/** Longer ones do not fit the column; a name of 255 characters may fold to more. */
const MAX_KEY_LENGTH = 255

export interface NamedUser {
  id: number
  username: string
  username_key: string | null
}

export interface FoldedNames {
  /** By id: the key of a user who has none yet and whose name folds to no other one's. */
  keys: Map<number, string>
  /** Those whose names fold to the same key: whoever of them has none keeps none, and signs in by the exact name. */
  clashes: NamedUser[][]
}

/** Who can be found without case. The older application tells names apart by case, this service does not. */
export function foldNames(users: readonly NamedUser[]): FoldedNames {
  const byKey = new Map<string, NamedUser[]>()
  for (const user of users) {
    const key = user.username_key ?? usernameKey(user.username)
    const same = byKey.get(key)
    if (same === undefined) byKey.set(key, [user])
    else same.push(user)
  }
  const folded: FoldedNames = { keys: new Map(), clashes: [] }
  for (const [key, same] of byKey) {
    const [user] = same
    if (same.length > 1) folded.clashes.push(same)
    else if (user?.username_key === null && Array.from(key).length <= MAX_KEY_LENGTH)
      folded.keys.set(user.id, key)
  }
  return folded
}

/** Clashes for the operator; with ids, because two spellings of one name may look the same. */
export function describeClashes(clashes: readonly NamedUser[][]): string {
  const groups = clashes.map((same) =>
    same.map(({ id, username }) => `${quoted(username)} (${id})`).join(' and '),
  )
  return `these names are the same without case, so each signs in exactly as written: ${groups.join(', ')}`
}

/** A name as the operator is to read it: with its spaces, and without control characters. */
export function quoted(name: string): string {
  return JSON.stringify(name)
}

/**
 * Who of the adopted users (by ascending id) becomes the owner: the one named so, exactly or else without case,
 * if active; else the active one with the lowest id. null when none is active.
 */
export function chooseOwner<U extends { username: string; active: boolean }>(
  users: readonly U[],
  name: string | undefined,
): U | null {
  const key = name === undefined ? undefined : usernameKey(name)
  const folded = users.filter(({ username }) => usernameKey(username) === key)
  const named = users.find(({ username }) => username === name) ?? folded.find(({ active }) => active)
  return named?.active === true ? named : (users.find(({ active }) => active) ?? null)
}
