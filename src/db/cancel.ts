import type { ConnectionOptions } from 'node:tls'
import pg, { type ClientBase } from 'pg'

/** What pg's client knows of its own connection, beyond its type declarations. */
interface Cancellable {
  host: string
  port: number
  ssl: ConnectionOptions | boolean
  processID: number | null
  secretKey: number | null
}

/** pg's connection without a client: dialling, TLS and the message are already there. */
interface BareConnection {
  stream: { destroy(): void }
  connect(port: number | string, host?: string): void
  requestSsl(): void
  cancel(processId: number, secretKey: number): void
  on(event: 'connect' | 'sslconnect' | 'end' | 'error', listener: () => void): void
}
const Connection = pg.Connection as unknown as new (config: { ssl: unknown }) => BareConnection

/**
 * Asks the server to stop what this client is running (PostgreSQL manual, 55.2.7): over a connection of its
 * own, encrypted as the client's is. Resolves when the request was delivered, failed, or took `timeoutMs`; whether it came in
 * time only the statement's own answer tells. The request may arrive after that answer and hit whatever runs
 * next, so the client must not be used again.
 */
export async function cancelOnServer(client: ClientBase, timeoutMs: number): Promise<void> {
  const { host, port, ssl, processID, secretKey } = client as unknown as Cancellable
  if (processID === null || secretKey === null) return
  const connection = new Connection({ ssl })
  await new Promise<void>((resolve) => {
    const late = setTimeout(resolve, timeoutMs)
    const done = (): void => {
      clearTimeout(late)
      resolve()
    }
    connection.on('error', done)
    connection.on('end', done)
    if (ssl) connection.on('sslconnect', () => connection.cancel(processID, secretKey))
    connection.on('connect', () => (ssl ? connection.requestSsl() : connection.cancel(processID, secretKey)))
    if (host.startsWith('/')) connection.connect(`${host}/.s.PGSQL.${port}`)
    else connection.connect(port, host)
  })
  connection.stream.destroy()
}
