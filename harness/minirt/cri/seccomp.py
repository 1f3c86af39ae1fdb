"""Seccomp profiles: the one called RuntimeDefault, and those in files of the host.

RuntimeDefault refuses what an ordinary process has no use for and what has let containers out before: changes to the
machine's own state, to namespaces and mounts, to the kernel's keys and tracing. A capability that was granted brings back the
calls that it is there for. Everything else is allowed, so a new system call does not break old profiles.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from harness.minirt.errors import InvalidArgument

_NAMESPACE_FLAGS = 0x7E020080
"""CLONE_NEW*: of user, pid, net, ipc, uts, cgroup, mount and time"""
_EPERM = 1
_ENOSYS = 38

_ALWAYS = ("add_key", "keyctl", "request_key", "userfaultfd", "move_pages", "mbind", "migrate_pages", "set_mempolicy",
           "nfsservctl", "sysfs", "_sysctl", "uselib", "ustat", "vm86", "vm86old", "pivot_root", "io_uring_setup",
           "io_uring_enter", "io_uring_register")  # fmt: skip
_UNLESS = {
    "CAP_SYS_ADMIN": (
        "mount", "umount", "umount2", "mount_setattr", "move_mount", "open_tree", "fsopen", "fsmount", "fsconfig", "fspick",
        "quotactl", "quotactl_fd", "setns", "unshare", "sethostname", "setdomainname", "lookup_dcookie",
    ),
    "CAP_SYS_BOOT": ("reboot", "kexec_load", "kexec_file_load"),
    "CAP_SYS_MODULE": ("init_module", "finit_module", "delete_module", "create_module", "get_kernel_syms", "query_module"),
    "CAP_SYS_PACCT": ("acct",),
    "CAP_SYS_PTRACE": ("kcmp", "process_madvise"),
    "CAP_SYS_RAWIO": ("iopl", "ioperm"),
    "CAP_SYS_TIME": ("settimeofday", "stime", "clock_settime", "clock_settime64"),
    "CAP_SYS_TTY_CONFIG": ("vhangup",),
    "CAP_SYSLOG": ("syslog",),
    "CAP_DAC_READ_SEARCH": ("open_by_handle_at", "name_to_handle_at"),
    "CAP_BPF": ("bpf",),
    "CAP_PERFMON": ("perf_event_open",),
}  # fmt: skip
_IMPLIED = {"CAP_BPF": "CAP_SYS_ADMIN", "CAP_PERFMON": "CAP_SYS_ADMIN", "CAP_SYSLOG": "CAP_SYS_ADMIN"}
"""what the older, broader capability still allows"""
_ALSO_SWAP = ("swapon", "swapoff")


def default_profile(granted: Collection[str]) -> dict[str, Any]:
    """RuntimeDefault as ``linux.seccomp`` of the runtime specification, for a process with the capabilities `granted`."""
    refused = [*_ALWAYS]
    for capability, names in _UNLESS.items():
        if capability not in granted and _IMPLIED.get(capability, capability) not in granted:
            refused += names
    rules: list[dict[str, Any]] = []
    if "CAP_SYS_ADMIN" not in granted:
        refused += _ALSO_SWAP
        flags = {"index": 0, "value": _NAMESPACE_FLAGS, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}
        # Allowed without namespace flags; clone3 hides its flags from a filter, and without it the C library uses clone.
        for bit in range(32):
            if _NAMESPACE_FLAGS >> bit & 1:
                one = {**flags, "value": 1 << bit, "valueTwo": 1 << bit}
                rules.append(_refusal(["clone"], _EPERM, [one]))
        rules.append(_refusal(["clone3"], _ENOSYS))
    rules.append(_refusal(refused, _EPERM))
    return {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules}


def _refusal(names: list[str], number: int, args: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    rule: dict[str, Any] = {"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": number}
    if args:
        rule["args"] = args
    return rule


def read_profile(path: str) -> dict[str, Any]:
    """A profile of the host, in the format of the runtime specification. Raises `InvalidArgument`."""
    try:
        content = json.loads(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"seccomp profile {path}: {error}") from error
    if not isinstance(content, dict) or "defaultAction" not in content:
        raise InvalidArgument(f"seccomp profile {path}: it has no defaultAction")
    return content
