import { fileURLToPath } from 'node:url'
import { defineConfig } from 'prisma/config'

// Prisma's CLI downloads a native engine unless this names one: see prisma/schema-engine.mjs.
process.env['PRISMA_SCHEMA_ENGINE_BINARY'] ??= fileURLToPath(
  new URL('prisma/schema-engine.mjs', import.meta.url),
)

// Migrations hold locks for a whole session, which a pooler in transaction mode does not keep. The last URL
// names no real database: it lets `generate`, `format` and `validate` work without one.
const url =
  process.env['DATABASE_UNPOOLED_URL'] ||
  process.env['DATABASE_URL'] ||
  'postgresql://localhost:5432/database-url-is-not-set'

export default defineConfig({
  schema: 'prisma/schema.prisma',
  migrations: { path: 'prisma/migrations' },
  datasource: { url },
})
