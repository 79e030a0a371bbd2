// A table that is one in a terminal and in Markdown.

/** @param {string[]} headings @param {string[][]} rows the first column is text, the others are figures @returns {string} */
export function table(headings, rows) {
  const widths = headings.map((heading, column) =>
    Math.max(3, heading.length, ...rows.map((row) => row[column]?.length ?? 0)),
  )
  const line = (/** @type {string[]} */ cells) =>
    `| ${widths.map((width, column) => aligned(cells[column] ?? '', column, width)).join(' | ')} |`
  const rule = `| ${widths.map((width, column) => (column === 0 ? '-'.repeat(width) : `${'-'.repeat(width - 1)}:`)).join(' | ')} |`
  return [line(headings), rule, ...rows.map(line)].join('\n')
}

/** @param {number} value @param {number} digits of what is below 100 */
export function figure(value, digits = 0) {
  if (!Number.isFinite(value)) return '-'
  return value.toFixed(value >= 100 ? 0 : digits)
}

/** @param {string} text @param {number} column @param {number} width */
function aligned(text, column, width) {
  return column === 0 ? text.padEnd(width) : text.padStart(width)
}
