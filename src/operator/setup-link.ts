import { SETUP_SECONDS, renewSetupToken, setupLine } from '../first-start.js'
import { AppError } from '../errors.js'
import { type Command, operatorEvent } from './command.js'

/** The line that makes the first owner, again: the token of the last one is void. */
export const setupLink: Command = {
  name: 'setup-link',
  usage: '',
  words: [],
  options: [],
  async prepare() {
    return async ({ db, env, caller }) => {
      const event = operatorEvent(caller, {
        action: 'setup.renew_token',
        target: null,
        message: 'Set-up token made anew',
      })
      const token = await renewSetupToken(db, event)
      if (token === null) {
        throw new AppError(
          'conflict',
          'Set-up is over: there is a user already (user create <name> --role owner makes another owner).',
        )
      }
      const line = setupLine(token, env.PORT)
      return {
        json: { setup_token: token, valid_seconds: SETUP_SECONDS, command: line },
        lines: [
          'create the first owner (the token is good for an hour, or until the service starts again):',
          line,
        ],
      }
    }
  },
}
