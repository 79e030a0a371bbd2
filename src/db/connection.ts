import { readFileSync } from 'node:fs'
import type { ConnectionOptions } from 'node:tls'
import type { ClientConfig } from 'pg'
import { parseIntoClientConfig } from 'pg-connection-string'
import { AppError } from '../errors.js'

export type SslMode = 'disable' | 'require' | 'verify-ca' | 'verify-full'

export interface ConnectionSettings {
  url: string
  /** Undefined: plaintext on a private way (loopback, socket, *.railway.internal), else verify-full. */
  ssl: SslMode | undefined
  /** The authority's certificate as PEM text or as a path to it; undefined: those Node trusts. */
  sslCa: string | undefined
}

/**
 * The URL as pg's connection settings, with TLS decided by DATABASE_SSL alone: any sslmode in the URL is
 * dropped, since pg and libpq read it differently. Throws `invalid_request` naming the variable at fault.
 */
export function connectionConfig(settings: ConnectionSettings): ClientConfig {
  const url = settings.url.replace(
    /([?&])(sslmode|ssl|sslcert|sslkey|sslrootcert|uselibpqcompat)=[^&]*/g,
    '$1',
  )
  let parsed: ClientConfig
  try {
    parsed = parseIntoClientConfig(url)
  } catch (error) {
    throw new AppError('invalid_request', 'DATABASE_URL is not a PostgreSQL URL', { cause: error })
  }
  return { ...parsed, ssl: tlsOptions(settings, parsed.host ?? '') }
}

/** True where plaintext cannot be read on the way: loopback, a socket, Railway's private network. */
export function isPrivateHost(host: string): boolean {
  return (
    host === '' ||
    host.startsWith('/') ||
    host === 'localhost' ||
    host === '::1' ||
    host === '[::1]' ||
    /^127\.\d+\.\d+\.\d+$/.test(host) ||
    host.endsWith('.railway.internal')
  )
}

function tlsOptions(settings: ConnectionSettings, host: string): ConnectionOptions | false {
  const mode =
    settings.ssl ?? (isPrivateHost(host) && settings.sslCa === undefined ? 'disable' : 'verify-full')
  if (mode === 'disable') return false
  if (mode === 'require') return { rejectUnauthorized: false }
  const ca = settings.sslCa === undefined ? {} : { ca: certificate(settings.sslCa) }
  if (mode === 'verify-ca') return { ...ca, rejectUnauthorized: true, checkServerIdentity: () => undefined }
  return { ...ca, rejectUnauthorized: true }
}

function certificate(value: string): string {
  if (value.includes('-----BEGIN')) return value.replaceAll('\\n', '\n')
  try {
    return readFileSync(value, 'utf8')
  } catch (error) {
    throw new AppError('invalid_request', 'DATABASE_SSL_CA is neither a certificate nor a readable file', {
      cause: error,
    })
  }
}
