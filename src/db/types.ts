import type { ColumnType } from "kysely";
export type Generated<T> = T extends ColumnType<infer S, infer I, infer U>
  ? ColumnType<S, I | undefined, U>
  : ColumnType<T, T | undefined, T>;
export type Timestamp = ColumnType<Date, Date | string, Date | string>;

export type Adoption = {
    id: Generated<number>;
    adopted_at: Generated<string>;
    /**
     * Whether the OAuth tokens came along: that takes an ENCRYPTION_KEY, and may be done later.
     */
    oauth_tokens: Generated<boolean>;
    finished_at: string | null;
};
export type ApiKey = {
    id: Generated<number>;
    user_id: number;
    name: string;
    /**
     * The first characters of the key, to recognise it by.
     */
    prefix: string;
    /**
     * SHA-256 of the key, never the key.
     */
    key_hash: string;
    scopes: string[];
    created_at: Generated<string>;
    expires_at: string | null;
    last_used_at: string | null;
};
export type AuditEvent = {
    id: Generated<number>;
    received_at: Generated<string>;
    event_id: string;
    /**
     * When it happened, by the sender's clock.
     */
    occurred_at: string;
    event_type: string;
    level: string;
    /**
     * service: written with a change; client: sent by a caller.
     */
    source: string;
    /**
     * user, api_key or system.
     */
    actor_type: string;
    actor_id: number | null;
    actor_name: string | null;
    on_behalf_of: number | null;
    action: string | null;
    target: string | null;
    /**
     * As claimed by the sender; not a key.
     */
    user_id: string | null;
    agent_id: string | null;
    session_id: string | null;
    request_id: string | null;
    trace_id: string | null;
    event: string;
};
export type AuditEventId = {
    event_id: string;
    /**
     * Who sent it, as `user:7`, `api_key:3` or `system`: another's id is a conflict, never a duplicate.
     */
    actor: string;
    on_behalf_of: number | null;
    /**
     * SHA-256 of the event as sent: the same id with another body is a conflict.
     */
    body_hash: string;
    received_at: Generated<string>;
};
export type ConfigEntry = {
    /**
     * global, environment, service or user.
     */
    scope: string;
    /**
     * Name of the environment or service, id of the user, empty for global.
     */
    owner: string;
    /**
     * Only for service entries of one environment, else empty.
     */
    environment: string;
    key: string;
    /**
     * JSON text: jsonb keeps 1.0 but a JSON.parse on the way does not. Secret leaves are sealed boxes.
     */
    value: string;
    /**
     * Count of the revisions of this address.
     */
    version: number;
    secret_paths: string[];
    tags: string[];
    description: string | null;
    deleted: Generated<boolean>;
    created_at: Generated<string>;
    updated_at: Generated<string>;
    /**
     * Display name of who wrote this version; the id is in the revision.
     */
    updated_by: string;
};
export type ConfigRevision = {
    revision: Generated<number>;
    scope: string;
    owner: string;
    environment: string;
    key: string;
    version: number;
    /**
     * put, patch, delete or restore.
     */
    operation: string;
    value: string;
    secret_paths: string[];
    tags: string[];
    description: string | null;
    created_at: Generated<string>;
    actor_type: string;
    actor_id: number | null;
    actor_name: string;
    request_id: string | null;
};
export type IdempotencyKey = {
    /**
     * As `user:7` or `api_key:3`.
     */
    caller: string;
    /**
     * Method and path template.
     */
    route: string;
    key: string;
    /**
     * HMAC of the request, so that another body under the same key is noticed.
     */
    request_hash: string;
    status: number;
    /**
     * The answer's headers and body as JSON text; never holds a secret shown once.
     */
    response: string;
    created_at: Generated<string>;
};
export type OAuthToken = {
    id: Generated<number>;
    user_id: number;
    provider: string;
    access_token: string;
    refresh_token: string | null;
    expires_at: string | null;
    created_at: Generated<string>;
};
export type Session = {
    id: Generated<number>;
    /**
     * SHA-256 of the token, never the token.
     */
    session_token: string;
    user_id: number;
    created_at: Generated<string>;
    /**
     * The absolute limit.
     */
    expires_at: string;
    /**
     * Moved by use, at most once a minute; the idle limit counts from here.
     */
    last_activity: Generated<string>;
    ip_address: string | null;
    user_agent: string | null;
    /**
     * When the password was last given in this session.
     */
    authenticated_at: Generated<string>;
};
export type SetupToken = {
    id: Generated<number>;
    token_hash: string;
    expires_at: string;
};
export type Throttle = {
    bucket: string;
    failures: Generated<number>;
    window_start: Generated<string>;
    locked_until: string | null;
    /**
     * Tries begun and not told of yet; what is never told of becomes a failure.
     */
    pending: Generated<number>;
    pending_since: string | null;
    /**
     * How often it was locked in a row: each time for twice as long.
     */
    lockouts: Generated<number>;
    /**
     * An address from which this account has signed in is not held up by what others do elsewhere.
     */
    succeeded_at: string | null;
    touched_at: Generated<string>;
};
export type User = {
    id: Generated<number>;
    /**
     * As the person wrote it, NFKC and trimmed.
     */
    username: string;
    password_hash: string;
    is_active: Generated<boolean>;
    last_login: string | null;
    created_at: Generated<string>;
    updated_at: Generated<string>;
    failed_login_attempts: Generated<number>;
    /**
     * Of the older code alone, which compares it with a naive UTC time of its own: hence without a zone.
     */
    locked_until: string | null;
    password_changed_at: Generated<string>;
    must_change_password: Generated<boolean>;
    /**
     * The name folded for comparison: unique without case. Null for rows that other programs inserted;
     * those sign in by the exact name.
     */
    username_key: string | null;
    /**
     * owner, admin, user, guest, subordinate_agent, analyst, auditor or service.
     */
    role: Generated<string>;
    /**
     * Counts changes to the row: the ETag.
     */
    version: Generated<number>;
};
export type DB = {
    audit_event_ids: AuditEventId;
    audit_events: AuditEvent;
    auth_adoption: Adoption;
    auth_api_keys: ApiKey;
    auth_oauth_tokens: OAuthToken;
    auth_sessions: Session;
    auth_setup_tokens: SetupToken;
    auth_throttle: Throttle;
    auth_users: User;
    config_entries: ConfigEntry;
    config_revisions: ConfigRevision;
    idempotency_keys: IdempotencyKey;
};
