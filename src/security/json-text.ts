import { parse as parseLossless } from 'lossless-json'
import { AppError, validationFailed } from '../errors.js'
import { fitsNumeric, numberFromToken, scanJson } from './json-scan.js'
import { childrenOf, isJsonNumber, isJsonObject, mapChildren, renameMembers, toPointer } from './json-tree.js'
import type { JsonObject, JsonTree } from './json-tree.js'
import { isWellFormedText, toWellFormedText } from './well-formed-text.js'

/** Arrays and objects within each other; a scalar has depth 0, `[]` has 1. */
const MAX_DEPTH = 64

// Assigning through either reaches a prototype (OWASP Prototype Pollution Prevention Cheat Sheet). `prototype` is
// allowed: without `constructor` nothing leads to it.
const REFUSED_NAMES = new Set(['__proto__', 'constructor'])

/**
 * A caller's JSON whose numbers keep value and spelling. Of duplicate names the last counts, as for JSON.parse.
 * Throws `invalid_request` for what is no JSON, and `validation_failed` with the place for depth over 64, the names
 * `__proto__` and `constructor`, numbers that PostgreSQL's numeric cannot hold, and NUL or lone surrogates.
 */
export function parseJson(text: string): JsonTree {
  return parseChecked(text, refuseIllFormed)
}

// All that check() refuses or replaces in a text whose numbers are plain: NUL, surrogates, and REFUSED_NAMES, whose
// letters an escape may spell too.
const MAY_NEED_CHECK = /\\u(?:00(?:00|[4-7])|[dD][89a-fA-F])|[\ud800-\udfff]|__proto__|constructor/

// JSON holds NUL as an escape only, a lone surrogate as an escape or, in a text that was never UTF-8, as itself.
const MAY_BE_ILL_FORMED = /\\u(?:0000|[dD][89a-fA-F])|[\ud800-\udfff]/

export interface ReplacedText {
  tree: JsonTree
  /** JSON Pointers, in `tree`, to the strings and to the members whose name was changed. */
  replacedAt: string[]
}

/**
 * parseJson for audit data, where one bad character must not hold back a batch: NUL and lone surrogates become
 * U+FFFD. Names that become equal are numbered (`a`, `a_2`), so that no member is lost. Throws as parseJson for all
 * else.
 */
export function parseJsonReplacing(text: string): ReplacedText {
  const replacedAt: string[] = []
  const tree = parseChecked(text, () => undefined)
  if (!MAY_BE_ILL_FORMED.test(text)) return { tree, replacedAt }
  return { tree: replaceIllFormed(tree, [], replacedAt), replacedAt }
}

/** JSON that this service wrote: spelling kept, nothing refused. Throws SyntaxError for what is no JSON. */
export function parseStoredJson(text: string): JsonTree {
  const tree = JSON.parse(text) as JsonTree
  return scanJson(text).keepsSpelling ? tree : parseKeepingSpelling(text)
}

/** Compact JSON; numbers as they were spelt. Throws TypeError for what JSON cannot say (NaN, undefined). */
export function stringifyJson(tree: JsonTree): string {
  return isPlain(tree) ? JSON.stringify(tree) : write(tree, Object.keys)
}

/**
 * The one text of a value, for hashing: RFC 8785 order of names (UTF-16 code units) and its strings. Numbers keep
 * their own spelling instead of RFC 8785's, which has no room for twenty digits: `1.0` and `1` differ here.
 */
export function canonicalJson(tree: JsonTree): string {
  const sorted = withSortedNames(tree)
  return sorted === undefined ? write(tree, sortedNames) : JSON.stringify(sorted)
}

type CheckText = (text: string, place: readonly string[]) => void

function parseChecked(text: string, checkText: CheckText): JsonTree {
  const tree = parseSyntax(text)
  const { depth, keepsSpelling } = scanJson(text)
  if (depth > MAX_DEPTH) {
    check(tree, [], checkText)
    throw tooDeep([]) // the deep part was dropped by a duplicate name
  }
  if (keepsSpelling && !MAY_NEED_CHECK.test(text)) return tree
  const exact = keepsSpelling ? tree : parseKeepingSpelling(text)
  check(exact, [], checkText)
  return exact
}

function parseSyntax(text: string): JsonTree {
  try {
    return JSON.parse(text) as JsonTree
  } catch {
    // The engine's message quotes the text.
    throw new AppError('invalid_request', text === '' ? 'The body is empty.' : 'The body is malformed JSON.')
  }
}

// Recursive: only for a text whose depth is known. By default it would refuse duplicates, but only unequal ones.
function parseKeepingSpelling(text: string): JsonTree {
  return parseLossless(text, undefined, {
    parseNumber: numberFromToken,
    onDuplicateKey: ({ newValue }) => newValue,
  }) as JsonTree
}

// The recursion ends by its own rule at depth 65.
function check(tree: JsonTree, place: string[], checkText: CheckText): void {
  if (typeof tree === 'string') return checkText(tree, place)
  if (isJsonNumber(tree)) {
    if (typeof tree !== 'number' && !fitsNumeric(tree)) {
      throw validationFailed(toPointer(place), 'This number is beyond what PostgreSQL can hold.')
    }
    return
  }
  if (typeof tree !== 'object' || tree === null) return
  if (place.length >= MAX_DEPTH) throw tooDeep(place)
  for (const [part, child] of childrenOf(tree)) {
    if (!Array.isArray(tree)) {
      checkText(part, place)
      if (REFUSED_NAMES.has(part))
        throw validationFailed(toPointer([...place, part]), 'This name is not allowed.')
    }
    place.push(part)
    check(child, place, checkText)
    place.pop()
  }
}

function tooDeep(place: readonly string[]): AppError {
  return validationFailed(toPointer(place), `Arrays and objects may nest ${MAX_DEPTH} deep.`)
}

function refuseIllFormed(text: string, place: readonly string[]): void {
  if (!isWellFormedText(text)) {
    throw validationFailed(toPointer(place), 'Text and names may hold neither NUL nor a lone surrogate.')
  }
}

function replaceIllFormed(tree: JsonTree, place: string[], replacedAt: string[]): JsonTree {
  if (typeof tree === 'string') {
    if (isWellFormedText(tree)) return tree
    replacedAt.push(toPointer(place))
    return toWellFormedText(tree)
  }
  const named = isJsonObject(tree) ? renameMembers(tree, toWellFormedText) : tree
  return mapChildren(named, (child, part) => {
    const childPlace = [...place, part]
    if (isJsonObject(tree) && !Object.hasOwn(tree, part)) replacedAt.push(toPointer(childPlace))
    return replaceIllFormed(child, childPlace, replacedAt)
  })
}

/** Whether JSON.stringify, which is far cheaper than write(), says the same. */
function isPlain(tree: JsonTree): boolean {
  if (typeof tree === 'string' || typeof tree === 'boolean' || tree === null) return true
  if (Array.isArray(tree)) return tree.every(isPlain)
  if (!isJsonObject(tree)) return typeof tree === 'number' && Number.isFinite(tree)
  for (const name of Object.keys(tree)) if (!isPlain(tree[name] as JsonTree)) return false
  return true
}

/** The tree for JSON.stringify to write canonically; undefined when only write() can. */
function withSortedNames(tree: JsonTree): JsonTree | undefined {
  if (Array.isArray(tree)) {
    let list = tree
    for (const [index, child] of tree.entries()) {
      const sorted = withSortedNames(child)
      if (sorted === undefined) return undefined
      if (sorted === child) continue
      if (list === tree) list = tree.slice()
      list[index] = sorted
    }
    return list
  }
  if (!isJsonObject(tree)) return isPlain(tree) ? tree : undefined
  const names = Object.keys(tree)
  let object = areSorted(names) ? tree : withNamesAs(names.sort(), tree)
  if (object === undefined) return undefined
  for (const name of names) {
    const child = tree[name] as JsonTree
    const sorted = withSortedNames(child)
    if (sorted === undefined) return undefined
    if (sorted === child) continue
    if (object === tree) object = { ...tree }
    object[name] = sorted
  }
  return object
}

/** Undefined when no object lists its names so: numbers come first, and `__proto__`, assigned, is none of them. */
function withNamesAs(names: readonly string[], object: JsonObject): JsonObject | undefined {
  const ordered: JsonObject = {}
  for (const name of names) ordered[name] = object[name] as JsonTree
  const listed = Object.keys(ordered)
  return listed.length === names.length && areSorted(listed) ? ordered : undefined
}

function sortedNames(object: JsonObject): string[] {
  return Object.keys(object).sort()
}

function areSorted(names: readonly string[]): boolean {
  for (let at = 1; at < names.length; at += 1) {
    if ((names[at - 1] as string) > (names[at] as string)) return false
  }
  return true
}

function write(tree: JsonTree, namesOf: (object: JsonObject) => string[]): string {
  if (typeof tree === 'string') return JSON.stringify(tree)
  if (tree === null) return 'null'
  if (typeof tree === 'boolean') return tree ? 'true' : 'false'
  if (Array.isArray(tree)) {
    let text = ''
    for (const child of tree) text += text === '' ? write(child, namesOf) : ',' + write(child, namesOf)
    return `[${text}]`
  }
  if (isJsonObject(tree)) {
    let text = ''
    for (const name of namesOf(tree))
      text += `${text === '' ? '' : ','}${JSON.stringify(name)}:${write(tree[name] as JsonTree, namesOf)}`
    return `{${text}}`
  }
  if (typeof tree === 'number' ? Number.isFinite(tree) : isJsonNumber(tree)) return String(tree)
  throw new TypeError('not a JSON value')
}
