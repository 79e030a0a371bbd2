import { isSealedBox, seal, unseal } from './secret-box.js'
import type { KeyRing, SealedBox } from './secret-box.js'

/** Where a token of another provider is stored; its box opens there and nowhere else. */
export interface OAuthPlace {
  userId: number
  provider: string
  column: 'access_token' | 'refresh_token'
}

/** What is stored in place of the token: its box (AES-256-GCM) as JSON text. */
export function sealOAuthToken(ring: KeyRing, place: OAuthPlace, token: string): string {
  return JSON.stringify(seal(ring, token, associatedData(place)))
}

/** The token in the clear. Throws `internal` for text that is no box, was altered or moved, or whose key is not held. */
export function unsealOAuthToken(ring: KeyRing, place: OAuthPlace, stored: string): string {
  return unseal(ring, boxOf(stored) ?? { kid: '', iv: '', tag: '', data: '' }, associatedData(place))
}

/** False for a token in the clear, as the older application writes it. */
export function isSealedOAuthToken(stored: string): boolean {
  return boxOf(stored) !== null
}

function boxOf(stored: string): SealedBox | null {
  try {
    const value: unknown = JSON.parse(stored)
    return isSealedBox(value) ? value : null
  } catch {
    return null
  }
}

// JSON of an array: no two places give the same text, whatever a provider's name holds.
function associatedData({ userId, provider, column }: OAuthPlace): string {
  return JSON.stringify(['oauth', userId, provider, column])
}
