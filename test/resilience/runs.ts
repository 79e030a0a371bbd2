import { expect } from 'vitest'

/** How often each property is tried. A failure prints its seed and path; FC_SEED=<seed> plays it again. */
export const RUNS = {
  numRuns: 10_000,
  ...(process.env['FC_SEED'] === undefined ? {} : { seed: Number(process.env['FC_SEED']) }),
}

/** expect().toEqual only where it will fail: the hundred thousands of a property take most of its time. */
export function same(got: unknown, wanted: unknown): void {
  if (JSON.stringify(got) !== JSON.stringify(wanted)) expect(got).toEqual(wanted)
}
