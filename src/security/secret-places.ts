import { validationFailed } from '../errors.js'
import { fromPointer } from './json-tree.js'
import type { JsonTree } from './json-tree.js'
import { isSecretGroup, isSecretName } from './secret-names.js'

/** A place in a configuration value, with the name that counts there. */
export interface Spot {
  place: readonly string[]
  name: string
  /** At or below `api_keys` or `mcp_servers`. */
  inGroup: boolean
}

/**
 * The value itself, named by its key. A dotted key stands for a path: `api_keys.openai` is in the group like the
 * member `openai` of `api_keys`.
 */
export function rootSpot(key: string): Spot {
  return { place: [], name: key, inGroup: key.split('.').some(isSecretGroup) }
}

/** The spot of a child. An array hands its own name to its elements: what is in a list `client_secret` is secret. */
export function spotBelow(parent: Spot, node: JsonTree, part: string): Spot {
  const place = [...parent.place, part]
  if (Array.isArray(node)) return { ...parent, place }
  return { place, name: part, inGroup: parent.inGroup || isSecretGroup(part) }
}

// Every node is held against every path.
const MAX_SECRET_PATHS = 100

/**
 * Tells which nodes are secret: non-empty strings by name or group, and any value at a secret path (JSON Pointers,
 * `*` for any one name or index). Throws `validation_failed` for bad pointers and for more than 100.
 */
export function secretRule(secretPaths: readonly string[]): (node: JsonTree, spot: Spot) => boolean {
  if (secretPaths.length > MAX_SECRET_PATHS) {
    throw validationFailed('/secret_paths', `At most ${MAX_SECRET_PATHS} secret paths.`)
  }
  const patterns = secretPaths.map((path, index) => fromPointer(path, `/secret_paths/${index}`))
  return (node, { place, name, inGroup }) => {
    if (typeof node === 'string' && node !== '' && (inGroup || isSecretName(name))) return true
    return patterns.some(
      (pattern) =>
        pattern.length === place.length && pattern.every((part, i) => part === '*' || part === place[i]),
    )
  }
}
