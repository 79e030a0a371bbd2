import { isDeepStrictEqual } from 'node:util'
import type { Compilable, CompiledQuery } from 'kysely'
import type { Db } from './database.js'

/** Stands for a value while a query is compiled; the NUL keeps it apart from every real text. */
const HOLE = '\u0000hole:'

/**
 * A query whose text never changes, built by Kysely once for the process: `build` is called with holes in place of
 * the arguments, and every later call only puts its own values there (26 us become 3).
 *
 * A hole may stand wherever a parameter may. It is no value: `build` must not decide by it, calculate with it or take
 * it apart. That of a list is one parameter, an array; for `in` there is compileForList.
 */
export function compileOnce<A extends unknown[], R>(
  build: (db: Db, ...holes: A) => Compilable<R>,
  arity: A['length'],
): (db: Db, ...values: A) => Compilable<R> {
  const names = Array.from({ length: arity }, (_, index) => String(index))
  let compiled: CompiledQuery<R> | undefined
  return (db, ...values) => {
    compiled ??= compile((holes) => build(db, ...(holes as A)), names)
    return filled(compiled, (name) => values[Number(name)])
  }
}

/** So many texts of one query; a caller chooses which filters come together. */
const MAX_TEXTS = 200

/**
 * The same for a query whose text depends on which values are given (null is, undefined is not), and on nothing else
 * of them: built once for each set of names.
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
      const byName = (holes: string[]) => Object.fromEntries(names.map((name, at) => [name, holes[at]])) as V
      compiled = compile((holes) => build(db, byName(holes)), names)
      if (texts.size < MAX_TEXTS) texts.set(set, compiled)
    }
    return filled(compiled, (name) => values[name])
  }
}

/**
 * The same for a list, for `in`: filled up to a power of two with its first one again, so that a thousand lengths have
 * eleven texts, and each can have a name. (`= any` of one array would do, but pg-mem finds nothing so by an index.)
 */
export function compileForList<T, R>(
  build: (db: Db, holes: readonly T[]) => Compilable<R>,
): (db: Db, list: readonly T[]) => Compilable<R> {
  const bySet = compileBySet((db, holes: Record<number, T>) => build(db, Object.values(holes)))
  return (db, list) => {
    const length = 2 ** Math.ceil(Math.log2(list.length))
    return bySet(
      db,
      Array.from({ length }, (_, at) => (list[at] ?? list[0]) as T),
    )
  }
}

/**
 * Throws for a hole that was taken for a value, in whose place nothing would be put: with holes of other names all
 * that is no hole must be the same.
 */
function compile<R>(build: (holes: string[]) => Compilable<R>, names: readonly string[]): CompiledQuery<R> {
  const holes = names.map((name) => HOLE + name)
  const compiled = build(holes).compile()
  const other = build(names.map((name) => `\u0000other:${name}`)).compile()
  for (const [index, parameter] of compiled.parameters.entries()) {
    const isHole = typeof parameter === 'string' && holes.includes(parameter)
    const isSame = isDeepStrictEqual(parameter, other.parameters[index])
    if (!isHole && (!isSame || Number.isNaN(parameter)))
      throw new Error(`a hole was taken for a value: ${JSON.stringify(parameter)}`)
  }
  if (other.sql !== compiled.sql) throw new Error(`a hole is in the text: ${compiled.sql}`)
  return compiled
}

function filled<R>(compiled: CompiledQuery<R>, valueOf: (name: string) => unknown): Compilable<R> {
  const parameters = compiled.parameters.map((parameter) =>
    typeof parameter === 'string' && parameter.startsWith(HOLE)
      ? valueOf(parameter.slice(HOLE.length))
      : parameter,
  )
  // Member by member: a spread costs as much as all of this.
  const { query, queryId, sql } = compiled
  return { compile: () => ({ query, queryId, sql, parameters }) }
}
