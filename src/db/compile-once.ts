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
    return filled(compiled, (hole) => values[Number(hole)])
  }
}

/** So many texts of one query; a caller chooses which filters come together. */
const MAX_TEXTS = 200

/**
 * The same for a query whose text depends on which values are given, and on nothing else of them: built once for each
 * set of names.
 */
export function compileBySet<V extends object, R>(
  build: (db: Db, holes: V) => Compilable<R>,
): (db: Db, given: V) => Compilable<R> {
  const texts = new Map<string, CompiledQuery<R>>()
  return (db, given) => {
    const values = given as Record<string, unknown>
    const names = Object.keys(values).filter((name) => values[name] !== undefined)
    const set = names.join()
    let compiled = texts.get(set)
    if (compiled === undefined) {
      compiled = build(db, Object.fromEntries(names.map((name) => [name, HOLE + name])) as V).compile()
      if (texts.size < MAX_TEXTS) texts.set(set, compiled)
    }
    return filled(compiled, (hole) => values[hole])
  }
}

function filled<R>(compiled: CompiledQuery<R>, valueOf: (hole: string) => unknown): Compilable<R> {
  const parameters = compiled.parameters.map((parameter) =>
    typeof parameter === 'string' && parameter.startsWith(HOLE)
      ? valueOf(parameter.slice(HOLE.length))
      : parameter,
  )
  const query = { ...compiled, parameters }
  return { compile: () => query }
}
