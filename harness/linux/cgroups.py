"""Control groups: where each controller is mounted, and what its files say, for v1, v2 and the mix of both.

A cgroup is named by its absolute path inside a hierarchy (``/seatrial/run/engine``), the same in every hierarchy, whatever
is mounted where; `path_of` gives the folder of it. `parse_*` are pure and take text, `read_*` do the I/O.

Follows the kernel's admin-guide/cgroup-v1 and admin-guide/cgroup-v2.rst. Raises `OSError` and `ValueError` only.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

UNIFIED = ""
"""The name of the v2 tree in `Layout.own` and `parse_paths`, where v1 has the names of controllers."""

V1_CONTROLLERS = frozenset(
    [
        "cpu",
        "cpuacct",
        "cpuset",
        "memory",
        "devices",
        "freezer",
        "blkio",
        "pids",
        "net_cls",
        "net_prio",
        "perf_event",
        "hugetlb",
        "rdma",
        "misc",
        "debug",
    ]
)
"""Every controller name of v1: what else stands among a mount's options is an option."""


class Mode(StrEnum):
    """`V1`: no v2 tree; `V2`: no v1 controller; `HYBRID`: v1 controllers and a v2 tree beside them."""

    V1 = "v1"
    HYBRID = "hybrid"
    V2 = "v2"


@dataclass(frozen=True, slots=True)
class CgroupMount:
    """One line of mountinfo of type cgroup or cgroup2. `root`: the cgroup that is seen at `target`."""

    target: Path
    root: str
    controllers: tuple[str, ...]
    """v1: the controllers bound to it; empty for v2 and for a named hierarchy"""
    version: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the controllers of this mount namespace are."""

    mode: Mode
    controllers: Mapping[str, Path]
    """folder at which each controller's hierarchy is mounted; the v2 tree's for a controller of v2"""
    unified: Path | None
    """folder of the v2 tree, if there is one (hybrid: it may have no controller that anyone wants)"""
    own: Mapping[str, str]
    """the cgroup of the process that read this, by controller; `UNIFIED` is its cgroup in the v2 tree"""
    roots: Mapping[Path, str]
    """for each folder above: the cgroup that is seen there (``/`` unless part of a hierarchy is bind-mounted)"""

    def is_v2(self, controller: str) -> bool:
        """Whether `controller` (or the one that took its place) has the interface of v2."""
        return self.controllers.get(controller, self.unified) == self.unified and self.unified is not None

    @property
    def v1_controllers(self) -> tuple[str, ...]:
        """The controllers that are on v1, by name."""
        return tuple(sorted(name for name, folder in self.controllers.items() if folder != self.unified))


def parse_mounts(mountinfo: str) -> list[CgroupMount]:
    """The cgroup mounts in the text of ``/proc/PID/mountinfo``, those that another mount at the same place hides left out."""
    found: dict[str, CgroupMount] = {}
    for line in mountinfo.splitlines():
        fields, dash, rest = line.partition(" - ")
        words, tail = fields.split(), rest.split()
        if not dash or len(words) < 6 or len(tail) < 3:
            raise ValueError(f"not a line of mountinfo: {line!r}")
        target = words[4]
        found.pop(target, None)
        if tail[0] == "cgroup2":
            found[target] = CgroupMount(Path(_unescape(target)), _unescape(words[3]), (), 2)
        elif tail[0] == "cgroup":
            names = tuple(name for name in tail[2].split(",") if name in V1_CONTROLLERS)
            found[target] = CgroupMount(Path(_unescape(target)), _unescape(words[3]), names, 1)
    return list(found.values())


def parse_paths(text: str) -> dict[str, str]:
    """The text of ``/proc/PID/cgroup`` as cgroup by controller; named hierarchies as ``name=x``, v2 as `UNIFIED`."""
    paths: dict[str, str] = {}
    for line in text.splitlines():
        parts = line.split(":", 2)
        if len(parts) != 3 or not parts[2].startswith("/"):
            raise ValueError(f"not a line of /proc/PID/cgroup: {line!r}")
        for name in parts[1].split(","):
            paths[name] = parts[2].removesuffix(" (deleted)")
    return paths


def parse_flat(text: str) -> dict[str, int]:
    """A flat keyed file (``memory.stat``, ``cpu.stat``, ``cgroup.events``): one ``key number`` a line."""
    pairs: dict[str, int] = {}
    for line in text.splitlines():
        key, space, value = line.partition(" ")
        if not space:
            raise ValueError(f"not a line of a flat keyed file: {line!r}")
        pairs[key] = int(value)
    return pairs


def parse_limit(text: str) -> int | None:
    """A file of one number that can be unlimited: None for v2's ``max`` and for what v1 writes in its place."""
    word = text.strip()
    if word == "max":
        return None
    number = int(word)
    # v1 rounds LONG_MAX down to whole pages (of up to 64 KiB) and shows that number; pids.max and quotas say -1.
    return None if number < 0 or number >= 2**63 - 65536 else number


def parse_pids(text: str) -> list[int]:
    """``cgroup.procs``: one process a line. A process of another pid namespace shows as 0 and is left out."""
    return [pid for pid in map(int, text.split()) if pid]


def layout_of(mountinfo: str, own: str, unified_controllers: str = "") -> Layout:
    """The layout that the texts of ``/proc/self/mountinfo``, ``/proc/self/cgroup`` and ``cgroup.controllers`` describe.

    Raises `ValueError` where no cgroup hierarchy is mounted.
    """
    mounts = parse_mounts(mountinfo)
    # A hierarchy can be mounted more than once: the mount that shows all of it is the most useful.
    mounts.sort(key=lambda mount: (mount.root != "/", mount.root.startswith("/..")))
    controllers: dict[str, Path] = {}
    roots: dict[Path, str] = {}
    unified: Path | None = None
    for mount in mounts:
        if mount.version == 2 and unified is None:
            unified = mount.target
            roots[unified] = mount.root
        for name in mount.controllers:
            controllers.setdefault(name, mount.target)
            roots.setdefault(mount.target, mount.root)
    if unified is None and not controllers:
        raise ValueError("no cgroup hierarchy is mounted")
    if unified is None:
        mode = Mode.V1
    else:
        mode = Mode.HYBRID if controllers else Mode.V2
        for name in unified_controllers.split():
            controllers.setdefault(name, unified)
    return Layout(mode, controllers, unified, parse_paths(own), roots)


def read_layout(pid: int | str = "self", proc: Path = Path("/proc")) -> Layout:
    """The layout as `pid` sees it. Raises `OSError`, and `ValueError` where no cgroup hierarchy is mounted."""
    mountinfo = (proc / str(pid) / "mountinfo").read_text(errors="surrogateescape")
    own = (proc / str(pid) / "cgroup").read_text(errors="surrogateescape")
    unified = layout_of(mountinfo, own).unified
    offered = ""
    if unified is not None:
        # The process' own mount namespace, not ours, is where that folder is.
        seen = proc / str(pid) / "root" / unified.relative_to("/") if str(pid) != "self" else unified
        with contextlib.suppress(FileNotFoundError):
            offered = (seen / "cgroup.controllers").read_text()
    return layout_of(mountinfo, own, offered)


def path_of(layout: Layout, controller: str, cgroup: str) -> Path:
    """The folder of `cgroup` in the hierarchy of `controller`; on v2 that is the one tree, whatever the controller.

    Raises `ValueError` where that controller is not mounted, or the mount does not show that cgroup.
    """
    folder = layout.controllers.get(controller, layout.unified)
    if folder is None:
        raise ValueError(f"the cgroup controller {controller!r} is not mounted")
    root = layout.roots.get(folder, "/")
    inside = os.path.relpath(cgroup, root)
    if inside == ".." or inside.startswith("../"):
        raise ValueError(f"the mount at {folder} shows {root}, of which {cgroup} is no part")
    return folder / inside


def read_paths(pid: int | str = "self") -> dict[str, str]:
    """The cgroup of `pid` by controller; see `parse_paths`. Raises `ProcessLookupError` or `FileNotFoundError` once it is gone."""
    return parse_paths(Path(f"/proc/{pid}/cgroup").read_text(errors="surrogateescape"))


def cgroup_of(layout: Layout, controller: str, pid: int) -> str:
    """The cgroup of `pid` in the hierarchy of `controller`."""
    paths = read_paths(pid)
    return paths[UNIFIED] if layout.is_v2(controller) else paths[controller]


def read_cpu_ns(layout: Layout, cgroup: str) -> int:
    """CPU time spent in `cgroup` and below it so far, by processes that ended too, in nanoseconds."""
    if layout.is_v2("cpuacct"):
        return parse_flat((path_of(layout, "cpuacct", cgroup) / "cpu.stat").read_text())["usage_usec"] * 1000
    return int((path_of(layout, "cpuacct", cgroup) / "cpuacct.usage").read_text())


def read_memory_stat(layout: Layout, cgroup: str) -> dict[str, int]:
    """``memory.stat`` as it is: v1's keys (of which ``total_*`` count what is below too) or v2's (which always do)."""
    return parse_flat((path_of(layout, "memory", cgroup) / "memory.stat").read_text())


def read_pids(tree: Path | str) -> list[int]:
    """The processes in the cgroup folder `tree` and below it, sorted; what vanishes while it is read is left out."""
    pids: set[int] = set()
    folders = [str(tree)]
    while folders:
        folder = folders.pop()
        # EOPNOTSUPP: a threaded cgroup, whose processes its domain shows; ENODEV: removed after it was opened.
        with contextlib.suppress(OSError), open(f"{folder}/cgroup.procs") as procs:
            pids.update(parse_pids(procs.read()))
        with contextlib.suppress(OSError):
            # Each folder in it adds a link to its own two. Most have none, and dozens of files to go through for nothing.
            if os.stat(folder).st_nlink > 2:
                folders += [entry.path for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]
    return sorted(pids)


def is_frozen(layout: Layout, cgroup: str) -> bool:
    """Whether every process of `cgroup` stands still now (not: is about to), by its own freezer or that of a parent."""
    if layout.is_v2("freezer"):
        return parse_flat((path_of(layout, "freezer", cgroup) / "cgroup.events").read_text())["frozen"] == 1
    return (path_of(layout, "freezer", cgroup) / "freezer.state").read_text().strip() == "FROZEN"


def is_populated(layout: Layout, controller: str, cgroup: str) -> bool:
    """Whether a process is in `cgroup` or below it."""
    return bool(read_pids(path_of(layout, controller, cgroup)))


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
