const [, , ...args] = process.argv

/** What the first signal does. */
let stop = (): void => process.exit(0)

// Before anything else is loaded: as process 1 of a container a signal without a handler is lost. Until there is
// something to end in order it ends the process; the handler itself stays, or a signal on its way would be lost.
if (args[0] === 'serve' || args[0] === 'dev')
  for (const signal of ['SIGTERM', 'SIGINT'] as const) process.on(signal, () => stop())

const { runCommand } = await import('./commands.js')
try {
  await runCommand(args, (inOrder) => (stop = inOrder))
} catch (error) {
  const message = error instanceof Error ? error.message : String(error)
  process.stdout.write(`${JSON.stringify({ level: 'fatal', time: new Date().toISOString(), message })}\n`)
  process.exit(1)
}
