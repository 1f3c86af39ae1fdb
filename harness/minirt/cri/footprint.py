"""The daemon's memory: what it does not load, and what it gives back once it has started."""

from __future__ import annotations

import ctypes
import gc
import re
import sys
from types import ModuleType

_MADV_DONTNEED = 4
"""madvise(2)"""
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ (\d+)")
_UNUSED = ("asyncio", "grpc.aio")


class _Absent(ModuleType):
    """Stands for a module that is named while another loads, and never used."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (Exception,), {})


def import_grpc() -> None:
    """Load grpc without its half for asyncio, and without asyncio: 3 MB that a server of threads never uses.

    Does nothing where either has been loaded already. Who imports asyncio later gets the real one.
    """
    if "grpc" in sys.modules or "asyncio" in sys.modules:
        return
    sys.modules |= {name: _Absent(name) for name in _UNUSED}
    try:
        import grpc  # noqa: F401
    finally:
        for name in _UNUSED:
            del sys.modules[name]


def give_back() -> None:
    """Return the memory that only the start needed, and keep what stays out of the garbage collector's way.

    Pages of files are what start-up costs most: relocating and initialising libraries touches all of them. They stay in the
    page cache and come back one by one when they are used.
    """
    gc.collect()
    gc.freeze()
    libc = ctypes.CDLL(None)
    libc.malloc_trim(ctypes.c_size_t(0))
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    with open("/proc/self/smaps") as file:
        mappings = parse_clean(file.read())
    for start, end in mappings:
        libc.madvise(start, end - start, _MADV_DONTNEED)


def parse_clean(smaps: str) -> list[tuple[int, int]]:
    """Start and end of the mappings in ``/proc/PID/smaps`` whose pages can be read from their file again (proc_pid_smaps(5)).

    Only such that cannot be written to and hold no page of their own: relocated data cannot be had again.
    """
    found: list[tuple[int, int]] = []
    mapping: re.Match[str] | None = None
    for line in smaps.splitlines():
        if match := _MAPPING.match(line):
            mapping = match
        elif mapping is not None and line.split() == ["Anonymous:", "0", "kB"]:
            start, end, access, inode = mapping.groups()
            if inode != "0" and "w" not in access:
                found.append((int(start, 16), int(end, 16)))
    return found
