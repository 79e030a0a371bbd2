import {
  type Compilable,
  type Expression,
  type ExpressionBuilder,
  type QueryCreator,
  type SqlBool,
  sql,
} from 'kysely'
import { type AuditValues, type ServiceEvent, auditValues, withAuditRow } from './audit.js'
import { compileBySet, compileOnce } from './compile-once.js'
import type { Db } from './database.js'
import { MAY_CHANGE, type MadeOnce, type OnceValues, withAnswer, withTurn } from './idempotency.js'
import type { DB } from './types.js'

/** Where an entry lives; what a scope has no use for is ''. */
export interface Address {
  scope: 'global' | 'environment' | 'service' | 'user'
  owner: string
  environment: string
  key: string
}

export interface StoredEntry extends Address {
  /** JSON text with sealed boxes at its secrets. */
  value: string
  version: number
  secret_paths: string[]
  tags: string[]
  description: string | null
  created_at: string
  updated_at: string
  updated_by: string
}

/** What must be there for a write to happen; the write itself decides, by its WHERE. */
export type Expected = { is: 'absent' } | { is: 'present' } | { is: 'version'; versions: number[] }

export interface EntryWrite {
  operation: 'put' | 'patch' | 'delete'
  value: string
  secretPaths: string[]
  tags: string[]
  description: string | null
}

const ENTRY_COLUMNS = [
  'scope',
  'owner',
  'environment',
  'key',
  'value',
  'version',
  'secret_paths',
  'tags',
  'description',
  'created_at',
  'updated_at',
  'updated_by',
] as const

/** The entry as it is now; no row for an absent, a deleted and an invisible one alike. */
export function entryAt(db: Db, { scope, owner, environment, key }: Address): Compilable<StoredEntry> {
  return readEntry(db, scope, owner, environment, key)
}

const readEntry = compileOnce(
  (db, scope: string, owner: string, environment: string, key: string): Compilable<StoredEntry> =>
    db
      .selectFrom('config_entries')
      .select(ENTRY_COLUMNS)
      .where(at({ scope: scope as Address['scope'], owner, environment, key }))
      .where('deleted', '=', false)
      .$castTo<StoredEntry>(),
  4,
)

/** The same with an audit row of its own: for who reads the secrets in the clear. */
export function entryAtAudited(db: Db, address: Address, event: ServiceEvent): Compilable<StoredEntry> {
  return readAudited(db, Object.assign(auditValues(event, { version: true }), address))
}

const readAudited = compileBySet((db, given: AuditValues & Address): Compilable<StoredEntry> => {
  const change = db.with('change', (qc) =>
    qc.selectFrom('config_entries').select(ENTRY_COLUMNS).where(at(given)).where('deleted', '=', false),
  )
  return withAuditRow(change, given).selectFrom('change').selectAll().$castTo<StoredEntry>()
})

/**
 * A change of one entry: current row, revision and audit row in one statement. No row when what was
 * expected is not there; the unique violation of two creations at once (config_entries_pkey) means the same.
 */
export function writeEntry(
  db: Db,
  address: Address,
  write: EntryWrite,
  expected: Expected,
  event: ServiceEvent,
): Compilable<StoredEntry> {
  return changeEntry(db, changeOf(address, write, expected, event))
}

/** An answer with an entry, as text around what only the statement knows: its version (twice), when made and changed. */
export interface EntryAnswer {
  answer: string
  behindTag: string
  behindVersion: string
  behindCreated: string
  behindUpdated: string
}

/** The same once under a key, with its answer: `entry` is that of a PUT, a deletion says nothing. */
export function writeEntryOnce(
  db: Db,
  address: Address,
  write: EntryWrite,
  expected: Expected,
  event: ServiceEvent,
  once: OnceValues,
  entry: EntryAnswer | undefined,
): Compilable<MadeOnce> {
  return changeEntryOnce(db, Object.assign(changeOf(address, write, expected, event), once, entry))
}

interface Change extends Address, EntryWrite, AuditValues {
  deleted: boolean
  /** Given where nothing may be there. */
  creates: true | undefined
  /** Given where one of these must be there. */
  versions: number[] | undefined
}

function changeOf(address: Address, write: EntryWrite, expected: Expected, event: ServiceEvent): Change {
  // Assigned: of so many members a spread makes a dictionary, which alone costs 70 us.
  return Object.assign(auditValues(event, { version: true }), address, write, {
    deleted: write.operation === 'delete',
    creates: expected.is === 'absent' ? (true as const) : undefined,
    versions: expected.is === 'version' ? expected.versions : undefined,
  })
}

const changeEntry = compileBySet((db, given: Change): Compilable<StoredEntry> =>
  changing(db, given, sql<SqlBool>`true`)
    .selectFrom('change')
    .selectAll()
    .$castTo<StoredEntry>(),
)

const changeEntryOnce = compileBySet(
  (db, given: Change & OnceValues & Partial<EntryAnswer>): Compilable<MadeOnce> =>
    withAnswer(
      changing(withTurn(db, given), given, MAY_CHANGE),
      given,
      given.behindTag === undefined
        ? text(given.answer)
        : sql`${text(given.answer)} || cast(change.version as text) || ${text(given.behindTag)}
            || cast(change.version as text) || ${text(given.behindVersion ?? '')}
            || ${rfc3339('created_at')} || ${text(given.behindCreated ?? '')}
            || ${rfc3339('updated_at')} || ${text(given.behindUpdated ?? '')}`,
      sql`change`,
    ),
)

/** Revision and audit row are of `change`; that is of what these two statements write, which is where `may`. */
function changing(creator: QueryCreator<DB>, given: Change, may: Expression<SqlBool>) {
  const creates = given.creates !== undefined
  const entry = {
    value: given.value,
    secret_paths: given.secretPaths,
    tags: given.tags,
    description: given.description,
    updated_by: given.actorName,
  }
  const change = creator
    .with('old', (qc) => qc.selectFrom('config_entries').select('version').where(at(given)))
    .with('updated', (qc) => {
      const update = qc
        .updateTable('config_entries')
        .set({
          ...entry,
          version: sql`config_entries.version + 1`,
          deleted: given.deleted,
          updated_at: sql`now()`,
        })
        .where(at(given))
        .where('deleted', '=', creates)
        .where(may)
      return (
        given.versions === undefined
          ? update
          : update.where(sql<SqlBool>`config_entries.version = any(cast(${given.versions} as integer[]))`)
      ).returning(ENTRY_COLUMNS)
    })
    .with('inserted', (qc) =>
      qc
        .insertInto('config_entries')
        .columns([
          'scope',
          'owner',
          'environment',
          'key',
          'version',
          'value',
          'secret_paths',
          'tags',
          'description',
          'updated_by',
        ])
        .expression(
          qc
            .selectNoFrom([
              text(given.scope).as('scope'),
              text(given.owner).as('owner'),
              text(given.environment).as('environment'),
              text(given.key).as('key'),
              sql<number>`1`.as('version'),
              text(entry.value).as('value'),
              textArray(entry.secret_paths).as('secret_paths'),
              textArray(entry.tags).as('tags'),
              text(entry.description).as('description'),
              text(entry.updated_by).as('updated_by'),
            ])
            .where(
              creates
                ? (eb) => eb.not(eb.exists(eb.selectFrom('old').select('old.version')))
                : sql<SqlBool>`false`,
            )
            .where(may),
        )
        .returning(ENTRY_COLUMNS),
    )
    .with('change', (qc) =>
      qc.selectFrom('updated').selectAll().unionAll(qc.selectFrom('inserted').selectAll()),
    )
    .with('revision', (qc) =>
      qc
        .insertInto('config_revisions')
        .columns([
          'scope',
          'owner',
          'environment',
          'key',
          'version',
          'operation',
          'value',
          'secret_paths',
          'tags',
          'description',
          'actor_type',
          'actor_id',
          'actor_name',
          'request_id',
        ])
        .expression((eb) =>
          eb
            .selectFrom('change')
            .select([
              'change.scope',
              'change.owner',
              'change.environment',
              'change.key',
              'change.version',
              text(given.operation).as('operation'),
              'change.value',
              'change.secret_paths',
              'change.tags',
              'change.description',
              text(given.actorType).as('actor_type'),
              sql<number | null>`cast(${given.actorId} as integer)`.as('actor_id'),
              text(given.actorName).as('actor_name'),
              text(given.requestId).as('request_id'),
            ]),
        ),
    )
  return withAuditRow(change, given)
}

export interface Revision {
  version: number
  operation: string
  created_at: string
  actor_type: string
  actor_id: number | null
  actor_name: string
  tags: string[]
  description: string | null
  secret_paths: string[]
  request_id: string | null
  value: string
}

/** An entry's versions, newest first, below `before` where given. */
export function revisionsOf(
  db: Db,
  address: Address,
  limit: number,
  before: number | undefined,
): Compilable<Revision> {
  return findRevisions(db, { ...address, limit, before })
}

interface RevisionsPage extends Address {
  limit: number
  before: number | undefined
}

const findRevisions = compileBySet((db, page: RevisionsPage): Compilable<Revision> => {
  const query = db
    .selectFrom('config_revisions')
    .select([
      'version',
      'operation',
      'created_at',
      'actor_type',
      'actor_id',
      'actor_name',
      'tags',
      'description',
      'secret_paths',
      'request_id',
      'value',
    ])
    .where('scope', '=', page.scope)
    .where('owner', '=', page.owner)
    .where('environment', '=', page.environment)
    .where('key', '=', page.key)
    .orderBy('version', 'desc')
    .limit(page.limit)
  return page.before === undefined ? query : query.where('version', '<', page.before)
})

function at({ scope, owner, environment, key }: Address) {
  return (eb: ExpressionBuilder<DB, 'config_entries'>): Expression<SqlBool> =>
    eb.and([
      eb('scope', '=', scope),
      eb('owner', '=', owner),
      eb('environment', '=', environment),
      eb('key', '=', key),
    ])
}

/** As timestampToIso spells it. A time that comes as such fails where its connection is not in UTC; this is told in UTC anywhere. */
function rfc3339(column: 'created_at' | 'updated_at') {
  return sql<string>`to_char(timezone('UTC', change.${sql.ref(column)}), 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')`
}

function text(value: string | null) {
  return sql<string>`cast(${value} as text)`
}

function textArray(values: string[]) {
  return sql<string[]>`cast(${values} as text[])`
}
