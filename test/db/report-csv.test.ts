import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { SYSTEM } from '../../src/db/as-caller.js'
import { createDatabase, type Db } from '../../src/db/database.js'
import { type Report, reportCsv } from '../../src/db/reports/catalog.js'
import { streamAsCaller } from '../../src/db/transaction.js'
import { type TestDatabase, createTestDatabase } from '../engine.js'

let database: TestDatabase
let db: Db
beforeAll(async () => {
  database = await createTestDatabase()
  db = createDatabase(database.source)
})
afterAll(async () => await database.drop())

const report = (sql: string): Report => ({
  name: 'r',
  title: 'r',
  columns: ['word', 'count'],
  plain: ['count'],
  parameters: [],
  sql,
})
const analyst = { ...SYSTEM, databaseRole: 'gary_analyst' as const }
async function csv(sql: string, { days = [] as string[], raw = false } = {}): Promise<string> {
  const pieces: Uint8Array[] = []
  for await (const batch of streamAsCaller(db, analyst, reportCsv(report(sql), days, raw)))
    pieces.push(...batch)
  return Buffer.concat(pieces).toString()
}
const literal = (text: string) => `'${text.replaceAll("'", "''")}'`

describe('a report as CSV', () => {
  it('is RFC 4180: what needs quotes has them, lines end with CRLF, null is nothing', async () => {
    for (const [text, field] of [
      ['plain', 'plain'],
      ['a,b', '"a,b"'],
      ['say "x"', '"say ""x"""'],
      ['two\nlines', '"two\nlines"'],
      ['two\r\nlines', '"two\r\nlines"'],
      ['back\\slash \\. \\n', 'back\\slash \\. \\n'],
      ['é😀', 'é😀'],
      ['', '""'],
    ] as const)
      expect(await csv(`select ${literal(text)} as word, -1 as count`)).toBe(`word,count\r\n${field},-1\r\n`)
    expect(await csv('select cast(null as text) as word, cast(null as integer) as count')).toBe(
      'word,count\r\n,\r\n',
    )
  })

  it('has no text that a spreadsheet takes for a formula, unless asked for; numbers stay', async () => {
    for (const first of ['=', '+', '-', '@', '＝', '＋', '－', '＠']) {
      const sql = `select ${literal(`${first}1+1`)} as word, -1 as count`
      expect(await csv(sql)).toBe(`word,count\r\n'${first}1+1,-1\r\n`)
      expect(await csv(sql, { raw: true })).toBe(`word,count\r\n${first}1+1,-1\r\n`)
    }
    expect(await csv(`select '\tx' as word, 1 as count`)).toBe("word,count\r\n'\tx,1\r\n")
    expect(await csv(`select '\rx' as word, 1 as count`)).toBe(`word,count\r\n"'\rx",1\r\n`)
  })

  it('takes its parameters as literals, whatever they hold', async () => {
    for (const day of [
      "' or true --",
      "\\' or true --",
      "'); drop table audit_events; --",
      '$1',
      '$$',
      "''",
    ]) {
      const text = await csv('select cast($1 as text) as word, 1 as count', { days: [day], raw: true })
      const value = `${day}T00:00:00Z`
      expect(text).toBe(`word,count\r\n${value},1\r\n`)
    }
    expect((await database.read('select count(*) as n from audit_events'))[0]).toMatchObject({
      n: expect.anything(),
    })
  })
})
