import { execFileSync } from 'node:child_process'
import { chmodSync, closeSync, mkdtempSync, openSync, rmSync, rmdirSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

const CHUNKS = [1024 * 1024, 4096]

/** A file system that is soon full: a tmpfs of its own. */
export class SmallDisk {
  readonly folder: string

  /** Throws, and does not skip, where mounting is not allowed: a disk that cannot be filled proves nothing. */
  constructor(megabytes: number) {
    this.folder = mkdtempSync(join(tmpdir(), 'gary-disk-'))
    try {
      execFileSync('mount', ['-t', 'tmpfs', '-o', `size=${megabytes}m`, 'tmpfs', this.folder], {
        stdio: 'pipe',
      })
    } catch (error) {
      rmdirSync(this.folder)
      throw new Error('the tests of a full disk mount a tmpfs: run them as root, with CAP_SYS_ADMIN', {
        cause: error,
      })
    }
    chmodSync(this.folder, 0o755)
  }

  /** Not a page is left. */
  fill(): void {
    const filler = openSync(join(this.folder, 'filler'), 'a')
    for (const size of CHUNKS) {
      const chunk = Buffer.alloc(size, 1)
      try {
        // A write that is cut short has met the end as well.
        while (writeSync(filler, chunk) === size);
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'ENOSPC') throw error
      }
    }
    closeSync(filler)
  }

  free(): void {
    rmSync(join(this.folder, 'filler'), { force: true })
  }

  /** Also where somebody still has a file of it open. */
  unmount(): void {
    execFileSync('umount', ['--lazy', this.folder])
    rmdirSync(this.folder)
  }
}
