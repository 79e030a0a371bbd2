import { DatabaseError } from 'pg'
import { AppError } from '../errors.js'
import { type Caller, asCaller } from './as-caller.js'
import { type NewEvent, appendEvents } from './audit-events.js'
import type { Db } from './database.js'
import { untilEnd } from './deadline.js'
import { identityStatement } from './identity.js'
import { type FailureClass, classify } from './pg-errors.js'
import { NoLane } from './source.js'

/** What one shared statement carries at most; of a larger batch most of the work is its own. */
export const MAX_TOGETHER = 50
/** In characters: what a lane takes in one piece, more or less. */
const MAX_CHARACTERS = 60 * 1024
/** What the names of the columns take in JSON, in characters. */
const COLUMNS = 150

/** What one event among many can make a statement fail of; the statement has then changed nothing. */
const BY_ONE_OF_THEM = new Set<FailureClass>([
  'conflict',
  'constraint',
  'bad_data',
  'serialization',
  'unknown',
])

/** Of one identity, with no id twice. */
interface Group {
  events: NewEvent[]
  ids: Set<string>
  characters: number
  landed: Promise<ReadonlySet<string>>
}

/** What one identity has under way, and what waits for the end of this turn. */
interface Line {
  underWay: number
  group: Group | undefined
}

const lines = new WeakMap<Db, Map<string, Line>>()

/**
 * Appends a caller's events; answers with the ids that were new. While something of an identity is under way, all
 * that it appends in one turn of the event loop shares one statement: applications tell their events one by one, and
 * most of what one costs is the statement. Nobody waits for others to come, each is waited for as long as its own
 * deadline says, and what a shared statement fails of by one of them each does once more alone.
 */
export async function appendTogether(
  db: Db,
  caller: Caller,
  events: readonly NewEvent[],
): Promise<ReadonlySet<string>> {
  const characters = charactersOf(events)
  const isOver = caller.deadline?.ended !== undefined
  if (isOver || events.length > MAX_TOGETHER || characters > MAX_CHARACTERS)
    return await append(db, caller, events)
  const key = identityKey(caller)
  const line = lineOf(db, key)
  line.underWay += 1
  try {
    return line.underWay === 1
      ? await append(db, caller, events)
      : await share(db, line, caller, events, characters)
  } finally {
    line.underWay -= 1
    if (line.underWay === 0) lines.get(db)?.delete(key)
  }
}

async function append(db: Db, caller: Caller, events: readonly NewEvent[]): Promise<ReadonlySet<string>> {
  const fresh = await asCaller(db, caller, appendEvents(caller, events))
  return new Set(fresh.map(({ event_id }) => event_id))
}

async function share(
  db: Db,
  line: Line,
  caller: Caller,
  events: readonly NewEvent[],
  characters: number,
): Promise<ReadonlySet<string>> {
  const group =
    line.group !== undefined && hasRoom(line.group, events, characters) ? line.group : open(db, line, caller)
  for (const event of events) group.ids.add(event.columns.eventId)
  group.events.push(...events)
  group.characters += characters
  const { deadline, claim } = caller
  let fresh
  try {
    fresh = await (deadline === undefined ? group.landed : untilEnd(group.landed, deadline, true))
  } catch (error) {
    if (isForEachAlone(error)) return await append(db, caller, events)
    throw error
  }
  if (claim !== undefined) claim.isConfirmed = true
  return new Set(events.map(({ columns }) => columns.eventId).filter((id) => fresh.has(id)))
}

/** Nothing was done of it, and of one alone there is something to hope for. */
function isForEachAlone(error: unknown): boolean {
  if (!(error instanceof AppError) || error.code === 'outcome_unknown') return false
  const { cause } = error
  return cause instanceof NoLane || (cause instanceof DatabaseError && BY_ONE_OF_THEM.has(classify(error)))
}

/** The group of this turn; one that is open already is sent as it is. */
function open(db: Db, line: Line, caller: Caller): Group {
  // Each of them waits as long as it may itself, and what one of them finds out meanwhile says nothing of the others.
  const { deadline: _, claim, ...rest } = caller
  const sender: Caller = { ...rest, isShared: true, ...(claim === undefined ? {} : { claim: { ...claim } }) }
  const group: Group = { events: [], ids: new Set(), characters: 0, landed: Promise.resolve(new Set()) }
  group.landed = new Promise((resolve, reject) => {
    setImmediate(() => {
      if (line.group === group) line.group = undefined
      append(db, sender, group.events).then(resolve, reject)
    })
  })
  line.group = group
  return group
}

function hasRoom({ ids, characters }: Group, events: readonly NewEvent[], more: number): boolean {
  return (
    ids.size + events.length <= MAX_TOGETHER &&
    characters + more <= MAX_CHARACTERS &&
    events.every(({ columns }) => !ids.has(columns.eventId))
  )
}

/** More or less. */
function charactersOf(events: readonly NewEvent[]): number {
  let sum = 0
  for (const { text, columns } of events) {
    sum += text.length + COLUMNS
    for (const value of Object.values(columns)) sum += value?.length ?? 0
  }
  return sum
}

function lineOf(db: Db, key: string): Line {
  let ofDb = lines.get(db)
  if (ofDb === undefined) lines.set(db, (ofDb = new Map()))
  let line = ofDb.get(key)
  if (line === undefined) ofDb.set(key, (line = { underWay: 0, group: undefined }))
  return line
}

/** All that the identity's statement says, and what it confirms, and what the rows tell beside it. */
function identityKey(caller: Caller): string {
  const { name, values } = identityStatement(caller)
  return JSON.stringify([name, values, caller.actor.name])
}
