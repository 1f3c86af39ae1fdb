"""Following another process from stop to stop (ptrace(2))."""

from __future__ import annotations

import os

from harness.linux import foreign as ctypes

EVENT_EXIT = 6
_TRACEME, _CONT, _SETOPTIONS = 0, 7, 0x4200
_O_TRACEEXIT, _O_EXITKILL = 0x40, 0x100000

_libc = ctypes.CDLL(None, use_errno=True)


def trace_me() -> None:
    """Have the parent follow the calling process: it stops with SIGTRAP at its next exec."""
    _ptrace(_TRACEME, 0, 0)


def stop_at_exit(pid: int) -> None:
    """Have a stopped child stop once more when it is about to end, its memory being there still; and end with us."""
    _ptrace(_SETOPTIONS, pid, _O_TRACEEXIT | _O_EXITKILL)


def go_on(pid: int, signal: int = 0) -> None:
    """Let a stopped child go on, with a signal if it is to get one."""
    _ptrace(_CONT, pid, signal)


def event_of(status: int) -> int:
    """The event for which a child has stopped, by its wait status; 0 for a plain signal."""
    return status >> 16


def _ptrace(request: int, pid: int, data: int) -> None:
    if _libc.ptrace(ctypes.c_long(request), ctypes.c_long(pid), ctypes.c_long(0), ctypes.c_long(data)) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
