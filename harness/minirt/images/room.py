"""Room on the disk: images may fill it up to a reserve, and no further."""

from __future__ import annotations

import os
from pathlib import Path

from harness.minirt.errors import Exhausted

_LARGEST_RESERVE_BYTES = 1 << 30
_SHARE = 100
"""The reserve: one part in so many of the file system, its inodes the same."""
_BYTES_BETWEEN = 32 << 20
_CALLS_BETWEEN = 1024


class Room:
    """What unpacking into `folder` may still take; safe for threads, as an estimate may be."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._bytes = _BYTES_BETWEEN
        self._calls = 0

    def take(self, size: int) -> None:
        """`size` bytes are about to be written. Raises `Exhausted` where the disk has come down to its reserve."""
        self._bytes += size
        self._calls += 1
        if self._bytes >= _BYTES_BETWEEN or self._calls >= _CALLS_BETWEEN:
            self._bytes = self._calls = 0
            self.check()

    def check(self, wanted: int = 0) -> None:
        """Raises `Exhausted` where there is no room for `wanted` bytes besides the reserve."""
        found = os.statvfs(self._folder)
        reserve = min(found.f_blocks * found.f_frsize // _SHARE, _LARGEST_RESERVE_BYTES)
        free = found.f_bavail * found.f_frsize
        if free - wanted < reserve:
            raise Exhausted(
                f"no space left below {self._folder}: {free} bytes are free, {reserve} are kept in reserve"
                + (f", {wanted} are needed" if wanted else "")
            )
        if found.f_files and found.f_favail < found.f_files // _SHARE:
            raise Exhausted(f"no inodes left below {self._folder}: {found.f_favail} are free")
