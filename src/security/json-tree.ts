import type { LosslessNumber } from 'lossless-json'
import { isLosslessNumber } from 'lossless-json'
import { validationFailed } from '../errors.js'

/** A number whose spelling JavaScript would change (`1.0`, twenty digits) is a LosslessNumber, any other is plain. */
export type JsonNumber = number | LosslessNumber
export type JsonTree = null | boolean | string | JsonNumber | JsonTree[] | JsonObject
export interface JsonObject {
  [name: string]: JsonTree
}

/** True for both kinds of number. A LosslessNumber is told by its symbol, which no JSON text can bring along. */
export function isJsonNumber(value: unknown): value is JsonNumber {
  return typeof value === 'number' || isLosslessNumber(value)
}

/** The nearest double, as JSON.parse would give it; Infinity beyond 1.8e308. */
export function nearestDouble(value: JsonNumber): number {
  return typeof value === 'number' ? value : Number(value.value)
}

/** True for `{...}`; false for arrays and numbers of either kind. */
export function isJsonObject(value: JsonTree | undefined): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value) && !isLosslessNumber(value)
}

/** The children of an array by index, of an object by name; nothing for a leaf. */
export function childrenOf(tree: JsonTree): [part: string, child: JsonTree][] {
  if (Array.isArray(tree)) return tree.map((child, index) => [String(index), child])
  return isJsonObject(tree) ? Object.entries(tree) : []
}

/** True when the tree has more than `most` values in it, found without visiting many more. */
export function exceedsNodes(tree: JsonTree, most: number): boolean {
  return nodesLeft(tree, most) < 0
}

/** What is left of `most` when each value has taken one. Recursive: for a tree whose depth is known. */
function nodesLeft(tree: JsonTree, most: number): number {
  let left = most - 1
  if (typeof tree !== 'object' || tree === null) return left
  const children = Array.isArray(tree) ? tree : isJsonObject(tree) ? Object.values(tree) : []
  for (let at = 0; at < children.length && left >= 0; at += 1) {
    left = nodesLeft(children[at] as JsonTree, left)
  }
  return left
}

/** The child at one part of a pointer, or undefined when there is none. */
export function childAt(tree: JsonTree | undefined, part: string): JsonTree | undefined {
  if (Array.isArray(tree)) return /^(0|[1-9]\d*)$/.test(part) ? tree[Number(part)] : undefined
  return isJsonObject(tree) && Object.hasOwn(tree, part) ? tree[part] : undefined
}

/** The tree with every direct child replaced; the very same tree when no child changes. Never changes its argument. */
export function mapChildren(tree: JsonTree, change: (child: JsonTree, part: string) => JsonTree): JsonTree {
  if (Array.isArray(tree)) {
    let list: JsonTree[] | undefined
    for (const [index, child] of tree.entries()) {
      const next = change(child, String(index))
      if (next !== child) (list ??= tree.slice())[index] = next
    }
    return list ?? tree
  }
  if (!isJsonObject(tree)) return tree
  let object: JsonObject | undefined
  for (const name of Object.keys(tree)) {
    const child = tree[name] as JsonTree
    const next = change(child, name)
    // fromEntries defines own properties, so a name like __proto__ stays a name.
    if (next !== child) (object ??= Object.fromEntries(Object.entries(tree)))[name] = next
  }
  return object ?? tree
}

/**
 * The object with its names rewritten. A rewritten name that is taken gets `_2`, `_3`, ...: no member is lost and
 * names that need no rewriting keep theirs. The very same object when no name changes.
 */
export function renameMembers(object: JsonObject, rewrite: (name: string) => string): JsonObject {
  if (Object.keys(object).every((name) => rewrite(name) === name)) return object
  const renamed = Object.entries(object).map(([name, child]) => ({ name, next: rewrite(name), child }))
  const taken = new Set(renamed.filter(({ name, next }) => name === next).map(({ name }) => name))
  if (taken.size === renamed.length) return object
  const counts = new Map<string, number>()

  function free(wanted: string): string {
    let count = counts.get(wanted) ?? 1
    let name = wanted
    while (taken.has(name)) name = `${wanted}_${++count}`
    counts.set(wanted, count)
    taken.add(name)
    return name
  }

  return Object.fromEntries(
    renamed.map(({ name, next, child }) => [name === next ? name : free(next), child]),
  )
}

/** RFC 6901: '' is the whole, `~` and `/` within a part are `~0` and `~1`. */
export function toPointer(parts: readonly string[]): string {
  return parts.map((part) => `/${part.replaceAll('~', '~0').replaceAll('/', '~1')}`).join('')
}

/** The parts of a JSON Pointer. Throws `validation_failed` at `path` for a text that is none (RFC 6901, section 3). */
export function fromPointer(pointer: string, path: string): string[] {
  if ((pointer !== '' && !pointer.startsWith('/')) || /~(?![01])/.test(pointer)) {
    throw validationFailed(path, 'Not a JSON Pointer (RFC 6901).')
  }
  const [, ...parts] = pointer.split('/')
  return parts.map((part) => part.replaceAll('~1', '/').replaceAll('~0', '~'))
}
