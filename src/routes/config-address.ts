import { z } from '@hono/zod-openapi'
import type { Caller } from '../db/as-caller.js'
import type { Address } from '../db/config.js'
import { notFound } from '../errors.js'

const name = z
  .string()
  .regex(
    /^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$/,
    'must be 1 to 128 of A-Z a-z 0-9 . _ - and begin with a letter, digit or _',
  )

const owned = z.object({ owner: name, key: name })
const environment = z.strictObject({ environment: name.optional() })
type Params = z.ZodObject<{ owner: z.ZodOptional<typeof name>; key: typeof name }>

/** The four kinds of address, as routes take them; typed alike, so that one handler serves them all. */
export const ADDRESSES = [
  address('global', '/v1/config/global/{key}', z.object({ key: name })),
  address('environment', '/v1/config/environment/{owner}/{key}', owned),
  address('service', '/v1/config/service/{owner}/{key}', owned, environment),
  address('user', '/v1/config/user/{owner}/{key}', owned),
]

function address(
  scope: Address['scope'],
  path: string,
  params: z.ZodObject,
  query: z.ZodObject = z.strictObject({}),
) {
  return { scope, path, params: params as unknown as Params, query: query as typeof environment }
}

/** The address a request names; 404 for another user's, whatever the rank. The database's policies say it once more. */
export function addressFor(
  caller: Caller,
  scope: Address['scope'],
  params: { owner?: string | undefined; key: string },
  environment: string | undefined,
): Address {
  if (scope === 'user') {
    const owner = params.owner === 'me' ? String(caller.userId) : (params.owner ?? '')
    if (owner !== String(caller.userId)) throw notFound('entry')
    return { scope, owner, environment: '', key: params.key }
  }
  return { scope, owner: params.owner ?? '', environment: environment ?? '', key: params.key }
}

/** As the audit trail names it: the path behind /v1/. */
export function addressText({ scope, owner, environment, key }: Address): string {
  const path = ['config', scope, ...(scope === 'global' ? [] : [owner]), key].join('/')
  return environment === '' ? path : `${path}?environment=${environment}`
}
