"""Waiting for the end of a process by the pid that a runtime wrote into a file.

The kernel tells (pidfd_open(2)) at once and at no cost; asking the runtime again and again would go on its account.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def watch(pid_file: Path) -> Iterator[Callable[[float], bool]]:
    """A function that waits up to so many seconds for the end of the process, and tells whether it has come.

    A missing file, or a pid that is gone, counts as an end. Raises `ValueError` where the file has no number in it.
    """
    try:
        descriptor = os.pidfd_open(int(pid_file.read_text()))
    except (FileNotFoundError, ProcessLookupError):
        yield lambda _: True
        return
    try:
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        yield lambda timeout_s: bool(poller.poll(timeout_s * 1000))
    finally:
        os.close(descriptor)
