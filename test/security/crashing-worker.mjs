import { parentPort, threadId } from 'node:worker_threads'

// Answers with its thread's number, or ends as it is told to.
parentPort?.on('message', (task) => {
  if (task === 'throw') throw new Error('thrown in the thread')
  if (task === 'exit') process.exit(3)
  if (task === 'hang') return
  if (task === 'reject') void Promise.reject(new Error('rejected in the thread'))
  else parentPort?.postMessage(threadId)
})
