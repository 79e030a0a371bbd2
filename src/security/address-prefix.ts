import { isIP } from 'node:net'

/**
 * What one party commonly holds: a whole IPv4 address, and the first 64 bits of an IPv6 one (RFC 6177: a site
 * gets no less), so that nobody gets a fresh count for each of 2^64 addresses. null for what is no address.
 */
export function addressPrefix(address: string): string | null {
  const plain = address.split('%', 1)[0] ?? ''
  const kind = isIP(plain)
  if (kind === 4) return plain
  if (kind === 0) return null
  const mapped = /^::ffff:(\d+\.\d+\.\d+\.\d+)$/i.exec(plain)?.[1]
  if (mapped !== undefined) return mapped
  const [before = '', after = ''] = plain.split('::')
  const groups = (text: string): string[] => (text === '' ? [] : text.split(':'))
  // A dotted end stands for two groups.
  const length = groups(after).length + (after.includes('.') ? 1 : 0)
  const head = groups(before)
  const zeros = plain.includes('::') ? Array<string>(Math.max(0, 8 - head.length - length)).fill('0') : []
  const all = [...head, ...zeros, ...groups(after)].map((group) => parseInt(group, 16))
  // An IPv4 address in the clothes of an IPv6 one (RFC 4291, 2.5.5.2).
  if (all.length === 8 && all[5] === 0xffff && all.slice(0, 5).every((group) => group === 0))
    return [all[6], all[7]].flatMap((group = 0) => [group >> 8, group & 255]).join('.')
  return `${all
    .slice(0, 4)
    .map((group) => group.toString(16))
    .join(':')}::/64`
}
