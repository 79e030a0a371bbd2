import { describe, expect, it } from 'vitest'
import { useService } from '../harness.js'

const service = useService()
const get = (path: string) => service.call('GET', path, { token: service.ownerToken })

describe('the report logins-per-day', () => {
  const today = new Date().toISOString().slice(0, 10)

  it("counts today's sign-ins in every format, and each run is audited", async () => {
    await service.call('POST', '/v1/auth/login', { body: { username: 'nobody', password: 'wrong' } })
    const json = await get('/v1/reports/logins-per-day')
    expect(json.body).toEqual({
      report: 'logins-per-day',
      columns: ['day', 'succeeded', 'failed', 'users'],
      rows: [{ day: today, succeeded: 1, failed: 1, users: 1 }],
      row_count: 1,
    })
    expect(json.headers.get('x-row-limit')).toBe('100000')
    const ndjson = await get('/v1/reports/logins-per-day?format=ndjson')
    expect(JSON.parse(ndjson.text)).toEqual(json.body.rows[0])
    const csv = await get('/v1/reports/logins-per-day?format=csv')
    expect(csv.text).toBe(`day,succeeded,failed,users\r\n${today},1,1,1\r\n`)
    const { body } = await get('/v1/audit/events?action=report.run')
    expect(body.items).toHaveLength(3)
  })

  it('takes days only: nothing else reaches the statement', async () => {
    expect((await get('/v1/reports/logins-per-day?from=2026-01-01&to=2026-01-02')).body.rows).toEqual([])
    for (const query of [
      'from=yesterday',
      'from=2026-02-30',
      "from=2026-01-01'--",
      'since=2026-01-01',
      'format=xml',
    ]) {
      expect([query, (await get(`/v1/reports/logins-per-day?${query}`)).status]).toEqual([query, 400])
    }
    expect((await get('/v1/reports/passwords')).status).toBe(404)
  })
})
