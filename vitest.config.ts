import { defineConfig } from 'vitest/config'

const common = { testTimeout: 30_000, hookTimeout: 120_000 }

/** The same suites under test/routes and test/db run on both engines; test/engine.ts knows which one. */
export default defineConfig({
  test: {
    reporters: ['default'],
    projects: [
      {
        test: {
          ...common,
          name: 'pure',
          include: [
            'test/security/**/*.test.ts',
            'test/resilience/**/*.test.ts',
            'test/flight/**/*.test.ts',
            'test/*.test.ts',
          ],
        },
      },
      {
        test: {
          ...common,
          name: 'memory',
          include: ['test/routes/**/*.test.ts', 'test/db/**/*.test.ts', 'test/memory/**/*.test.ts'],
          env: { TEST_ENGINE: 'memory' },
        },
      },
      {
        test: {
          ...common,
          name: 'postgres',
          include: ['test/routes/**/*.test.ts', 'test/db/**/*.test.ts', 'test/postgres/**/*.test.ts'],
          env: { TEST_ENGINE: 'postgres' },
          globalSetup: ['test/postgres-server.ts'],
        },
      },
      {
        test: {
          ...common,
          testTimeout: 60_000,
          name: 'faults',
          include: ['test/faults/**/*.test.ts'],
          // Each hurts a server, and times what follows.
          fileParallelism: false,
        },
      },
      {
        test: {
          ...common,
          testTimeout: 180_000,
          name: 'examples',
          include: ['test/examples/**/*.test.ts'],
          env: { TEST_ENGINE: 'postgres' },
          globalSetup: ['test/postgres-server.ts'],
        },
      },
    ],
  },
})
