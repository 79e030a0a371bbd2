const SECRET_ENDINGS = ['password', 'secret', 'token', 'api_key', 'private_key', 'ssl_key', 'database_url']
const SECRET_GROUPS = new Set(['api_keys', 'mcp_servers'])

// What else holds a credential in requests and logs, where naming follows no rule: compared without separators.
const SENSITIVE_ENDINGS = SECRET_ENDINGS.map(withoutSeparators).concat(
  [
    'passwd',
    'pwd',
    'passphrase',
    'passcode',
    'authorization',
    'cookie',
    'cookies',
    'credential',
    'credentials',
  ],
  ['secretkey', 'accesskey', 'encryptionkey', 'signingkey', 'apikeys', 'mcpservers', 'jwt'],
)

/** Whether a non-empty string under this name is a secret of the configuration (docs: Configuration, Secrets). */
export function isSecretName(name: string): boolean {
  const lower = name.toLowerCase()
  return SECRET_ENDINGS.some((ending) => lower.endsWith(ending))
}

/** Whether every string at and below this name is a secret of the configuration. */
export function isSecretGroup(name: string): boolean {
  return SECRET_GROUPS.has(name.toLowerCase())
}

/**
 * Whether strings at and below this name are kept out of audit data and logs: all secret names of the
 * configuration, headers (`Set-Cookie`, `X-API-Key`) and the spellings of other programs (`apiKey`, `db-passwd`).
 */
export function isSensitiveName(name: string): boolean {
  const plain = withoutSeparators(name.toLowerCase())
  return SENSITIVE_ENDINGS.some((ending) => plain.endsWith(ending))
}

function withoutSeparators(name: string): string {
  return name.replace(/[^a-z0-9]/g, '')
}
