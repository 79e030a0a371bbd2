// @ts-check
import { pbkdf2Sync, randomInt, scryptSync, timingSafeEqual } from 'node:crypto'
import { setPriority } from 'node:os'
import { parentPort } from 'node:worker_threads'
import * as bcrypt from '@node-rs/bcrypt'

// JavaScript, because Node 20 loads no TypeScript in a worker. Everything is synchronous here: the asynchronous
// functions would hold the threads of libuv's pool, which DNS look-ups and files need.

/** @typedef {import('./hash-task.js').HashTask} HashTask */

const SALT_CHARACTERS = 'abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789'
const WERKZEUG_SALT_LENGTH = 16
const SCRYPT_KEY_BYTES = 64
// Of 128 * N * r bytes at most 128 MiB are asked for, and little more for its blocks; Node's default is 32 MiB.
const SCRYPT_MAX_MEMORY = 136 * 2 ** 20

if (process.platform === 'linux') lowerPriority()

parentPort?.on('message', (/** @type {HashTask} */ task) => void respond(task))

// What is thrown here ends the thread, and fails its task with that error.
/** @param {HashTask} task */
async function respond(task) {
  parentPort?.postMessage(await answer(task))
}

// On Linux this is the thread's own priority; elsewhere it would be that of the whole process.
function lowerPriority() {
  try {
    setPriority(0, 19)
  } catch {
    // A sandbox may forbid it: hashing then competes with requests, and still works.
  }
}

/** @param {HashTask} task */
async function answer(task) {
  if (task.kind === 'bcrypt') return bcrypt.hashSync(task.password, { cost: task.cost })
  if (task.kind === 'scrypt') return hashByScrypt(task)
  if (task.kind === 'verify') return verify(task)
  return await strength(task)
}

/** @param {Extract<HashTask, { kind: 'scrypt' }>} task */
function hashByScrypt({ password, N, r, p }) {
  const salt = Array.from({ length: WERKZEUG_SALT_LENGTH }, randomCharacter).join('')
  return `scrypt:${N}:${r}:${p}$${salt}$${scryptKey(password, { N, r, p, salt }).toString('hex')}`
}

function randomCharacter() {
  return SALT_CHARACTERS.charAt(randomInt(SALT_CHARACTERS.length))
}

/** @param {Extract<HashTask, { kind: 'verify' }>} task */
function verify({ password, checks }) {
  // Every one is run, also after the one that decides: its time must not tell.
  return checks.map((check) => matches(password, check) && check.decides).includes(true)
}

/**
 * @param {string} password
 * @param {import('./verification-plan.js').Check} check
 */
function matches(password, check) {
  if (check.kind === 'bcrypt') return bcrypt.verifySync(password, check.hash)
  const expected = Buffer.from(check.key, 'hex')
  if (check.kind === 'scrypt') return timingSafeEqual(scryptKey(password, check), expected)
  const { salt, iterations, digest } = check
  return timingSafeEqual(pbkdf2Sync(password, salt, iterations, expected.length, digest), expected)
}

/**
 * @param {string} password
 * @param {{ N: number, r: number, p: number, salt: string }} parameters
 */
function scryptKey(password, { N, r, p, salt }) {
  return scryptSync(password, salt, SCRYPT_KEY_BYTES, { N, r, p, maxmem: SCRYPT_MAX_MEMORY })
}

/** @type {Promise<import('@zxcvbn-ts/core').ZxcvbnFactory> | undefined} */
let estimator

/** @param {Extract<HashTask, { kind: 'strength' }>} task */
async function strength({ password, userInputs }) {
  estimator ??= loadEstimator()
  const { score, feedback } = (await estimator).check(password, userInputs)
  return { score, warning: feedback.warning }
}

// Only when it is asked for: its dictionaries take a tenth of a second and 10 MB, and most threads never need them.
async function loadEstimator() {
  const { ZxcvbnFactory } = await import('@zxcvbn-ts/core')
  const { adjacencyGraphs, dictionary } = await import('@zxcvbn-ts/language-common')
  return new ZxcvbnFactory({ dictionary, graphs: adjacencyGraphs })
}
