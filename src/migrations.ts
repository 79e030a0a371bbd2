import { fileURLToPath } from 'node:url'

/** The folder of Prisma's migrations; this file and the program made of it lie one folder below the project's. */
export const MIGRATIONS = fileURLToPath(new URL('../prisma/migrations', import.meta.url))
