import { z } from 'zod'
import { AppError } from './errors.js'

const flag = z.enum(['true', 'false', '1', '0']).transform((value) => value === 'true' || value === '1')
const integer = (min: number, max: number) =>
  z
    .string()
    .regex(/^\d{1,9}$/, `must be a whole number from ${min} to ${max}`)
    .transform(Number)
    .refine((value) => value >= min && value <= max, `must be from ${min} to ${max}`)
const milliseconds = integer(10, 3_600_000)
const postgresUrl = z.string().regex(/^postgres(ql)?:\/\/\S+$/, 'must be a postgres:// URL')

/** Every variable the service reads. Empty counts as absent. */
const variables = {
  NODE_ENV: z.string().optional(),
  LOG_LEVEL: z.enum(['debug', 'info', 'warn', 'error', 'silent']).default('info'),
  HOST: z.string().default('::'),
  PORT: integer(0, 65_535).default(8080),
  DATA_DIR: z.string().default('.data'),
  DATABASE_URL: postgresUrl.optional(),
  DATABASE_UNPOOLED_URL: postgresUrl.optional(),
  DATABASE_POOLED: flag.default(false),
  DATABASE_SSL: z.enum(['disable', 'require', 'verify-ca', 'verify-full']).optional(),
  DATABASE_SSL_CA: z.string().optional(),
  DATABASE_POOL_SIZE: integer(1, 500).default(20),
  DATABASE_LANES: integer(0, 64).default(4),
  DATABASE_PREPARE: z
    .enum(['on', 'off'])
    .default('on')
    .transform((value) => value === 'on'),
  DATABASE_TIMEOUT: integer(1, 600).default(30),
  DATABASE_ACQUIRE_MS: milliseconds.optional(),
  DATABASE_STATEMENT_MS: milliseconds.optional(),
  DATABASE_QUERY_MS: milliseconds.optional(),
  DATABASE_LOCK_MS: milliseconds.optional(),
  DATABASE_IDLE_IN_TRANSACTION_MS: milliseconds.optional(),
  REQUEST_DEADLINE_MS: milliseconds.optional(),
  BREAKER_WINDOW_SECONDS: integer(1, 600).default(10),
  BREAKER_MIN_CALLS: integer(1, 100_000).default(10),
  BREAKER_FAILURE_PERCENT: integer(1, 100).default(50),
  BREAKER_SLOW_PERCENT: integer(1, 100).default(80),
  BREAKER_SLOW_MS: milliseconds.optional(),
  BREAKER_PROBES: integer(1, 100).default(3),
  BREAKER_MAX_WAIT_SECONDS: integer(1, 600).default(30),
  RECONNECT_MAX_MS: integer(50, 600_000).default(500),
  AUTH_LOGIN: z.string().max(255).optional(),
  AUTH_PASSWORD: z.string().optional(),
  BCRYPT_COST: integer(4, 16).default(12),
  PASSWORD_MIN_LENGTH: integer(8, 64).default(12),
  HASHING_THREADS: integer(1, 64).optional(),
  TRUST_PROXY: z
    .string()
    .regex(/^(\d|10|x-real-ip)$/, 'must be a number of proxies from 0 to 10, or x-real-ip')
    .default('0')
    .transform((text) => (text === 'x-real-ip' ? ('x-real-ip' as const) : Number(text))),
  SESSION_HOURS: integer(1, 8760).default(24),
  SESSION_IDLE_MINUTES: integer(2, 525_600).default(120),
  SERVICE_API_KEY: z.string().optional(),
  ENCRYPTION_KEY: z.string().optional(),
  OPERATIONS_TOKEN: z
    .string()
    .regex(/^[\x21-\x7e]{16,}$/, 'must have at least 16 characters, visible ASCII without spaces')
    .optional(),
  DRAIN_SECONDS: integer(1, 600).default(10),
} satisfies Record<string, z.ZodType>

type Variables = { [Name in keyof typeof variables]: z.output<(typeof variables)[Name]> }
export type Env = Readonly<Variables>

/** Checks that another room owns, by variable: called with the value, they throw an Error that says what is wrong. */
export type OwnChecks = { [Name in keyof Variables]?: (value: string) => unknown }

/** The first of these names that is set stands in for a variable that is not. */
const FALLBACKS: Partial<Record<keyof Variables, string[]>> = {
  DATABASE_URL: ['POSTGRES_URL', 'POSTGRES_PRISMA_URL'],
  DATABASE_UNPOOLED_URL: ['POSTGRES_URL_NON_POOLING'],
}

/**
 * The environment as typed values. Throws one `invalid_request` that lists every fault by variable
 * name and never repeats a value.
 */
export function readEnv(source: Record<string, string | undefined>, checks: OwnChecks = {}): Env {
  const faults: string[] = []
  const values: Record<string, unknown> = {}
  for (const [name, schema] of Object.entries(variables) as [keyof Variables, z.ZodType][]) {
    const { origin, text } = lookUp(source, name)
    if (text?.includes('${{') === true) {
      faults.push(`${origin}: holds an unresolved reference (\${{ ... }})`)
      continue
    }
    const parsed = schema.safeParse(text)
    if (!parsed.success) {
      faults.push(`${origin}: ${parsed.error.issues.map(({ message }) => message).join(', ')}`)
      continue
    }
    values[name] = parsed.data
    if (text !== undefined) faults.push(...ownFault(origin, text, checks[name]))
  }
  const env = values as Variables
  faults.push(...crossFaults(env))
  if (faults.length > 0) {
    throw new AppError('invalid_request', `The environment is not usable:\n  ${faults.join('\n  ')}`)
  }
  return env
}

function ownFault(name: string, text: string, check: ((value: string) => unknown) | undefined): string[] {
  try {
    check?.(text)
    return []
  } catch (error) {
    if (error instanceof z.ZodError)
      return [`${name}: ${error.issues.map(({ message }) => message).join(', ')}`]
    return [`${name}: ${error instanceof Error ? error.message : 'is not usable'}`]
  }
}

function crossFaults(env: Variables): string[] {
  const faults: string[] = []
  if ((env.AUTH_LOGIN === undefined) !== (env.AUTH_PASSWORD === undefined)) {
    faults.push('AUTH_LOGIN, AUTH_PASSWORD: set both or neither')
  }
  if (env.AUTH_LOGIN?.trim().toLowerCase() === 'admin' && env.AUTH_PASSWORD === 'admin') {
    faults.push('AUTH_LOGIN, AUTH_PASSWORD: admin/admin is refused')
  }
  return faults
}

function lookUp(
  source: Record<string, string | undefined>,
  name: keyof Variables,
): { origin: string; text: string | undefined } {
  for (const origin of [name, ...(FALLBACKS[name] ?? [])]) {
    const text = source[origin]
    if (text !== undefined && text !== '') return { origin, text }
  }
  // Railway's edge writes the header anew, and nothing else reaches a public address there.
  if (name === 'TRUST_PROXY' && source['RAILWAY_ENVIRONMENT_ID'])
    return { origin: 'RAILWAY_ENVIRONMENT_ID', text: 'x-real-ip' }
  if (name === 'DATABASE_URL') return { origin: 'PGHOST/POSTGRES_*', text: urlFromParts(source) }
  return { origin: name, text: undefined }
}

/** PGHOST and company, or POSTGRES_HOST and company, as one URL; undefined when no host is named. */
function urlFromParts(source: Record<string, string | undefined>): string | undefined {
  const part = (...names: string[]): string => names.map((name) => source[name]).find((value) => value) ?? ''
  const host = part('PGHOST', 'POSTGRES_HOST')
  if (host === '') return undefined
  const user = encodeURIComponent(part('PGUSER', 'POSTGRES_USER') || 'postgres')
  const password = part('PGPASSWORD', 'POSTGRES_PASSWORD')
  const port = part('PGPORT', 'POSTGRES_PORT') || '5432'
  const database = encodeURIComponent(part('PGDATABASE', 'POSTGRES_DB', 'POSTGRES_DATABASE') || 'postgres')
  const authority = `${user}${password === '' ? '' : `:${encodeURIComponent(password)}`}`
  // A socket folder is no host name: it travels as a parameter.
  return host.startsWith('/')
    ? `postgres://${authority}@/${database}?host=${encodeURIComponent(host)}&port=${port}`
    : `postgres://${authority}@${host.includes(':') ? `[${host}]` : host}:${port}/${database}`
}
