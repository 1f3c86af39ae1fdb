"""What this machine lets containers have: looked up once, when the daemon starts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.linux import syscalls
from harness.linux.capabilities import BITS
from harness.linux.cgroups import Layout, Mode


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What the machine can do. `lowest_oom_score` is None where CAP_SYS_RESOURCE lets any value be set."""

    capabilities: int
    cgroup_v2: bool
    lowest_oom_score: int | None
    hugetlb: bool = True
    """whether huge pages can be limited"""
    swap: bool = True
    """whether swap can be limited"""
    apparmor: bool = False
    selinux: bool = False
    cdi_folders: tuple[str, ...] = ()
    """where devices are described, the one that wins last"""


def read_host_facts(layout: Layout, cdi_folders: Sequence[str]) -> HostFacts:
    """The facts of this machine and this process's privileges."""
    effective = syscalls.capget()[0]
    score: int | None = None
    if not effective >> BITS["CAP_SYS_RESOURCE"] & 1:
        score = int(Path("/proc/self/oom_score_adj").read_text())
    v2 = layout.mode is Mode.V2
    return HostFacts(
        capabilities=effective,
        cgroup_v2=v2,
        lowest_oom_score=score,
        # Of a mix only v1's controllers are used for containers.
        hugetlb="hugetlb" in (layout.controllers if v2 else layout.v1_controllers),
        swap=_limits_swap(layout),
        apparmor=os.path.exists("/sys/kernel/security/apparmor")
        and _says_yes("/sys/module/apparmor/parameters/enabled"),
        selinux=os.path.exists("/sys/fs/selinux/enforce"),
        cdi_folders=tuple(cdi_folders),
    )


def _limits_swap(layout: Layout) -> bool:
    folder = layout.controllers.get("memory")
    if folder is None:
        return False
    if not layout.is_v2("memory"):
        return (folder / "memory.memsw.limit_in_bytes").exists()
    # The root of v2 has no limits: ask the cgroup that we are in.
    own = layout.own.get("", "/").lstrip("/")
    return (folder / own / "memory.swap.max").exists() or any(folder.glob("*/memory.swap.max"))


def _says_yes(path: str) -> bool:
    try:
        return Path(path).read_text().startswith("Y")
    except OSError:
        return False
