import type { Compilable, CompiledQuery } from 'kysely'
import type { Db } from './database.js'

/** Stands for a parameter while a query is compiled; the NUL keeps it apart from every real text. */
const HOLE = '\u0000hole:'

/**
 * A query whose text never changes, built by Kysely once for the process: `build` is called with stand-ins for
 * the arguments, and every later call only puts its own in their places (26 us become 3). Its text must not
 * depend on the arguments, which must all be texts.
 */
export function compileOnce<A extends string[], R>(
  build: (db: Db, ...holes: A) => Compilable<R>,
  arity: A['length'],
): (db: Db, ...values: A) => Compilable<R> {
  let compiled: CompiledQuery<R> | undefined
  return (db, ...values) => {
    compiled ??= build(
      db,
      ...(Array.from({ length: arity }, (_, index) => HOLE + String(index)) as A),
    ).compile()
    const parameters = compiled.parameters.map((parameter) =>
      typeof parameter === 'string' && parameter.startsWith(HOLE)
        ? values[Number(parameter.slice(HOLE.length))]
        : parameter,
    )
    const query = { ...compiled, parameters }
    return { compile: () => query }
  }
}
