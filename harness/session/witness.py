"""What the kernel says of a container, without asking the runtime that started it.

Every container of a trial carries ``SEATRIAL_ID=<name>`` in its environment (`harness.model.container.ContainerSpec`);
its processes are found by that, in the cgroup below which the runtime was told to put its containers.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from harness.linux import cgroups
from harness.linux.mounts import Mount, read_mounts
from harness.linux.namespaces import identity

PROC = Path("/proc")
GONE = (errno.ENOENT, errno.ESRCH, errno.ENODEV)
"""What the kernel says of a process or cgroup that went away while it was looked at."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """A process, told from a later one of the same number by its start time (clock ticks since boot)."""

    pid: int
    started: int

    @property
    def alive(self) -> bool:
        """Whether it still runs: there, the same one, and neither a zombie nor dead."""
        stat = _stat(self.pid)
        return stat is not None and stat[1] == self.started and stat[0] not in "ZX"


@dataclass(frozen=True, slots=True)
class Witness:
    """Looks at /proc and the cgroup file systems. `pids` lists where containers may be; `root_pid` is any process in
    the mount namespace of the engine.
    """

    layout: cgroups.Layout
    pids: Callable[[], Iterable[int]]
    root_pid: int

    def processes(self, name: str) -> list[Sighting]:
        """The live processes of container `name`, its init first."""
        token = f"SEATRIAL_ID={name}".encode()
        found: list[tuple[int, Sighting]] = []
        for pid in self.pids():
            try:
                # Hundreds of processes may have to be asked: no Path for each.
                with open(f"{PROC}/{pid}/environ", "rb", buffering=0) as file:
                    environ = file.readall()
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
            if token not in environ.split(b"\0"):
                continue
            stat = _stat(pid)
            if stat is not None and stat[0] not in "ZX":
                found.append((_inner_pid(pid), Sighting(pid, stat[1])))
        return [sighting for _, sighting in sorted(found, key=lambda pair: (pair[0], pair[1].pid))]

    def frozen(self, sighting: Sighting) -> bool:
        """Whether the process is held by the cgroup freezer (v1 ``freezer.state``, v2 ``cgroup.events``)."""
        try:
            cgroup = cgroups.cgroup_of(self.layout, "freezer", sighting.pid)
            return cgroup != "/" and cgroups.is_frozen(self.layout, cgroup)
        except OSError as error:
            if error.errno not in GONE:
                raise
            return False

    def cgroup_folders(self, sighting: Sighting) -> list[Path]:
        """The folders of the cgroups that the process is in, one for each hierarchy in which it is not at the root."""
        layout = self.layout
        try:
            paths = {
                controller: cgroups.cgroup_of(layout, controller, sighting.pid) for controller in layout.controllers
            }
        except OSError as error:
            if error.errno not in GONE:
                raise
            return []
        return sorted(
            {
                cgroups.path_of(layout, controller, path)
                for controller, path in paths.items()
                if path not in ("/", layout.own.get(controller))
            }
        )

    def namespace(self, pid: int, kind: str) -> tuple[int, int]:
        """What tells the namespace of `kind` that a process is in from all others (namespaces(7))."""
        return identity(pid, kind)

    def command_line(self, pid: int) -> str:
        """The arguments of a process, each ended by NUL (proc_pid_cmdline(5))."""
        return (PROC / str(pid) / "cmdline").read_text(errors="replace")

    def environment(self, pid: int) -> str:
        """The environment that a process was started with, each entry ended by NUL (proc_pid_environ(5))."""
        return (PROC / str(pid) / "environ").read_text(errors="replace")

    def mounts(self) -> list[Mount]:
        """Every mount that the engine sees."""
        return read_mounts(str(self.root_pid))


def _stat(pid: int) -> tuple[str, int] | None:
    """State letter and start time of a process, proc_pid_stat(5) fields 3 and 22; None where it is gone."""
    try:
        text = (PROC / str(pid) / "stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()
    return fields[0], int(fields[19])


def _inner_pid(pid: int) -> int:
    """The process' number in its own PID namespace (``NSpid`` of proc_pid_status(5)); 1 is the container's init."""
    try:
        for line in (PROC / str(pid) / "status").read_text(errors="replace").splitlines():
            if line.startswith("NSpid:"):
                return int(line.split()[-1])
    except (FileNotFoundError, ProcessLookupError):
        pass
    return pid
