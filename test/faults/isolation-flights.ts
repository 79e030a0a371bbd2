import { randomBytes, randomUUID } from 'node:crypto'
import { type Compilable, CompiledQuery, SelectQueryNode } from 'kysely'
import type pg from 'pg'
import { type Caller, SYSTEM, asApp, asCaller } from '../../src/db/as-caller.js'
import { sessionClaim } from '../../src/db/claims.js'
import type { Db } from '../../src/db/database.js'
import type { Deadline } from '../../src/db/deadline.js'
import { hashToken } from '../../src/security/tokens.js'
import type { Random } from './soak-faults.js'

/** A user with a session, entries and rows of its own. */
export interface Person {
  id: number
  username: string
  sessionId: number
  tokenHash: string
}

/** What each row of this table says of itself is what the connection was when it was written. */
const PROOF = `
create table proof (token text primary key, owner integer default gary.user_id(), actor text default gary.actor(),
  as_role text default current_user);
alter table proof enable row level security;
alter table proof force row level security;
create policy reads_own on proof for select to gary_caller using (owner = (select gary.user_id()));
create policy updates_own on proof for update to gary_caller using (owner = (select gary.user_id()));
-- Whatever identity there is, or none: what is wrong must come in to be found.
create policy writes on proof for insert to gary_caller, gary_app with check (true);
grant select, insert, update on proof to gary_caller;
grant insert on proof to gary_app;
create table held (owner integer primary key, note text);
grant select, update on held to gary_caller;`

/** People with three entries and three rows each, as the superuser makes them. */
export async function settle(superuser: pg.Client, count: number): Promise<Person[]> {
  await superuser.query(PROOF)
  const people: Person[] = []
  for (let number = 0; number < count; number += 1) {
    const username = `person ${number}`
    const tokenHash = hashToken(randomBytes(16).toString('hex'))
    const { rows } = await superuser.query<{ id: number; session_id: number }>(
      `with person as (insert into auth_users (username, username_key, password_hash) values ($1, $1, '!') returning id),
         session as (insert into auth_sessions (session_token, user_id, expires_at)
           select $2, id, now() + interval '1 day' from person returning id),
         entries as (insert into config_entries (scope, owner, environment, key, value, version, updated_by)
           select 'user', id, '', 'seed ' || n, $1, 1, $1 from person, generate_series(1, 3) n),
         rows as (insert into proof select 'seed ' || n || ' of ' || id, id, 'user:' || id, 'gary_caller'
           from person, generate_series(1, 3) n),
         held as (insert into held select id from person)
       select person.id, session.id as session_id from person, session`,
      [username, tokenHash],
    )
    const { id = 0, session_id: sessionId = 0 } = rows[0] ?? {}
    people.push({ id, username, sessionId, tokenHash })
  }
  return people
}

/** Half of them with a claim that their first statement confirms. */
function callerOf({ id, username, sessionId, tokenHash }: Person): Caller {
  const caller: Caller = {
    ...SYSTEM,
    userId: id,
    role: 'user',
    sessionId,
    actor: { type: 'user', id, name: username },
  }
  if (id % 2 === 0) return caller
  return {
    ...caller,
    claim: sessionClaim(tokenHash, 7200, { session_id: sessionId, id, username, role: 'user' }),
  }
}

export interface Made {
  caller: Caller
  answer: Promise<unknown[]>
}

/** A way to ask, and what must come of it. */
export interface Kind {
  name: string
  weight: number
  writes: boolean
  /** Of a read: exactly these rows, but for `pid`. Of what fails: this SQLSTATE, and its own words where it has any. */
  rows?: (person: Person, token: string) => object[]
  fails?: { state: string; inItsWords?: boolean }
  make: (db: Db, person: Person, token: string, deadline: Deadline | undefined) => Made
}

function reading(text: string, parameters: unknown[]): Compilable<unknown> {
  return {
    compile: () => ({ ...CompiledQuery.raw(text, parameters), query: SelectQueryNode.createFrom([]) }),
  }
}

function writing(text: string, parameters: unknown[]): Compilable<unknown> {
  return { compile: () => CompiledQuery.raw(text, parameters) }
}

function as(
  query: (person: Person, token: string) => Compilable<unknown>,
  change: (caller: Caller, token: string) => Caller = (caller) => caller,
): Kind['make'] {
  return (db, person, token, deadline) => {
    const caller = {
      ...change(callerOf(person), token),
      ...(deadline === undefined ? {} : { deadline }),
    }
    return { caller, answer: asCaller(db, caller, query(person, token)) }
  }
}

const ME = 'gary.user_id() as me, current_user::text as as_role, $1::text as echo, pg_backend_pid() as pid'
const me = ({ id }: Person, echo: string) => ({ me: id, as_role: 'gary_caller', echo })
const three = <T>(of: (n: number) => T): T[] => [1, 2, 3].map(of)
const insert = (_: Person, token: string) => writing('insert into proof (token) values ($1)', [token])

/** Each asks under a token of its own. */
export const GOOD: Kind[] = [
  {
    name: 'own entries',
    weight: 30,
    writes: false,
    make: as((_, token) =>
      reading(`select owner, key, value, ${ME} from config_entries where key like 'seed%' order by key`, [
        token,
      ]),
    ),
    rows: (person, token) =>
      three((n) => ({
        owner: String(person.id),
        key: `seed ${n}`,
        value: person.username,
        ...me(person, token),
      })),
  },
  {
    name: 'own rows',
    weight: 30,
    writes: false,
    make: as((_, token) =>
      reading(`select token, owner, ${ME} from proof where token like 'seed%' order by token`, [token]),
    ),
    rows: (person, token) =>
      three((n) => ({ token: `seed ${n} of ${person.id}`, owner: person.id, ...me(person, token) })),
  },
  {
    name: 'nobody',
    weight: 10,
    writes: false,
    make: (db, _, token, deadline) => ({
      caller: SYSTEM,
      answer: asApp(db, reading(`select ${ME}`, [token]), deadline),
    }),
    rows: (_, token) => [{ me: null, as_role: 'gary_app', echo: token }],
  },
  { name: 'a row', weight: 15, writes: true, make: as(insert) },
  {
    name: 'an entry',
    weight: 10,
    writes: true,
    make: as((_, token) =>
      writing(
        `insert into config_entries (scope, owner, environment, key, value, version, updated_by)
         values ('user', gary.user_id()::text, '', $1, current_user, 1, gary.actor())`,
        [token],
      ),
    ),
  },
  {
    name: 'an event',
    weight: 10,
    writes: true,
    make: as(({ id, username }, token) =>
      writing(
        `insert into audit_events (event_id, occurred_at, event_type, level, source, actor_type, actor_id, actor_name, event)
         values ($1, now(), 'user_action', 'info', 'client', 'user', $2, $3, $4)`,
        [randomUUID(), id, username, JSON.stringify({ token })],
      ),
    ),
  },
  {
    name: 'what a lane stops and the pool does',
    weight: 1,
    writes: true,
    make: as((_, token) => writing('insert into proof (token) select $1 from pg_sleep(0.65)', [token])),
  },
]

/** All of them would leave a row under their token if they did not fail. */
export const BAD: Kind[] = [
  {
    name: 'a role that is none',
    weight: 4,
    writes: true,
    make: as(insert, (caller, token) => ({ ...caller, databaseRole: token as 'gary_caller' })),
    fails: { state: '22023', inItsWords: true },
  },
  {
    name: 'a claim that does not hold',
    weight: 4,
    writes: true,
    make: as(insert, (caller, token) => ({
      ...caller,
      claim: sessionClaim(hashToken(token), 7200, {
        session_id: caller.sessionId ?? 0,
        id: caller.userId ?? 0,
        username: caller.actor.name,
        role: caller.role,
      }),
    })),
    fails: { state: 'GZ401' },
  },
  {
    name: 'a parameter that is no number',
    weight: 4,
    writes: true,
    make: as((_, token) => writing('insert into proof (token) values ($1::integer::text)', [token])),
    fails: { state: '22P02', inItsWords: true },
  },
  {
    name: 'a row that is no number',
    weight: 4,
    writes: true,
    make: as((_, token) =>
      writing(
        "insert into proof (token) select $1 || case n when 2 then ('x' || $1)::integer::text else '' end from generate_series(1, 3) n",
        [token],
      ),
    ),
    fails: { state: '22P02', inItsWords: true },
  },
  {
    name: 'a row that is there',
    weight: 4,
    writes: true,
    make: as(({ id }, token) =>
      writing('insert into proof (token) values ($1), ($2)', [token, `seed 1 of ${id}`]),
    ),
    fails: { state: '23505' },
  },
  {
    name: 'no statement, and a new one each time',
    weight: 4,
    writes: true,
    make: as((_, token) => writing(`insert into proof (token) values ($1) "${token}"`, [token])),
    fails: { state: '42601', inItsWords: true },
  },
  {
    name: 'a row that another holds',
    weight: 1,
    writes: true,
    make: as(({ id }, token) =>
      writing(
        `with mine as (update held set note = $1 where owner = $2 returning owner)
         insert into proof (token) select $1 from mine`,
        [token, id],
      ),
    ),
    fails: { state: '55P03' },
  },
  {
    name: 'no end',
    weight: 1,
    writes: true,
    make: as((_, token) => writing('insert into proof (token) select $1 from pg_sleep(60)', [token])),
    fails: { state: '57014' },
  },
]

/** A fifth of them fails. */
export function kindBy(random: Random): Kind {
  const kinds = random() < 0.2 ? BAD : GOOD
  let left = random() * kinds.reduce((sum, { weight }) => sum + weight, 0)
  return kinds.find(({ weight }) => (left -= weight) < 0) ?? (kinds[0] as Kind)
}
