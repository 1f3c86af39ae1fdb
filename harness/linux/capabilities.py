"""Capabilities: names, bit masks, and a thread's five sets (capabilities(7))."""

from __future__ import annotations

import errno

from harness.linux import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

NAMES: tuple[str, ...] = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
)
"""By bit number."""

BITS: dict[str, int] = {name: bit for bit, name in enumerate(NAMES)}


def mask_of(names: Iterable[str]) -> int:
    """The bit mask of several names; raises `KeyError` for an unknown one."""
    mask = 0
    for name in names:
        mask |= 1 << BITS[name]
    return mask


def names_of(mask: int) -> tuple[str, ...]:
    """Names of a mask's bits in order; a bit that has no name yet comes as ``CAP_<number>``."""
    return tuple(
        NAMES[bit] if bit < len(NAMES) else f"CAP_{bit}" for bit in range(mask.bit_length()) if mask >> bit & 1
    )


def last_capability() -> int:
    """The highest bit this kernel knows."""
    with open("/proc/sys/kernel/cap_last_cap") as file:
        return int(file.read())


def parse_status(text: str) -> dict[str, int]:
    """The masks of ``/proc/<pid>/status``: keys ``inheritable permitted effective bounding ambient``."""
    keys = {"CapInh": "inheritable", "CapPrm": "permitted", "CapEff": "effective", "CapBnd": "bounding"}
    keys["CapAmb"] = "ambient"
    masks = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name in keys:
            masks[keys[name]] = int(value, 16)
    return masks


def has(name: str) -> bool:
    """Whether the calling thread has a capability in effect."""
    return bool(syscalls.capget()[0] >> BITS[name] & 1)


def set_bounding(keep: int) -> None:
    """Drop everything from the bounding set that is not in `keep`. Needs CAP_SETPCAP where something is dropped."""
    for bit in range(64):
        if keep >> bit & 1:
            continue
        try:
            syscalls.prctl(syscalls.PR_CAPBSET_DROP, bit)
        except OSError as error:
            if error.errno == errno.EINVAL:  # past the last one that this kernel knows
                return
            raise


def set_ambient(mask: int) -> None:
    """Make the ambient set `mask`, each bit of which has to be permitted and inheritable."""
    syscalls.prctl(syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_CLEAR_ALL)
    for bit in range(mask.bit_length()):
        if mask >> bit & 1:
            syscalls.prctl(syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_RAISE, bit)


def set_capabilities(*, effective: int, permitted: int, inheritable: int) -> None:
    """Set the calling thread's effective, permitted and inheritable sets."""
    syscalls.capset(effective, permitted, inheritable)
