// A thread that verifies one password after the other for five seconds: how often a second, at cost 12.
import { parentPort } from 'node:worker_threads'
import { hashSync, verifySync } from '@node-rs/bcrypt'

const SECONDS = 5
const hash = hashSync('a password', { cost: 12 })
let count = 0
for (const until = performance.now() + SECONDS * 1000; performance.now() < until; count += 1)
  verifySync('a password', hash)
parentPort?.postMessage(count / SECONDS)
