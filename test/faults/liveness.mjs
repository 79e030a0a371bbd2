// Asks /health/live every 20 ms, from a process of its own, and beside it a server that does nothing, in another one:
// what that takes is the machine's, not the service's. Tells both on SIGTERM.
import { fork } from 'node:child_process'
import http from 'node:http'

if (process.argv[2] === 'control') {
  const server = http.createServer((_, answer) => answer.end('ok'))
  server.listen(0, '127.0.0.1', () => process.send(server.address().port))
  process.on('disconnect', () => process.exit(0))
} else {
  const control = fork(process.argv[1], ['control'])
  const service = watch(`${process.argv[2]}/health/live`)
  control.once('message', (/** @type {number} */ port) => {
    const beside = watch(`http://127.0.0.1:${port}/`)
    process.on('SIGTERM', () => {
      process.stdout.write(JSON.stringify({ service: summary(service), control: summary(beside) }))
      control.disconnect()
      process.exit(0)
    })
  })
}

function watch(url) {
  const seen = { tookMs: [], failed: 0 }
  const agent = new http.Agent({ keepAlive: true, maxSockets: 1 })
  const ask = () => {
    const startedAt = performance.now()
    http
      .get(url, { agent }, (answer) => {
        answer.resume().on('end', () => {
          seen.tookMs.push(performance.now() - startedAt)
          if (answer.statusCode !== 200) seen.failed += 1
          setTimeout(ask, 20)
        })
      })
      .on('error', () => {
        seen.failed += 1
        setTimeout(ask, 20)
      })
  }
  ask()
  return seen
}

function summary({ tookMs, failed }) {
  tookMs.sort((a, b) => a - b)
  const at = (share) => tookMs[Math.floor(tookMs.length * share)] ?? 0
  return { asked: tookMs.length, failed, medianMs: at(0.5), p99Ms: at(0.99), maxMs: tookMs.at(-1) ?? 0 }
}
