"""Seccomp profiles: the one called RuntimeDefault, and those in files of the host.

RuntimeDefault is the list of what containerd and Docker allow, in ``seccomp.json`` beside this file; what it does not name is
refused with EPERM. A capability that was granted adds the calls that it is there for. New namespaces need CAP_SYS_ADMIN: clone
is allowed without their flags, and clone3, which hides its flags from a filter, says ENOSYS so that C libraries fall back to
clone. Of sockets, AF_ALG and AF_VSOCK are refused: the one is a door to the kernel's crypto code, the other to the hypervisor.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from harness.minirt.errors import InvalidArgument

_NAMESPACE_FLAGS = 0x7E020000
"""CLONE_NEW*: of user, pid, net, ipc, uts, cgroup and mount"""
_AF_ALG, _AF_VSOCK = 38, 40
_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)
"""Linux, 32 bits, each with the short uname or not, and the question for the current one"""
_ENOSYS = 38
_LISTED = Path(__file__).with_name("seccomp.json")


def default_profile(granted: Collection[str]) -> dict[str, Any]:
    """RuntimeDefault as ``linux.seccomp`` of the runtime specification, for a process with the capabilities `granted`.

    The result is shared between calls: it must not be changed.
    """
    return _profile(frozenset(granted).intersection(_listed()["with_capability"]), os.uname().machine)


@functools.cache
def _listed() -> dict[str, Any]:
    listed: dict[str, Any] = json.loads(_LISTED.read_bytes())
    return listed


@functools.lru_cache(maxsize=32)
def _profile(granted: frozenset[str], machine: str) -> dict[str, Any]:
    listed = _listed()
    names = [*listed["always"], *listed["on_machine"].get(machine, ())]
    for capability in sorted(granted):
        names += listed["with_capability"][capability]
    rules = [
        {"names": sorted(set(names)), "action": "SCMP_ACT_ALLOW"},
        # Conditions on one argument in one rule would mean "any of them": so three rules for "neither of the two".
        _allowed("socket", 0, _AF_ALG, "SCMP_CMP_LT"),
        _allowed("socket", 0, _AF_ALG + 1, "SCMP_CMP_EQ"),
        _allowed("socket", 0, _AF_VSOCK, "SCMP_CMP_GT"),
        *(_allowed("personality", 0, persona, "SCMP_CMP_EQ") for persona in _PERSONALITIES),
    ]
    if "CAP_SYS_ADMIN" not in granted:
        flags_at = 1 if machine == "s390x" else 0
        rules.append(_allowed("clone", flags_at, _NAMESPACE_FLAGS, "SCMP_CMP_MASKED_EQ"))
        rules.append({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": _ENOSYS})
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": listed["architectures"].get(machine, []),
        "flags": ["SECCOMP_FILTER_FLAG_SPEC_ALLOW"],
        "syscalls": rules,
    }


def _allowed(name: str, index: int, value: int, operator: str) -> dict[str, Any]:
    return {
        "names": [name],
        "action": "SCMP_ACT_ALLOW",
        "args": [{"index": index, "value": value, "valueTwo": 0, "op": operator}],
    }


def read_profile(path: str) -> dict[str, Any]:
    """A profile of the host, in the format of the runtime specification. Raises `InvalidArgument`."""
    try:
        content = json.loads(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"seccomp profile {path}: {error}") from error
    if not isinstance(content, dict) or "defaultAction" not in content:
        raise InvalidArgument(f"seccomp profile {path}: it has no defaultAction")
    return content
