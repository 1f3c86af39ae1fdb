"""What several arenas and runs share on a machine: base folders, who is alive, and mount points made on the host.

::

    /run/seatrial/<run>/lock            held (flock, shared) by every arena of a run that lives, and by its scratch folder
    /run/seatrial/<run>/<arena>/        sockets and runtime state of one engine
    /run/seatrial/made                  mount points that were missing on the host, one a line
    /var/lib/seatrial/<run>/<arena>/    its data
    <hierarchy>/seatrial/<run>/<arena>  its cgroups

Whoever adds or removes a name at the upper levels holds the turnstile meanwhile.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterable, Iterator

STATE = "/run/seatrial"
DATA = "/var/lib/seatrial"
CGROUP = "/seatrial"
MADE = f"{STATE}/made"
LOCK = "lock"


@contextlib.contextmanager
def turnstile() -> Iterator[None]:
    """One process at a time, machine-wide. A lock on a folder that is always there leaves no file behind."""
    fd = os.open("/var/lib", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def hold(run: str) -> int:
    """Mark `run` as alive for as long as the descriptor that comes back (or a copy in another process) is open.

    Raises `BlockingIOError` while its leftovers are being removed. The caller holds the turnstile.
    """
    os.makedirs(f"{STATE}/{run}", mode=0o711, exist_ok=True)
    fd = os.open(f"{STATE}/{run}/{LOCK}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BaseException:
        os.close(fd)
        raise
    return fd


def is_alive(run: str) -> bool:
    """Whether a harness or keeper of `run` lives. Takes the turnstile: the probe is a lock, which no `hold` may meet."""
    with turnstile():
        try:
            fd = os.open(f"{STATE}/{run}/{LOCK}", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
    return False


def make_mount_points(paths: Iterable[str]) -> None:
    """Make those that are missing, and remember them for `sweep`. The caller holds the turnstile."""
    with open(MADE, "a") as made:
        for path in paths:
            missing = []
            while not os.path.isdir(path):
                missing.append(path)
                path = os.path.dirname(path)
            # Noted first: killed between the two, we must not forget what we made.
            made.writelines(f"{folder}\n" for folder in missing)
            made.flush()
            for folder in reversed(missing):
                os.mkdir(folder, 0o755)


def sweep(run: str, hierarchies: Iterable[str]) -> None:
    """Remove the shared folders of `run` if no arena is left in it, and of all runs if none is left at all.

    `hierarchies` are the folders that hold cgroup `CGROUP`'s children, one for each hierarchy.
    """
    bases = tuple(hierarchies)
    with turnstile():
        _rmdir(f"{DATA}/{run}")
        # Its scratch folder has no state: between two arenas that alone says that the run goes on.
        if not os.path.isdir(f"{DATA}/{run}") and _entries(f"{STATE}/{run}") <= {LOCK}:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{STATE}/{run}/{LOCK}")
            _rmdir(f"{STATE}/{run}")
        for base in bases:
            _rmdir(f"{base}/{run}")
            _rmdir(base)
        if _entries(STATE) <= {os.path.basename(MADE)}:
            with contextlib.suppress(FileNotFoundError), open(MADE) as made:
                for path in made.read().splitlines():
                    _rmdir(path)
                os.unlink(MADE)
            _rmdir(STATE)
        _rmdir(DATA)


def _entries(folder: str) -> set[str]:
    try:
        return set(os.listdir(folder))
    except FileNotFoundError:
        return set()


def _rmdir(folder: str) -> None:
    with contextlib.suppress(OSError):
        os.rmdir(folder)
