import pg from 'pg'
import type { Cluster } from './cluster.js'

/** A superuser's connection past the service and its proxy, for what a test holds in its way: `end` gives all of it back. */
export async function superuser(cluster: Cluster, database?: string): Promise<pg.Client> {
  const client = new pg.Client({ connectionString: cluster.url(database), connectionTimeoutMillis: 3000 })
  client.on('error', () => {})
  await client.connect()
  return client
}
