"""The cgroups of an arena: the same names in every hierarchy, on v1 and v2 alike."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from harness.errors import ArenaError, MachineError
from harness.keeper.runs import CGROUP
from harness.linux.cgroups import Layout, Mode, parse_mounts, path_of, read_layout, read_pids

GROUPS = ("engine", "client", "pods", "harness")

ACCOUNTING = ("cpuacct", "memory")
"""The controllers of v1 into which the harness puts what it starts; runtimes put containers into all of them."""


@dataclass(frozen=True, slots=True)
class ArenaCgroups:
    """Where an arena's processes are accounted. A group's name is an absolute path, the same in every hierarchy."""

    layout: Layout
    name: str
    tops: tuple[str, ...]
    """the folder of each hierarchy, whether it has a controller or not"""

    @property
    def mode(self) -> Mode:
        return self.layout.mode

    @property
    def engine(self) -> str:
        return f"{self.name}/engine"

    @property
    def client(self) -> str:
        return f"{self.name}/client"

    @property
    def pods(self) -> str:
        return f"{self.name}/pods"

    def folders(self, group: str) -> list[str]:
        """The folders into whose ``cgroup.procs`` a process of `group` goes."""
        if self.mode is Mode.V2:
            return [str(path_of(self.layout, "memory", f"{self.name}/{group}"))]
        wanted = [name for name in ACCOUNTING if name in self.layout.controllers]
        return list(dict.fromkeys(str(path_of(self.layout, name, f"{self.name}/{group}")) for name in wanted))

    def pids(self, group: str) -> list[int]:
        """Processes in `group` and below it, in any hierarchy."""
        return sorted({pid for tree in self.trees() for pid in read_pids(f"{tree}/{group}")})

    def trees(self) -> list[str]:
        """The arena's folder in every hierarchy, whether it is there or not."""
        return [f"{top}{self.name}" for top in self.tops]

    def make(self) -> None:
        """Make the groups in each hierarchy with a controller, and the controllers available in them.

        Raises `MachineError` where no cgroup can be made there at all.
        """
        seen: set[Path] = set()
        for controller in self.layout.controllers:
            v2 = self.layout.is_v2(controller)
            if v2 and self.mode is not Mode.V2:
                continue
            try:
                top = path_of(self.layout, controller, "/")
            except ValueError as error:
                raise MachineError(str(error), "run on the host, or in a container with a cgroup namespace") from error
            if top in seen:
                continue
            seen.add(top)
            try:
                self._make_below(top, v2)
            except OSError as error:
                raise MachineError(
                    f"cannot make cgroups below {top}: {error.strerror}", "Seatrial needs root and writable cgroups"
                ) from error

    def _make_below(self, top: Path, v2: bool) -> None:
        folder = top
        for part in self.name.strip("/").split("/"):
            folder = _make(folder, part, v2)
        for group in GROUPS:
            _make(folder, group, v2)


def hierarchies() -> list[str]:
    """The folder of each cgroup hierarchy that is mounted, named ones and the v2 tree too."""
    text = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    return [str(mount.target) for mount in parse_mounts(text) if mount.root == "/"]


def bases() -> list[str]:
    """In each hierarchy, the folder that holds the runs' cgroups."""
    return [top + CGROUP for top in hierarchies()]


def open_cgroups(run: str, arena: str) -> ArenaCgroups:
    """The cgroups of an arena, made. Raises `ArenaError`, `MachineError`."""
    try:
        layout = read_layout()
    except (OSError, ValueError) as error:
        raise ArenaError(f"cgroups: {error}") from error
    groups = ArenaCgroups(layout, f"{CGROUP}/{run}/{arena}", tuple(hierarchies()))
    groups.make()
    return groups


def _make(parent: Path, name: str, v2: bool) -> Path:
    if v2:
        # One by one: a controller that is refused (cpu, with real-time processes about) must not keep the others out.
        for controller in (parent / "cgroup.controllers").read_text().split():
            with contextlib.suppress(OSError):
                (parent / "cgroup.subtree_control").write_text(f"+{controller}")
    folder = parent / name
    folder.mkdir(exist_ok=True)
    for setting in ("cpuset.cpus", "cpuset.mems"):
        # v1's start empty, and take no process until they are set.
        if not v2 and (folder / setting).exists() and not (folder / setting).read_text().strip():
            (folder / setting).write_text((parent / setting).read_text())
    if v2 and name == "pods":
        for controller in (folder / "cgroup.controllers").read_text().split():
            with contextlib.suppress(OSError):
                (folder / "cgroup.subtree_control").write_text(f"+{controller}")
    return folder
