import type { SchemaEngine } from '@prisma/schema-engine-wasm/schema_engine_bg'
import type { ClientBase, ClientConfig } from 'pg'

export interface EngineOptions {
  /** Parsed, never a `connectionString`. */
  pgConfig: ClientConfig
  /** [path, text] of each schema file. */
  datamodels?: [string, string][]
  /** Gets the engine's log, one JSON object a line. */
  log?: (line: string) => void
}

export interface RunningEngine {
  engine: SchemaEngine
  /** Work on the engine's own connection; a transaction that it leaves open holds what the engine does next. */
  use<T>(work: (client: ClientBase) => Promise<T>): Promise<T>
  /** Ends every connection at once and drops shadow databases; a pending call of the engine rejects. */
  close(): Promise<void>
}

export declare function createEngine(options: EngineOptions): Promise<RunningEngine>
