"""One daemon for each state folder: a lock that the kernel gives back when its holder ends, however that was."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
from collections.abc import Iterator
from pathlib import Path

from harness.linux import syscalls
from harness.minirt.errors import AlreadyExists, TimedOut

_NAME = "daemon.lock"


@contextlib.contextmanager
def only_one(state: Path) -> Iterator[None]:
    """Hold the lock of a state folder. Raises `AlreadyExists` where another daemon has it."""
    fd = os.open(state / _NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyExists(f"another daemon (process {os.read(fd, 32).decode()}) serves {state}") from None
        os.truncate(fd, 0)
        os.pwrite(fd, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(fd)


def end_holder(state: Path, timeout_s: float) -> None:
    """Send SIGTERM to the daemon that holds the lock, and wait for its end; nothing happens where there is none.

    Raises `TimedOut`.
    """
    try:
        fd = os.open(state / _NAME, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, fd)
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        pid = int(os.read(fd, 32) or b"0")
        try:
            pidfd = syscalls.pidfd_open(pid)
        except (ProcessLookupError, OSError):
            return
        stack.callback(os.close, pidfd)
        with contextlib.suppress(ProcessLookupError):
            syscalls.pidfd_send_signal(pidfd, signal.SIGTERM)
        waiting = select.poll()
        waiting.register(pidfd, select.POLLIN)
        if not waiting.poll(timeout_s * 1000):
            raise TimedOut(f"the daemon (process {pid}) did not end within {timeout_s:g} s")
