import pg from 'pg'
import { expect, it } from 'vitest'
import { useService } from '../harness.js'

const service = useService()

it.each([
  ['has no disk left', '53100'],
  ['loses its connection', '57P01'],
  ['is in conflict', '40001'],
])('a read is answered though the database %s when its last use is to be written', async (_, sqlstate) => {
  const superuser = new pg.Client({ connectionString: service.database.url ?? '' })
  await superuser.connect()
  await superuser.query(`
    create or replace function refuse() returns trigger language plpgsql as
      $$ begin raise exception 'no' using errcode = '${sqlstate}'; end $$;
    create or replace trigger refuse before update on auth_sessions for each row execute function refuse();
    alter table auth_sessions disable trigger refuse;
    update auth_sessions set last_activity = now() - interval '2 minutes';
    alter table auth_sessions enable trigger refuse`)
  const answer = await service.call('GET', '/v1/auth/session', { token: service.ownerToken })
  await superuser.query('drop trigger refuse on auth_sessions')
  await superuser.end()
  expect(answer.status).toBe(200)
  expect(service.logged()).toContain('the last use was not written down')
})
