export type MigrationErrorCode = 'unreachable' | 'refused' | 'edited' | 'failed'

/** For the operator: names host, user, database, migration, table and the server's words, never the password. */
export class MigrationError extends Error {
  override readonly name = 'MigrationError'
  readonly code: MigrationErrorCode
  constructor(code: MigrationErrorCode, message: string, cause?: unknown) {
    super(message, { cause })
    this.code = code
  }
}
