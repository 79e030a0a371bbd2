/**
 * What a request takes its caller for, by a look a short time ago. It is a guess until the database confirms it, in
 * the caller's first flight, ahead of the first statement: which does not run when anything has changed.
 */
export interface Claim {
  isConfirmed: boolean
  readonly kind: ClaimKind
  /** Of the condition's parameters. */
  readonly values: readonly unknown[]
}

export type ClaimKind = 'session' | 'key' | 'key_on_behalf'

const KEY_HOLDS = `select 1 from auth_api_keys k join auth_users u on u.id = k.user_id
  where k.key_hash = $9 and (k.expires_at is null or k.expires_at > now()) and u.is_active
    and k.id = cast($10 as integer) and k.name = $11 and k.scopes = cast($12 as text[])
    and u.id = cast($13 as integer) and u.role = $14`

/** What selects a row while all of it holds; numbered behind the identity's own parameters. */
export const CONDITIONS: Record<ClaimKind, string> = {
  session: `select 1 from auth_sessions s join auth_users u on u.id = s.user_id
  where s.session_token = $9 and s.expires_at > now() and s.last_activity > now() - cast($10 as interval)
    and u.is_active and not u.must_change_password
    and s.id = cast($11 as integer) and u.id = cast($12 as integer) and u.username = $13 and u.role = $14`,
  key: KEY_HOLDS,
  key_on_behalf: `${KEY_HOLDS}
    and exists (select 1 from auth_users b where b.id = cast($15 as integer) and b.role = $16 and b.is_active)`,
}

/** That the session of this token is live, and who it is of. */
export function sessionClaim(
  tokenHash: string,
  idleSeconds: number,
  { session_id, id, username, role }: { session_id: number; id: number; username: string; role: string },
): Claim {
  const values = [tokenHash, `${idleSeconds} seconds`, session_id, id, username, role]
  return { isConfirmed: false, kind: 'session', values }
}

/** That the key of this hash is valid, whose it is and what it may do; and that whom it acts for is there. */
export function keyClaim(
  keyHash: string,
  holder: { key_id: number; key_name: string; scopes: readonly string[]; user_id: number; role: string },
  behalf: { id: number; role: string } | null,
): Claim {
  const { key_id, key_name, scopes, user_id, role } = holder
  const values = [keyHash, key_id, key_name, scopes, user_id, role]
  return behalf === null
    ? { isConfirmed: false, kind: 'key', values }
    : { isConfirmed: false, kind: 'key_on_behalf', values: [...values, behalf.id, behalf.role] }
}
