import type { OpenAPIHono } from '@hono/zod-openapi'
import { methodNotAllowed } from 'hono/method-not-allowed'
import { AppError, notFound } from './errors.js'
import { apiKeyRoutes } from './routes/api-keys.js'
import { type AuditDeps, auditRoutes } from './routes/audit.js'
import { type AuthDeps, authRoutes } from './routes/auth.js'
import { type ConfigDeps, configRoutes } from './routes/config.js'
import type { TrustedProxy } from './routes/client-address.js'
import { type AppEnv, type Log, requestContext } from './routes/context.js'
import { errorResponse } from './routes/error-response.js'
import { type HealthDeps, healthRoutes } from './routes/health.js'
import { type PasswordDeps, passwordRoutes } from './routes/passwords.js'
import { type ReportDeps, reportRoutes } from './routes/reports.js'
import { sessionRoutes } from './routes/sessions.js'
import { type SetupDeps, setupRoutes } from './routes/setup.js'
import { userRoutes } from './routes/users.js'
import { createRouter } from './routes/validate.js'

export type AppDeps = AuthDeps &
  PasswordDeps &
  AuditDeps &
  ConfigDeps &
  HealthDeps &
  ReportDeps &
  SetupDeps & {
    log: Log
    /** How long a request is worked on; streams excepted. */
    requestMs: number
    trustedProxy: TrustedProxy
  }

/** The service as a web-standard handler: everything it needs is handed in, and importing it does nothing. */
export function createApp(deps: AppDeps): OpenAPIHono<AppEnv> {
  const app = createRouter()
  app.use(requestContext(deps.log, deps))
  app.use(
    methodNotAllowed({
      app,
      onMethodNotAllowed: (c, methods) =>
        errorResponse(
          new AppError('method_not_allowed', 'This address does not take that method.', {
            headers: { allow: methods.join(', ') },
          }),
          c,
        ),
    }),
  )
  app.onError(errorResponse)
  app.notFound((c) => errorResponse(notFound('address'), c))
  app.route('/', healthRoutes(deps))
  app.route('/', setupRoutes(deps))
  app.route('/', authRoutes(deps))
  app.route('/', passwordRoutes(deps))
  app.route('/', sessionRoutes(deps))
  app.route('/', userRoutes(deps))
  app.route('/', apiKeyRoutes(deps))
  app.route('/', configRoutes(deps))
  app.route('/', auditRoutes(deps))
  app.route('/', reportRoutes(deps))
  app.doc31('/openapi.json', {
    openapi: '3.1.0',
    info: { title: 'PostgreSQL service of Gary-Zero', version: '0.1.0' },
  })
  return app
}
