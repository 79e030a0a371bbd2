// Preloaded into the service by the soak: on SIGUSR2 all garbage is collected, and what is left is what is held.
require('node:v8').setFlagsFromString('--expose-gc')
const collect = require('node:vm').runInNewContext('gc')

process.on('SIGUSR2', () => {
  collect()
  process.stdout.write('garbage collected\n')
})
