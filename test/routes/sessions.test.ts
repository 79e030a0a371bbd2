import { describe, expect, it } from 'vitest'
import { PASSWORD, useService } from '../harness.js'

const key = `gzk_${'k'.repeat(43)}`
const service = useService({ SERVICE_API_KEY: key, SESSION_HOURS: '24', SESSION_IDLE_MINUTES: '120' })

async function signedIn(username = 'owner', userAgent = 'test'): Promise<{ token: string; id: number }> {
  const { body } = await service.call('POST', '/v1/auth/login', {
    body: { username, password: PASSWORD },
    headers: { 'user-agent': userAgent },
  })
  return { token: body.token, id: body.session.id }
}
async function userWithSessions(username: string, count: number) {
  const { body } = await service.call('POST', '/v1/users', {
    token: service.ownerToken,
    body: { username, password: PASSWORD },
  })
  const sessions = []
  for (let index = 0; index < count; index += 1) sessions.push(await signedIn(username, `browser ${index}`))
  return { id: body.id as number, sessions }
}
const status = async (token: string) => (await service.call('GET', '/v1/auth/session', { token })).status
const validate = async (token: string) =>
  await service.call('POST', '/v1/sessions/validate', { headers: { 'x-api-key': key }, body: { token } })

describe("one's own sessions", () => {
  it('are listed newest first with device and times, the present one marked, page by page', async () => {
    const { sessions } = await userWithSessions('lister', 3)
    const token = sessions[1]?.token ?? ''
    const first = await service.call('GET', '/v1/sessions?limit=2', { token })
    expect(first.body.items.map(({ id }: { id: number }) => id)).toEqual([sessions[2]?.id, sessions[1]?.id])
    expect(first.body.items[1]).toMatchObject({ current: true, user_agent: 'browser 1' })
    expect(first.text).not.toContain('gzs_')
    const second = await service.call('GET', `/v1/sessions?limit=2&cursor=${first.body.next_cursor}`, {
      token,
    })
    expect(second.body.items.map(({ id }: { id: number }) => id)).toEqual([sessions[0]?.id])
    expect(second.body.next_cursor).toBeNull()
    const mine = await signedIn()
    const foreign = `/v1/sessions?cursor=${first.body.next_cursor}`
    expect((await service.call('GET', foreign, { token: mine.token })).status).toBe(400)
  })

  it('end one by one, all others, or all; each with an audit row, and nobody ends those of others', async () => {
    const { id, sessions } = await userWithSessions('ender', 4)
    const [a, b, c, d] = sessions as [(typeof sessions)[0], ...typeof sessions]
    const stranger = await userWithSessions('stranger', 1)
    const end = (path: string, token = a.token) => service.call('DELETE', path, { token })
    expect((await end(`/v1/sessions/${b?.id}`, stranger.sessions[0]?.token)).status).toBe(404)
    expect((await end(`/v1/sessions/${b?.id}`)).status).toBe(204)
    expect((await end(`/v1/sessions/${b?.id}`)).status).toBe(404)
    expect(await Promise.all(sessions.map(({ token }) => status(token)))).toEqual([200, 401, 200, 200])
    expect((await service.call('POST', '/v1/sessions/revoke-others', { token: c?.token ?? '' })).status).toBe(
      204,
    )
    expect(await Promise.all(sessions.map(({ token }) => status(token)))).toEqual([401, 401, 200, 401])
    const seen = await service.call('GET', `/v1/users/${id}/sessions`, { token: service.ownerToken })
    expect(seen.body.items.map(({ id }: { id: number }) => id)).toEqual([c?.id])
    const all = await service.call('DELETE', `/v1/users/${id}/sessions`, { token: service.ownerToken })
    expect([all.status, await status(c?.token ?? ''), await status(d?.token ?? '')]).toEqual([204, 401, 401])
    const { body } = await service.call('GET', '/v1/audit/events?limit=20', { token: service.ownerToken })
    const actions = body.items.map(({ action }: { action: string }) => action)
    expect(actions).toEqual(
      expect.arrayContaining(['session.end', 'session.end_others', 'user.end_sessions']),
    )
  })
})

describe('the limits of a session', () => {
  it('are 24 hours in all and 2 hours idle, by the clock of the database', async () => {
    for (const past of [
      "expires_at = now() - interval '1 second'",
      "last_activity = now() - interval '2 hours 1 second'",
    ]) {
      const { token, id } = await signedIn()
      await service.database.read(`update auth_sessions set ${past} where id = ${id}`)
      expect([past, await status(token)]).toEqual([past, 401])
      expect((await validate(token)).body).toEqual({ active: false })
      const { body } = await service.call('GET', '/v1/sessions', { token: service.ownerToken })
      expect(body.items.map((session: { id: number }) => session.id)).not.toContain(id)
    }
  })

  it('move with use, written once a minute at most, and never beyond the 24 hours', async () => {
    const { token, id } = await signedIn()
    const lastActivity = async () =>
      JSON.stringify(await service.database.read(`select last_activity from auth_sessions where id = ${id}`))
    const written = await lastActivity()
    for (let index = 0; index < 5; index += 1) await status(token)
    expect(await lastActivity()).toBe(written)
    await service.database.read(
      `update auth_sessions set last_activity = now() - interval '61 seconds' where id = ${id}`,
    )
    const old = await lastActivity()
    await status(token)
    expect(await lastActivity()).not.toBe(old)
  })
})

describe('validating a token for a program', () => {
  it('tells user and session of a good one, and of any other only that it is not', async () => {
    const { token, id } = await signedIn()
    const { body, text } = await validate(token)
    expect(body).toMatchObject({ active: true, session: { id, current: false }, user: { username: 'owner' } })
    expect(text).not.toContain(token)
    for (const bad of ['', 'nonsense', key, `gzs_${'x'.repeat(43)}`])
      expect([bad, (await validate(bad)).body]).toEqual([bad, { active: false }])
    await service.call('POST', '/v1/auth/logout', { token })
    expect((await validate(token)).body).toEqual({ active: false })
  })

  it('counts as activity of that session', async () => {
    const { token, id } = await signedIn()
    await service.database.read(
      `update auth_sessions set last_activity = now() - interval '90 minutes' where id = ${id}`,
    )
    const { body } = await validate(token)
    expect(body.active).toBe(true)
    const again = await validate(token)
    expect(Date.parse(again.body.session.idle_expires_at)).toBeGreaterThan(Date.now() + 110 * 60_000)
  })
})
