import { Worker } from 'node:worker_threads'
import { AppError } from '../errors.js'
import { createBulkhead } from '../resilience/bulkhead.js'

export interface WorkerPoolOptions {
  /** A script that answers every message with one. */
  script: URL
  threads: number
  /** Tasks that may wait for a thread; whoever comes later gets `too_many_requests`. */
  maxQueued: number
  /** How long a thread without work is kept: each holds about 10 MB. */
  idleMs: number
}

export interface WorkerPool {
  /**
   * The worker's answer to a task, one at a time each. Rejects with the error of a worker that crashes (the next task
   * gets another one), with `too_many_requests` when the queue is full, and with `unavailable` after close().
   */
  run(task: unknown): Promise<unknown>
  /** Ends all threads, as soon as the native call that each is in returns. */
  close(): Promise<void>
}

interface Thread {
  worker: Worker
  pending: { resolve: (answer: unknown) => void; reject: (error: unknown) => void } | undefined
}

/** Threads that are started when there is work for them, and hold the process only while they have some. */
export function createWorkerPool({ script, threads, maxQueued, idleMs }: WorkerPoolOptions): WorkerPool {
  const turns = createBulkhead({ maxConcurrent: threads, maxQueued })
  const all = new Set<Thread>()
  const idle = new Map<Thread, NodeJS.Timeout>()
  let closed = false

  function start(): Thread {
    const thread: Thread = { worker: new Worker(script), pending: undefined }
    thread.worker.on('message', (answer) => thread.pending?.resolve(answer))
    thread.worker.on('error', (error) => thread.pending?.reject(error))
    thread.worker.on('exit', (code) => {
      all.delete(thread)
      wake(thread)
      thread.pending?.reject(new Error(`a worker thread ended with code ${code}`))
    })
    all.add(thread)
    return thread
  }

  function wake(thread: Thread): void {
    clearTimeout(idle.get(thread))
    idle.delete(thread)
  }

  /** The last one to become idle, so that those that a flood needed can end. */
  function take(): Thread {
    const thread = [...idle.keys()].at(-1) ?? start()
    wake(thread)
    thread.worker.ref()
    return thread
  }

  function rest(thread: Thread): void {
    thread.worker.unref()
    idle.set(thread, setTimeout(end, idleMs, thread).unref())
  }

  function end(thread: Thread): void {
    wake(thread)
    void thread.worker.terminate()
  }

  async function perform(task: unknown): Promise<unknown> {
    if (closed) throw stopping()
    const thread = take()
    try {
      const answer = await new Promise((resolve, reject) => {
        thread.pending = { resolve, reject }
        thread.worker.postMessage(task)
      })
      rest(thread)
      return answer
    } catch (error) {
      end(thread)
      throw closed ? stopping() : error
    } finally {
      thread.pending = undefined
    }
  }

  return {
    run: (task) => turns.run(() => perform(task)),
    async close() {
      closed = true
      await Promise.all([...all].map(({ worker }) => worker.terminate()))
    },
  }
}

function stopping(): AppError {
  return new AppError('unavailable', 'The service is stopping.', { retryAfterSeconds: 1 })
}
