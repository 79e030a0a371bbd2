// PostgreSQL's text cannot hold NUL, and UTF-8 cannot hold half of a surrogate pair: Node writes U+FFFD
// for it in silence, so that two different strings become one.
const ILL_FORMED = /[\0\p{Surrogate}]/u
const EVERY_ILL_FORMED = /[\0\p{Surrogate}]/gu

/** True when the text has neither NUL nor a lone surrogate, so that UTF-8 and PostgreSQL keep it as it is. */
export function isWellFormedText(text: string): boolean {
  return !ILL_FORMED.test(text)
}

/** The text with U+FFFD for every NUL and every lone surrogate. */
export function toWellFormedText(text: string): string {
  return text.replace(EVERY_ILL_FORMED, '\uFFFD')
}

/** The longest beginning of at most maxLength UTF-16 code units that does not halve a surrogate pair. */
export function textPrefix(text: string, maxLength: number): string {
  const last = text.charCodeAt(maxLength - 1)
  const halves = last >= 0xd800 && last <= 0xdbff && text.length > maxLength
  return text.slice(0, halves ? maxLength - 1 : maxLength)
}
