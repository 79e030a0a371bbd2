import type { Cluster } from './cluster.js'

export type Outcome = 'ok' | 'fail' | 'unknown'

export interface Operation {
  kind: 'entry' | 'event'
  /** Key of the entry, or id of the event: each operation has its own. */
  id: string
  /** Of a batch of events, all of one beginning: how many. */
  size?: number
  outcome: Outcome
  detail: string
}

/** Ids of events are told apart by so much of them; the rest numbers the events of a batch. */
export const PREFIX_LENGTH = 24

/** Every change that clients asked for, and what they were told of it. */
export class History {
  readonly operations: Operation[] = []
  reads = { ok: 0, failed: 0 }
  /** Performance.now() of each acknowledged change, for the time that recovery took. */
  readonly okAtMs: number[] = []

  add(operation: Operation): void {
    this.operations.push(operation)
    if (operation.outcome === 'ok') this.okAtMs.push(performance.now())
  }

  count(outcome: Outcome): number {
    return this.operations.filter((operation) => operation.outcome === outcome).length
  }

  /** As count, with every event of a batch for itself. */
  writes(outcome: Outcome): number {
    return this.operations.reduce((sum, each) => sum + (each.outcome === outcome ? (each.size ?? 1) : 0), 0)
  }

  /** From that moment to the first change acknowledged after it. */
  recoveredAfterMs(sinceMs: number): number {
    return (this.okAtMs.find((atMs) => atMs >= sinceMs) ?? Infinity) - sinceMs
  }

  /**
   * Reads everything past the service and its proxy: nothing acknowledged is missing, nothing refused is there,
   * what is unknown is there at most once, a batch is there whole or not at all, and each change that is there
   * has one audit row and one revision.
   */
  async check(cluster: Cluster, database: string): Promise<void> {
    const entries = await counts(
      cluster,
      database,
      "select key as id, count(*) from config_revisions where scope = 'global' group by key",
    )
    const audited = await counts(
      cluster,
      database,
      "select substr(target, 15) as id, count(*) from audit_events where action = 'config.put' group by target",
    )
    const events = await counts(
      cluster,
      database,
      `select left(event_id::text, ${PREFIX_LENGTH}) as id, count(*) from audit_events where source = 'client' group by 1`,
    )
    const wrong: string[] = []
    for (const { kind, id, size = 1, outcome, detail } of this.operations) {
      const stored = (kind === 'entry' ? entries : events).get(keyOf(kind, id)) ?? 0
      const rows = kind === 'entry' ? (audited.get(id) ?? 0) : stored
      if (outcome === 'ok' && stored !== size)
        wrong.push(`acknowledged, but there ${stored} times: ${kind} ${id} (${detail})`)
      if (outcome === 'fail' && stored !== 0) wrong.push(`refused, but there: ${kind} ${id} (${detail})`)
      if (stored !== 0 && stored !== size) wrong.push(`there ${stored} times: ${kind} ${id} (${detail})`)
      if (rows !== stored)
        wrong.push(`${stored} times there, audited ${rows} times: ${kind} ${id} (${detail})`)
    }
    const known = new Set(this.operations.map(({ kind, id }) => keyOf(kind, id)))
    for (const id of [...entries.keys(), ...events.keys()])
      if (!known.has(id)) wrong.push(`nobody asked for it: ${id}`)
    if (wrong.length > 0)
      throw new Error(`${wrong.length} of ${this.operations.length} wrong:\n${wrong.slice(0, 10).join('\n')}`)
  }
}

function keyOf(kind: Operation['kind'], id: string): string {
  return kind === 'entry' ? id : id.slice(0, PREFIX_LENGTH)
}

async function counts(cluster: Cluster, database: string, text: string): Promise<Map<string, number>> {
  const rows = await cluster.query<{ id: string; count: string }>(text, database)
  return new Map(rows.map(({ id, count }) => [id, Number(count)]))
}
