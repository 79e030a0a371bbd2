import { LosslessNumber } from 'lossless-json'

const MAX_WHOLE_DIGITS = 131_072
const MAX_FRACTION_DIGITS = 16_383
const MAX_EXPONENT = 1_000_000_000
const NUMBER = /^-?(\d+)(?:\.(\d+))?(?:[eE]([+-]?\d+))?$/

const [QUOTE, BACKSLASH, MINUS] = [0x22, 0x5c, 0x2d]
const [OPEN_BRACE, CLOSE_BRACE, OPEN_BRACKET, CLOSE_BRACKET] = [0x7b, 0x7d, 0x5b, 0x5d]

export interface JsonScan {
  /** How many brackets are open at the deepest place, members that a duplicate name drops included. */
  depth: number
  /** False when JSON.parse and JSON.stringify would spell some number otherwise. */
  keepsSpelling: boolean
}

/** Reads a text that JSON.parse has accepted, once and without recursion. */
export function scanJson(text: string): JsonScan {
  let depth = 0
  let open = 0
  let keepsSpelling = true
  for (let at = 0; at < text.length; at += 1) {
    const char = text.charCodeAt(at)
    if (char === QUOTE) {
      at = endOfString(text, at)
    } else if (char === OPEN_BRACE || char === OPEN_BRACKET) {
      open += 1
      depth = Math.max(depth, open)
    } else if (char === CLOSE_BRACE || char === CLOSE_BRACKET) {
      open -= 1
    } else if (keepsSpelling && (char === MINUS || isDigit(char))) {
      const end = endOfNumber(text, at)
      keepsSpelling = isShortInteger(text, at, end) || isSpeltByJavaScript(text.slice(at, end))
      at = end - 1
    }
  }
  return { depth, keepsSpelling }
}

/** A plain number when JavaScript spells it the same, else one that carries its own spelling. */
export function numberFromToken(token: string): number | LosslessNumber {
  return isSpeltByJavaScript(token) ? Number(token) : new LosslessNumber(token)
}

/**
 * Whether PostgreSQL's numeric, and so jsonb, takes the number: up to 131072 digits before the decimal point and
 * 16383 after it (PostgreSQL manual, table 8.2; the limits were tried on 15). A plain number always fits.
 */
export function fitsNumeric({ value: token }: LosslessNumber): boolean {
  const [, whole = '', fraction = '', exponentText = '0'] = NUMBER.exec(token) ?? []
  const exponent = Number(exponentText)
  // Beyond this numeric refuses a zero too, and a number this long is no honest one.
  if (Math.abs(exponent) > MAX_EXPONENT) return false
  if (fraction.length - exponent > MAX_FRACTION_DIGITS) return false
  const leadingZeros = /^0*/.exec(whole + fraction)?.[0].length ?? 0
  const isZero = leadingZeros === whole.length + fraction.length
  return isZero || whole.length - leadingZeros + exponent <= MAX_WHOLE_DIGITS
}

function isSpeltByJavaScript(token: string): boolean {
  return String(Number(token)) === token
}

/** Up to fifteen digits are exact in a double, and JSON allows no zero ahead of them. */
function isShortInteger(text: string, start: number, end: number): boolean {
  if (end - start > 15) return false
  for (let at = start; at < end; at += 1) if (!isDigit(text.charCodeAt(at))) return false
  return true
}

function endOfString(text: string, start: number): number {
  for (let quote = text.indexOf('"', start + 1); ; quote = text.indexOf('"', quote + 1)) {
    let backslashes = 0
    while (text.charCodeAt(quote - 1 - backslashes) === BACKSLASH) backslashes += 1
    if (backslashes % 2 === 0) return quote < 0 ? text.length : quote
  }
}

function endOfNumber(text: string, start: number): number {
  let end = start + 1
  while (isNumberPart(text.charCodeAt(end))) end += 1
  return end
}

function isDigit(char: number): boolean {
  return char >= 0x30 && char <= 0x39
}

function isNumberPart(char: number): boolean {
  return isDigit(char) || char === 0x2e || char === 0x65 || char === 0x45 || char === 0x2b || char === MINUS
}
