import { createRoute, z } from '@hono/zod-openapi'
import { SYSTEM, asApp, asCaller } from '../db/as-caller.js'
import { forgetSetupTokens, validSetupToken } from '../db/setup.js'
import { beginAttempt, endAttempt } from '../db/throttle.js'
import { inTransaction } from '../db/transaction.js'
import { anyUser, createUser, lockSetup } from '../db/users.js'
import { AppError, notFound } from '../errors.js'
import { hashToken, isSetupToken } from '../security/tokens.js'
import { json, problems, userSchema, username } from './schemas.js'
import { type SignInDeps, bucketsOf, tooManyAttempts } from './sign-in.js'
import { createRouter, jsonBody, refuseIdempotencyKey } from './validate.js'

export type SetupDeps = SignInDeps

const setupBody = z.strictObject({
  setup_token: z.string().max(128),
  username,
  password: z.string().max(1024),
})

/** The first owner, by the one-time link that the start of the service printed. Gone once any user exists. */
export function setupRoutes(deps: SetupDeps) {
  const { db, passwords } = deps
  return createRouter().openapi(
    createRoute({
      method: 'post',
      path: '/v1/setup',
      summary: 'Create the first owner with the one-time set-up token',
      middleware: [refuseIdempotencyKey, jsonBody('strict')] as const,
      request: { body: { required: true, ...json(setupBody) } },
      responses: { 201: { description: 'The owner', ...json(z.object({ user: userSchema })) }, ...problems },
    }),
    async (c) => {
      const { setup_token, username, password } = c.req.valid('json')
      const tokenHash = hashToken(setup_token)
      const isOpen = async (): Promise<boolean> => (await asCaller(db, SYSTEM, anyUser(db))).length === 0
      if (!(await isOpen())) throw notFound('address')
      // Where the address is not known nothing counts: 256 bits are not guessed, and counting would let anyone lock it.
      const { address } = bucketsOf(deps, '', c.get('correlation').ipAddress)
      const buckets =
        address === null ? null : { account: deps.bucketName('setup'), address, atAddressOnly: true as const }
      if (buckets !== null) {
        const [begun] = await asApp(db, beginAttempt(buckets), c.get('deadline'))
        if (begun === undefined || begun.wait_seconds > 0) throw tooManyAttempts(begun?.wait_seconds ?? 1)
      }
      // Before the password is hashed: guessing must not cost a hash.
      const [token] = isSetupToken(setup_token)
        ? await asCaller(db, SYSTEM, validSetupToken(db, tokenHash))
        : []
      if (buckets !== null) await asApp(db, endAttempt(buckets, token === undefined ? 'failed' : 'void'))
      // Gone with the set-up of somebody else, in this moment?
      if (token === undefined) throw (await isOpen()) ? wrongToken() : notFound('address')
      await passwords.assertAcceptable(password, { username })
      const passwordHash = await passwords.hash(password)
      const user = await inTransaction(db, SYSTEM, async (tx) => {
        await tx.executeQuery(lockSetup(tx))
        const { rows: users } = await tx.executeQuery(anyUser(tx))
        if (users.length > 0) throw notFound('address')
        const { rows: tokens } = await tx.executeQuery(validSetupToken(tx, tokenHash))
        if (tokens.length === 0) throw wrongToken()
        await tx.executeQuery(forgetSetupTokens(tx))
        const owner = { username, passwordHash, role: 'owner', mustChangePassword: false } as const
        const created = await tx.executeQuery(
          createUser(tx, owner, {
            caller: SYSTEM,
            correlation: c.get('correlation'),
            eventType: 'user_action',
            level: 'warning',
            action: 'setup.complete',
            target: null,
            message: 'First owner created with the set-up token',
            metadata: { username },
          }),
        )
        return created.rows[0]
      })
      if (user === undefined) throw new AppError('internal', 'The request failed.')
      return c.json({ user }, 201)
    },
  )
}

function wrongToken(): AppError {
  return new AppError('invalid_credentials', 'The set-up token is wrong or too old.')
}
