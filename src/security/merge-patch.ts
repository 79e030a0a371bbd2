import { isJsonObject } from './json-tree.js'
import type { JsonTree } from './json-tree.js'

/** RFC 7396: objects merge, null removes, anything else replaces. Neither argument is changed. */
export function mergePatch(target: JsonTree, patch: JsonTree): JsonTree {
  if (!isJsonObject(patch)) return patch
  const merged = new Map(isJsonObject(target) ? Object.entries(target) : [])
  for (const [name, value] of Object.entries(patch)) {
    if (value === null) merged.delete(name)
    else merged.set(name, mergePatch(merged.get(name) ?? null, value))
  }
  return Object.fromEntries(merged)
}
