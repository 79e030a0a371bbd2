import type { Context } from 'hono'
import type { ServiceEvent } from '../db/audit.js'
import type { AppEnv } from './context.js'

/** The audit event of a change that this request's caller makes. */
export function eventOf(
  c: Context<AppEnv>,
  event: Pick<ServiceEvent, 'eventType' | 'action' | 'target' | 'message' | 'metadata'> & {
    level?: ServiceEvent['level']
  },
): ServiceEvent {
  return { caller: c.get('caller'), correlation: c.get('correlation'), level: 'info', ...event }
}
