"""What is read of one cgroup, whatever the version of its interface."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Reading:
    """Memory charged to a cgroup and everything below it, in bytes. A part that the kernel does not tell is None.

    No byte is in two parts, so that `headline` is a plain sum.
    """

    anon: int | None = None
    """heaps and stacks of processes"""
    shmem: int | None = None
    """tmpfs and shared anonymous memory"""
    kernel: int | None = None
    """v2: kernel stacks and page tables. v1: all kernel memory, slab of both kinds among it, for v1 tells no parts"""
    slab: int | None = None
    """unreclaimable slab (v2 only)"""
    file: int | None = None
    """page cache without shmem: whoever touches a page first pays for it, so it is no part of the headline"""

    @property
    def headline(self) -> int | None:
        """What the cgroup's processes hold and nobody can take from them; None where nothing could be read."""
        if self.anon is None:
            return None
        return self.anon + sum(part for part in (self.shmem, self.kernel, self.slab) if part is not None)


class Gauge(Protocol):
    """Reads the counters of one cgroup. Files stay open between readings; `close` gives them back.

    A value that cannot be had is None, and `notes` says why, one sentence for each.
    """

    @property
    def notes(self) -> tuple[str, ...]: ...

    def cpu_ns(self) -> int | None:
        """CPU time spent so far, in nanoseconds, by processes that ended too."""
        ...

    def memory(self) -> Reading: ...

    def pids(self) -> list[int]:
        """The processes that are in the cgroup or below it now."""
        ...

    def close(self) -> None: ...


class OpenFile:
    """A counter file that is read again and again: one `pread` each, no path walk.

    Where it cannot be opened or read, `read` gives None and `problem` tells why.
    """

    def __init__(self, path: Path, size: int = 8192) -> None:
        self.path = path
        self.problem = ""
        self._size = size
        self._fd = -1
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            self.problem = f"{path} cannot be opened: {error.strerror}"

    def read(self) -> str | None:
        """Its whole text, as it is now."""
        if self._fd < 0:
            return None
        try:
            return os.pread(self._fd, self._size, 0).decode()
        except OSError as error:
            self.problem = f"{self.path} cannot be read any more: {error.strerror}"
            return None

    def close(self) -> None:
        """Give the descriptor back; a second call does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
