interface Timer {
  dueMs: number
  callback: () => void
}

/** Time that passes only by advance(); timers are called in the order in which they are due. */
export function createFakeClock(startMs = 0) {
  let nowMs = startMs
  const timers = new Set<Timer>()

  function setTimer(callback: () => void, ms: number): () => void {
    const timer = { dueMs: nowMs + ms, callback }
    timers.add(timer)
    return () => timers.delete(timer)
  }

  return {
    now: () => nowMs,
    setTimer,
    /** As node:timers/promises has it: rejects when the signal is aborted, and leaves no listener behind. */
    sleep(ms: number, signal: AbortSignal): Promise<void> {
      return new Promise((resolve, reject) => {
        const stopTimer = setTimer(() => {
          signal.removeEventListener('abort', giveUp)
          resolve()
        }, ms)
        signal.addEventListener('abort', giveUp, { once: true })

        function giveUp() {
          stopTimer()
          reject(new Error('aborted'))
        }
      })
    },
    advance(ms: number): void {
      const untilMs = nowMs + ms
      for (;;) {
        const next = [...timers].filter(({ dueMs }) => dueMs <= untilMs).sort((a, b) => a.dueMs - b.dueMs)[0]
        if (next === undefined) break
        nowMs = next.dueMs
        timers.delete(next)
        next.callback()
      }
      nowMs = untilMs
    },
    get timers() {
      return timers.size
    },
  }
}
