import pg, { type ClientConfig } from 'pg'
import { BASE_ROLE } from './pool.js'

/**
 * Finds out, on a connection outside every pool, whether the database would serve: it accepts the login as
 * gary_app, answers, and takes changes. Rejects with what stands in the way (25006 for a standby), after
 * `timeoutMs` at the latest, and at once when the signal is aborted.
 */
export async function probeDatabase(
  config: ClientConfig,
  timeoutMs: number,
  signal: AbortSignal,
): Promise<void> {
  const client = new pg.Client({ ...config, connectionTimeoutMillis: timeoutMs, query_timeout: timeoutMs })
  // The connection may break after its answer; what counts then is the answer.
  client.on('error', () => {})
  const stop = (): void => (client as unknown as Wire).connection.stream.destroy()
  const late = setTimeout(stop, timeoutMs)
  signal.addEventListener('abort', stop, { once: true })
  let answered = false
  try {
    signal.throwIfAborted()
    await client.connect()
    const { rows } = await client.query<{ role: string; writable: boolean }>(
      "select current_user as role, not pg_is_in_recovery() and current_setting('transaction_read_only') = 'off' as writable",
    )
    const [row] = rows
    if (row?.role !== BASE_ROLE) throw coded('42501', `the connection is ${row?.role}, not ${BASE_ROLE}`)
    if (!row.writable) throw coded('25006', 'the server reached is read-only')
    answered = true
  } finally {
    clearTimeout(late)
    signal.removeEventListener('abort', stop)
    if (answered) client.end(() => {})
    else stop()
  }
}

interface Wire {
  connection: { stream: { destroy(): void } }
}

function coded(code: string, message: string): Error {
  return Object.assign(new Error(message), { code })
}
