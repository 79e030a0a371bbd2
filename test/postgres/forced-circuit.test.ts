import { afterAll, beforeAll, it } from 'vitest'
import type { ConnectionSource } from '../../src/db/source.js'
import { createForcedCircuit } from '../../src/forced-circuit.js'
import { NO_REQUEST } from '../../src/db/audit.js'
import type { Log } from '../../src/routes/context.js'
import { type TestDatabase, createTestDatabase } from '../engine.js'
import { eventually } from '../faults/eventually.js'

let database: TestDatabase
beforeAll(async () => void (database = await createTestDatabase()))
afterAll(async () => await database.drop())

it('a command whose audit row was written and not acknowledged holds up none of those after it', async () => {
  const { source } = database
  let lost = 0
  const losing = {
    forceCircuit: () => undefined,
    async connectPastCircuit() {
      const connection = await source.connectPastCircuit()
      return {
        stream: connection.stream.bind(connection),
        release: () => connection.release(),
        async execute(statements: Parameters<typeof connection.execute>[0]) {
          const result = await connection.execute(statements)
          if ((lost += 1) === 1) throw new Error('Connection terminated unexpectedly')
          return result
        },
      }
    },
  } as unknown as ConnectionSource
  const log: Log = { info: () => {}, warn: () => {}, error: () => {}, child: () => log }
  const circuit = createForcedCircuit(losing, log)
  for (const to of ['open', 'closed', 'auto'] as const) circuit.force(to, NO_REQUEST)
  await eventually('all three are audited', async () => {
    const rows = await database.read("select event from audit_events where action = 'circuit.force'")
    return rows.length === 3 ? true : undefined
  })
  circuit.stop()
})
