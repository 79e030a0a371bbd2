import { isIP } from 'node:net'
import type { Context } from 'hono'
import type { AppEnv } from './context.js'

/** Whose word counts for where a request comes from: the socket's (0), so many proxies', or X-Real-IP's. */
export type TrustedProxy = number | 'x-real-ip'

/**
 * The client's address, or null where none is known. Of X-Forwarded-For only what the trusted proxies wrote is
 * believed, that is the last entries, counted from the end; all before them the client may have made up.
 */
export function clientAddress(c: Context<AppEnv>, trusted: TrustedProxy): string | null {
  if (trusted === 'x-real-ip') return asAddress(c.req.header('x-real-ip'))
  const socket = asAddress(c.env?.incoming?.socket?.remoteAddress)
  if (trusted === 0) return socket
  const entries = (c.req.header('x-forwarded-for') ?? '').split(',').filter((entry) => entry.trim() !== '')
  // Past the proxies by another way: they would have written their entries.
  if (entries.length < trusted) return socket
  return asAddress(entries.at(-trusted))
}

/** Without a port, brackets or a zone, which is this machine's own affair; an IPv4 address that arrived on a dual-stack socket is an IPv4 address. */
function asAddress(text: string | undefined): string | null {
  // As nearly all arrive: on an IPv4 or a dual-stack socket.
  const mapped = text?.startsWith('::ffff:') === true ? text.slice(7) : text
  if (mapped !== undefined && isIP(mapped) === 4) return mapped
  const bare = (text ?? '')
    .trim()
    .replace(/^\[(.*)\](:\d+)?$/, '$1')
    .replace(/%.*$/, '')
    .replace(/^(\d+\.\d+\.\d+\.\d+):\d+$/, '$1')
    .replace(/^::ffff:(?=\d+\.)/i, '')
  return isIP(bare) === 0 ? null : bare
}
