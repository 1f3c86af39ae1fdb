"""How the kernel is told when, where and with which memory a process runs: sched_setattr(2), ioprio_set(2), set_mempolicy(2).

Each raises `OSError` with the errno. Numbers of system calls that the C library does not wrap stand here.
"""

from __future__ import annotations

import os

from harness.linux import foreign as ctypes

_NR_SCHED_SETATTR, _NR_IOPRIO_SET, _NR_SET_MEMPOLICY = {
    "x86_64": (314, 251, 238),
    "aarch64": (274, 30, 237),
    "riscv64": (274, 30, 237),
    "ppc64le": (355, 273, 261),
    "s390x": (345, 282, 270),
}.get(os.uname().machine, (274, 30, 237))
_IOPRIO_WHO_PROCESS = 1
_BITS_OF_A_WORD = 8 * ctypes.sizeof(ctypes.c_ulong)

_libc = ctypes.CDLL(None, use_errno=True)
_long = ctypes.c_long


class _SchedAttr(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("runtime", ctypes.c_uint64),
        ("deadline", ctypes.c_uint64),
        ("period", ctypes.c_uint64),
        ("util_min", ctypes.c_uint32),
        ("util_max", ctypes.c_uint32),
    )


def _call(number: int, *arguments: object) -> None:
    if _libc.syscall(_long(number), *arguments) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def set_scheduler(
    pid: int,
    policy: int,
    *,
    nice: int = 0,
    priority: int = 0,
    flags: int = 0,
    runtime_ns: int = 0,
    deadline_ns: int = 0,
    period_ns: int = 0,
) -> None:
    """sched_setattr(2) on a process (0: the caller)."""
    asked = _SchedAttr(
        ctypes.sizeof(_SchedAttr), policy, flags, nice, priority, runtime_ns, deadline_ns, period_ns, 0, 0
    )
    _call(_NR_SCHED_SETATTR, _long(pid), ctypes.byref(asked), _long(0))


def set_io_priority(pid: int, value: int) -> None:
    """ioprio_set(2) on a process; `value` is class << 13 | level."""
    _call(_NR_IOPRIO_SET, _long(_IOPRIO_WHO_PROCESS), _long(pid), _long(value))


def set_memory_policy(mode: int, nodes: tuple[int, ...]) -> None:
    """set_mempolicy(2) for the calling thread: MPOL_* with its flags, and the memory nodes it speaks of."""
    if not nodes:
        _call(_NR_SET_MEMPOLICY, _long(mode), None, _long(0))
        return
    words = max(nodes) // _BITS_OF_A_WORD + 1
    mask = (ctypes.c_ulong * words)()
    for node in nodes:
        mask[node // _BITS_OF_A_WORD] |= 1 << node % _BITS_OF_A_WORD
    # The kernel counts one bit less than it is told.
    _call(_NR_SET_MEMPOLICY, _long(mode), mask, ctypes.c_ulong(words * _BITS_OF_A_WORD + 1))
