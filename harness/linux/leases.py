"""Whether a file is still being written, which the kernel tells who asks for a lease (fcntl(2), "Leases")."""

from __future__ import annotations

import fcntl
import os
import signal
from pathlib import Path


def is_open_for_writing(path: Path) -> bool:
    """Whether any process has a regular file open for writing: of those, the kernel grants no read lease.

    False where there is no file, and on a filesystem without leases. Needs the file to be one's own, or CAP_LEASE.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        # Who opens it in the moment of the lease waits for us, of which a signal tells: SIGIO, which ends a process, if no other.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(fd)
    return False
