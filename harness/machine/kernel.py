"""What the kernel has to offer for containers: file systems, namespaces, seccomp, clone3 into a cgroup."""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from pathlib import Path

OLDEST = (5, 7)
"""clone3 into a cgroup came with 5.7; all else that is used is older."""

NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")


@dataclass(frozen=True, slots=True)
class Feature:
    """One thing that a trial needs of the kernel. `reason`: what is wrong, empty where nothing is."""

    name: str
    state: str
    reason: str = ""


def parse_release(text: str) -> tuple[int, int]:
    """Major and minor of ``uname -r``; raises `ValueError`."""
    match = re.match(r"(\d+)\.(\d+)", text)
    if not match:
        raise ValueError(f"not a kernel release: {text!r}")
    return int(match[1]), int(match[2])


def parse_filesystems(text: str) -> frozenset[str]:
    """The types in the text of ``/proc/filesystems``."""
    return frozenset(line.split()[-1] for line in text.splitlines() if line.strip())


def has_module(name: str, release: str, modules: Path = Path("/lib/modules")) -> bool:
    """Whether a module of that name can be loaded, or is built in, by the indexes that depmod makes."""
    for index in ("modules.dep", "modules.builtin"):
        try:
            text = (modules / release / index).read_text()
        except OSError:
            continue
        if re.search(rf"/{re.escape(name)}\.ko\b", text):
            return True
    return False


def read_features(proc: Path = Path("/proc"), release: str | None = None) -> tuple[Feature, ...]:
    """Look at the running kernel. Raises `OSError` where ``/proc`` is not that of Linux."""
    release = release or platform.release()
    oldest = ".".join(map(str, OLDEST))
    too_old = parse_release(release) < OLDEST
    types = parse_filesystems((proc / "filesystems").read_text())
    overlay = "overlay" in types or has_module("overlay", release)
    missing = [name for name in NAMESPACES if not (proc / "self/ns" / name).exists()]
    seccomp = (proc / "sys/kernel/seccomp/actions_avail").exists()
    return (
        Feature("kernel", release, f"needs {oldest} or newer: clone3 into a cgroup" if too_old else ""),
        Feature("overlayfs", "yes" if overlay else "no", "" if overlay else "images have no layers without it"),
        Feature(
            "namespaces",
            ", ".join(name for name in NAMESPACES if name not in missing),
            f"the kernel has no {', '.join(missing)}" if missing else "",
        ),
        Feature("seccomp", "yes" if seccomp else "no", "" if seccomp else "the kernel cannot filter system calls"),
    )
