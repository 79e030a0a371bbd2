import { isJsonObject, mapChildren, renameMembers, toPointer } from './json-tree.js'
import type { JsonTree } from './json-tree.js'
import { isSensitiveName } from './secret-names.js'
import { textPrefix } from './well-formed-text.js'

export const REDACTED = '[redacted]'
const TRUNCATED = '… [truncated]'

export interface RedactOptions {
  /** In UTF-16 code units, the mark of the cut included; default 65 536. */
  maxStringLength?: number
}

export interface Redacted {
  tree: JsonTree
  /** JSON Pointers, in `tree`, to what lost a secret. */
  redacted: string[]
  /** JSON Pointers, in `tree`, to the strings that were cut. */
  truncated: string[]
}

/**
 * The tree without secrets and without overlong strings, for audit data and logs. Strings at or below a sensitive
 * name go, others lose the credentials redactText knows; numbers, booleans and null are never touched.
 */
export function redactSecrets(tree: JsonTree, { maxStringLength = 65_536 }: RedactOptions = {}): Redacted {
  if (isClean(tree, maxStringLength, false)) return { tree, redacted: [], truncated: [] }
  const redacted: string[] = []
  const truncated: string[] = []

  function cut(text: string): string {
    if (text.length <= maxStringLength) return text
    return textPrefix(text, Math.max(0, maxStringLength - TRUNCATED.length)) + TRUNCATED
  }

  function visitText(text: string, place: readonly string[], isSensitive: boolean): string {
    const clean = isSensitive && text !== '' ? REDACTED : redactText(text)
    if (clean !== text) redacted.push(toPointer(place))
    // After redaction: a cut through a token would leave a part of it that no pattern knows.
    const short = cut(clean)
    if (short !== clean) truncated.push(toPointer(place))
    return short
  }

  const place: string[] = []
  function visitAt(part: string, node: JsonTree, isSensitive: boolean): JsonTree {
    place.push(part)
    const next = visit(node, isSensitive)
    place.pop()
    return next
  }
  function visit(node: JsonTree, isSensitive: boolean): JsonTree {
    if (typeof node === 'string') return visitText(node, place, isSensitive)
    if (!isJsonObject(node)) {
      return mapChildren(node, (child, part) => visitAt(part, child, isSensitive))
    }
    const named = renameMembers(node, (name) => cut(redactText(name)))
    return mapChildren(named, (child, name) => {
      if (!Object.hasOwn(node, name)) {
        if (name.includes(REDACTED)) redacted.push(toPointer([...place, name]))
        if (name.includes(TRUNCATED)) truncated.push(toPointer([...place, name]))
      }
      return visitAt(name, child, isSensitive || isSensitiveName(name))
    })
  }

  return { tree: visit(tree, false), redacted, truncated }
}

/** Nearly every event is: to find nothing takes no places and no copies. Recursive, as the visit is. */
function isClean(node: JsonTree, maxLength: number, isSensitive: boolean): boolean {
  if (typeof node === 'string') {
    return node === '' || (!isSensitive && node.length <= maxLength && redactText(node) === node)
  }
  if (Array.isArray(node)) {
    for (const child of node) if (!isClean(child, maxLength, isSensitive)) return false
    return true
  }
  if (!isJsonObject(node)) return true
  for (const name of Object.keys(node)) {
    const kind = kindOf(name)
    if (kind === 'secret' || name.length > maxLength) return false
    if (!isClean(node[name] as JsonTree, maxLength, isSensitive || kind === 'sensitive')) return false
  }
  return true
}

/** What redaction makes of a name: it holds a credential itself, what is below it is one, or neither. */
type NameKind = 'secret' | 'sensitive' | 'plain'

function kindOf(name: string): NameKind {
  let kind = knownNames.get(name)
  if (kind === undefined) {
    kind = redactText(name) !== name ? 'secret' : isSensitiveName(name) ? 'sensitive' : 'plain'
    // Emptied when it is full: whoever sends ever new names must not take the places of the usual ones for good.
    if (knownNames.size >= MAX_KNOWN_NAMES) knownNames.clear()
    if (name.length <= MAX_KNOWN_LENGTH) knownNames.set(name, kind)
  }
  return kind
}

const MAX_KNOWN_NAMES = 1000
const MAX_KNOWN_LENGTH = 64
const knownNames = new Map<string, NameKind>()

// Each pattern begins with a fixed text and its repeated part stops at a character that the fixed text contains or
// that cannot be repeated, so no stretch is read for two starts: linear for any input.
const CREDENTIALS: readonly [pattern: RegExp, replacement: string][] = [
  [/gz[ski]_[A-Za-z0-9_-]{43}/g, REDACTED],
  [/(bearer\s+)(?!\[redacted\])[^\s"',;]+/gi, `$1${REDACTED}`],
  [/(authorization["']?\s*[:=]\s*["']?basic\s+)(?!\[redacted\])[^\s"',;]+/gi, `$1${REDACTED}`],
  [/(:\/\/[^\s:@/?#"<>]*:)(?!\[redacted\]@)[^\s/"<>]*@/g, `$1${REDACTED}@`],
  [/((?:password|passwd|pwd)=)(?!\[redacted\])(?:'[^']*'|'?[^\s&;,'"]+)/gi, `$1${REDACTED}`],
]

const SUSPECT = /gz[ski]_|bearer|basic|:\/\/|(?:password|passwd|pwd)=/i

/**
 * The text without the credentials that show by their form: our tokens, bearer and basic credentials, the password
 * in a URL (`postgres://user:***@host`) and in `password=`. Linear in time for any input.
 */
export function redactText(text: string): string {
  if (!SUSPECT.test(text)) return text
  return CREDENTIALS.reduce((rest, [pattern, replacement]) => rest.replace(pattern, replacement), text)
}
