import { AppError, validationFailed } from '../errors.js'
import { parseStoredJson, stringifyJson } from './json-text.js'
import { childAt, childrenOf, isJsonObject, mapChildren, toPointer } from './json-tree.js'
import type { JsonObject, JsonTree } from './json-tree.js'
import { isSealedBox, seal, unseal } from './secret-box.js'
import type { KeyRing } from './secret-box.js'
import { rootSpot, secretRule, spotBelow } from './secret-places.js'
import type { Spot } from './secret-places.js'

/** What a secret reads as; on a write it means "keep what is stored here". */
export const PLACEHOLDER = '****PSWD****'

/** Where an entry lives. A box opens at this address and at its own place in the value, nowhere else. */
export interface ConfigAddress {
  scope: string
  owner: string | null
  environment: string | null
  key: string
}

export interface SealRequest {
  /** null without ENCRYPTION_KEY: stored boxes can be kept, nothing can be sealed. */
  ring: KeyRing | null
  address: ConfigAddress
  /** JSON Pointers into the value, `*` for any name or index: whatever is there is sealed as a whole. */
  secretPaths: readonly string[]
  /** What the caller sends. */
  next: JsonTree
  /** The stored form that it replaces; undefined when there is none. */
  stored: JsonTree | undefined
}

/**
 * The form to store: each secret is a `{"$sealed": box}`, a placeholder is the box stored at the same place (in an
 * array: at the same index, so whoever re-orders a list must send its secrets).
 * Throws `validation_failed` with the place for a placeholder where no secret is stored or where nothing is secret
 * any more, for a member named `$sealed`, for a secret without ENCRYPTION_KEY, and for bad secretPaths.
 */
export function sealValue({ ring, address, secretPaths, next, stored }: SealRequest): JsonTree {
  const isSecret = secretRule(secretPaths)
  refuseIn(next, [], 'A member may not be named $sealed.', (node) => isSealedLeaf(node))

  function visit(node: JsonTree, storedNode: JsonTree | undefined, spot: Spot): JsonTree {
    const secret = isSecret(node, spot)
    if (node === PLACEHOLDER) {
      if (secret && isSealedLeaf(storedNode)) return storedNode
      throw validationFailed(toPointer(spot.place), placeholderFault(storedNode))
    }
    if (secret) {
      refuseIn(
        node,
        spot.place,
        'This is sealed as a whole: send it in full.',
        (part) => part === PLACEHOLDER,
      )
      return sealLeaf(ringFor(ring, spot), address, spot.place, node)
    }
    return mapChildren(node, (child, part) =>
      visit(child, childAt(storedNode, part), spotBelow(spot, node, part)),
    )
  }

  return visit(next, stored, rootSpot(address.key))
}

export interface ResealRequest {
  ring: KeyRing | null
  from: ConfigAddress
  to: ConfigAddress
  /** Of the entry at `to`. */
  secretPaths: readonly string[]
  stored: JsonTree
}

/**
 * A stored form for another address (copy), another time (restore) or another key (rotation): what is sealed stays
 * sealed, and what is secret at `to` is sealed too. Boxes that need no change need no ring. A box may end where
 * secretPaths and names no longer make it secret: add sealedPlaces() to the entry's secret paths.
 */
export function resealValue({ ring, from, to, secretPaths, stored }: ResealRequest): JsonTree {
  const isSecret = secretRule(secretPaths)
  const moves = associatedData(from, []) !== associatedData(to, [])

  function visit(node: JsonTree, spot: Spot): JsonTree {
    if (!isSealedLeaf(node) && !isSecret(node, spot)) {
      return mapChildren(node, (child, part) => visit(child, spotBelow(spot, node, part)))
    }
    if (!moves && isCurrent(node, ring)) return node
    const plain = reveal(ringFor(ring, spot), from, node, spot.place)
    return sealLeaf(ringFor(ring, spot), to, spot.place, plain)
  }

  return visit(stored, rootSpot(to.key))
}

/** The value as callers read it: the placeholder for every box. */
export function maskValue(stored: JsonTree): JsonTree {
  return isSealedLeaf(stored) ? PLACEHOLDER : mapChildren(stored, maskValue)
}

/** The value in the clear. Throws `internal` for a box that was altered or moved, or whose key is not held. */
export function revealValue(ring: KeyRing | null, address: ConfigAddress, stored: JsonTree): JsonTree {
  return reveal(ring, address, stored, [])
}

/** True when the placeholder is anywhere in the value. */
export function hasPlaceholder(tree: JsonTree): boolean {
  return tree === PLACEHOLDER || childrenOf(tree).some(([, child]) => hasPlaceholder(child))
}

/** JSON Pointers to every box of a stored form. */
export function sealedPlaces(stored: JsonTree, place: readonly string[] = []): string[] {
  if (isSealedLeaf(stored)) return [toPointer(place)]
  return childrenOf(stored).flatMap(([part, child]) => sealedPlaces(child, [...place, part]))
}

function isSealedLeaf(node: JsonTree | undefined): node is JsonObject {
  return isJsonObject(node) && Object.hasOwn(node, '$sealed')
}

// Without a ring nothing can be sealed afresh, so every box is as current as it can be.
function isCurrent(node: JsonTree, ring: KeyRing | null): boolean {
  if (!isSealedLeaf(node)) return false
  const box = node['$sealed']
  return isSealedBox(box) && (ring === null || box.kid === ring.writer)
}

function ringFor(ring: KeyRing | null, { place }: Spot): KeyRing {
  if (ring !== null) return ring
  throw validationFailed(toPointer(place), 'This is a secret, and ENCRYPTION_KEY is not set.')
}

function sealLeaf(ring: KeyRing, address: ConfigAddress, place: readonly string[], leaf: JsonTree): JsonTree {
  return { $sealed: { ...seal(ring, stringifyJson(leaf), associatedData(address, place)) } }
}

function reveal(
  ring: KeyRing | null,
  address: ConfigAddress,
  node: JsonTree,
  place: readonly string[],
): JsonTree {
  if (!isSealedLeaf(node)) {
    return mapChildren(node, (child, part) => reveal(ring, address, child, [...place, part]))
  }
  const box = node['$sealed']
  if (ring === null || !isSealedBox(box)) {
    const cause = new Error(ring === null ? 'ENCRYPTION_KEY is not set' : 'a stored box has the wrong shape')
    throw new AppError('internal', 'A stored secret could not be read.', { cause })
  }
  return parseStoredJson(unseal(ring, box, associatedData(address, place)))
}

// JSON of an array: no two addresses give the same text, whatever characters their parts hold.
function associatedData(address: ConfigAddress, place: readonly string[]): string {
  const { scope, owner, environment, key } = address
  return JSON.stringify(['config', scope, owner, environment, key, toPointer(place)])
}

function placeholderFault(storedNode: JsonTree | undefined): string {
  return isSealedLeaf(storedNode)
    ? 'This is no longer a secret path: send a fresh value.'
    : 'The placeholder keeps a stored secret, and there is none here.'
}

function refuseIn(
  node: JsonTree,
  place: readonly string[],
  message: string,
  isRefused: (node: JsonTree) => boolean,
): void {
  if (isRefused(node)) throw validationFailed(toPointer(place), message)
  for (const [part, child] of childrenOf(node)) refuseIn(child, [...place, part], message, isRefused)
}
