"""Appends lines to a journal as fast as it can, and says on stdout which `append` has returned.

usage: append_forever.py PATH FIRST [LIMIT]
LIMIT: bytes that a file may have (RLIMIT_FSIZE); beyond it the kernel refuses to write.
"""

import os
import resource
import signal
import sys

from tpuinfer.offline.journal import Journal
from tpuinfer.offline.task import BatchError


def main(path: str, first: str, limit: str = "") -> None:
    if limit:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    journal = Journal.open(path, sync_lines=50, sync_seconds=0.01)
    number = int(first)
    try:
        while True:
            journal.append(b'{"n":%d,"text":"%s"}' % (number, b"x" * (number * 37 % 900)))
            os.write(1, b"%d\n" % number)
            number += 1
    except BatchError as error:
        os.write(2, str(error).encode())
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main(*sys.argv[1:])
