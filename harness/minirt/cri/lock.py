"""One daemon for each folder and each socket: a lock that the kernel gives back when its holder ends, however that was."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from harness.linux import syscalls
from harness.minirt.errors import AlreadyExists, StateCorrupt, TimedOut

_NAME = "daemon.lock"
_DIGITS = 10


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder. Raises `AlreadyExists` where another daemon has it."""
    # Held open for reading only: it is not to keep anybody from mounting the folder read-only.
    fd = os.open(folder / _NAME, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyExists(f"another daemon (process {_holder(fd)}) serves {folder}") from None
        # As long as what may be there, so that a full disk has room for it.
        with open(folder / _NAME, "r+b", buffering=0) as file:
            file.write(f"{os.getpid():<{_DIGITS}}".encode())
        yield
    finally:
        os.close(fd)


def _holder(fd: int) -> int:
    """The process that took the lock; 0 where that cannot be read."""
    try:
        return int(os.pread(fd, _DIGITS, 0))
    except ValueError:
        return 0


def end_holder(state: Path, timeout_s: float) -> bool:
    """Send SIGTERM to the daemon that holds the lock, and wait for its end; False where there was none.

    Raises `TimedOut`, and `StateCorrupt` where the lock does not say who has it.
    """
    try:
        fd = os.open(state / _NAME, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, fd)
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
        pid = _holder(fd)
        if not pid:
            raise StateCorrupt(f"{state / _NAME} does not say which process the daemon is")
        try:
            pidfd = syscalls.pidfd_open(pid)
        except OSError:
            return True
        stack.callback(os.close, pidfd)
        with contextlib.suppress(ProcessLookupError):
            syscalls.pidfd_send_signal(pidfd, signal.SIGTERM)
        waiting = select.poll()
        waiting.register(pidfd, select.POLLIN)
        if not waiting.poll(timeout_s * 1000):
            raise TimedOut(f"the daemon (process {pid}) did not end within {timeout_s:g} s")
    return True


def make_way(path: Path) -> None:
    """Remove the socket of a daemon that was killed. Raises `AlreadyExists` for one that answers, and for what is no socket."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise AlreadyExists(f"--listen: {path} is there already, and is not a socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            path.unlink(missing_ok=True)
        else:
            raise AlreadyExists(f"--listen: somebody else answers on {path}")
