"""events: what a container uses, and when it is out of memory, one JSON object a line."""

from __future__ import annotations

import gc
import os
import select
import sys
import time

from harness.linux import syscalls
from harness.minirt.container import document, state
from harness.minirt.container.cgroup import read_layout
from harness.minirt.container.files import read_file, write_file
from harness.minirt.container.record import changed
from harness.minirt.errors import MinirtError, UsageError, WrongState
from harness.minirt.oci.statistics import read_statistics

TYPE_CHECKING = False
if TYPE_CHECKING:
    from harness.minirt.container.cgroup import Cgroup
    from harness.minirt.container.state import Container
    from harness.minirt.oci.arguments import Words
    from harness.minirt.oci.command import Context

_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def print_events(context: Context, words: Words) -> int:
    """Print figures every ``--interval`` and each time that memory ran out, until the container ends."""
    container = state.load(context.root, words.arguments[0])
    interval_s = parse_duration(words.value("interval", "5s"))
    if interval_s <= 0:
        raise UsageError("duration interval must be greater than 0")
    if state.status_of(context.root, container) == state.STOPPED:
        raise WrongState(f"container with id {container.id} is not running")
    if not container.cgroup.folders:
        raise MinirtError(f"container {container.id} has no cgroup of its own, so nothing is counted for it")
    if words.has("stats"):
        _print_statistics(container)
        return 0
    watch = WatchV2(container.cgroup.folders[""]) if container.cgroup.version == 2 else WatchV1(container.cgroup)
    try:
        _follow(container, watch, interval_s)
    finally:
        watch.close()
    return 0


def parse_duration(text: str) -> float:
    """Seconds in ``5s``, ``1m30s``, ``100ms``, ``1.5h``, ``0``. Raises `UsageError`."""
    rest, total = text.removeprefix("-").removeprefix("+"), 0.0
    if rest == "0":
        return 0.0
    while rest:
        unit = rest.lstrip("0123456789.")
        digits = rest[: len(rest) - len(unit)]
        name = unit[: len(unit) - len(unit.lstrip("nuµμmsh"))]
        while name and name not in _UNITS_S:
            name = name[:-1]
        if not name or digits.strip(".") == "" or digits.count(".") > 1:
            break
        total += float(digits) * _UNITS_S[name]
        rest = unit[len(name) :]
    if rest or not text.strip("+-"):
        raise UsageError(f"invalid duration {text!r}")
    return -total if text.startswith("-") else total


class WatchV1:
    """Tells of a v1 cgroup that ran out of memory: the kernel adds to the eventfd `fd` (cgroup-v1/memory.rst, "OOM Control")."""

    def __init__(self, cgroup: Cgroup) -> None:
        folder = cgroup.folders.get("memory")
        if folder is None:
            raise MinirtError("memory controller missing")
        self._control = f"{folder}/cgroup.event_control"
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._file = os.open(f"{folder}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
        write_file(self._control, f"{self.fd} {self._file}")

    def happened(self) -> int:
        """How often since the last call."""
        try:
            count = os.eventfd_read(self.fd)
        except BlockingIOError:
            return 0
        # That the cgroup was removed is told in the same way.
        return count if os.path.exists(self._control) else 0

    def close(self) -> None:
        os.close(self._file)
        os.close(self.fd)


class WatchV2:
    """The same of v2: the kernel says that ``memory.events`` was changed, where ``oom_kill`` counts who was killed."""

    def __init__(self, folder: str) -> None:
        self._path = f"{folder}/memory.events"
        self.fd = syscalls.inotify_init()
        try:
            syscalls.inotify_add_watch(self.fd, self._path, syscalls.IN_MODIFY)
        except FileNotFoundError:
            os.close(self.fd)
            raise MinirtError("memory controller missing") from None
        self._killed = self._count()

    def _count(self) -> int:
        try:
            text = read_file(self._path)
        except OSError:  # removed: nothing that had not been told
            return self._killed
        return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill "))

    def happened(self) -> int:
        try:
            os.read(self.fd, 4096)
        except BlockingIOError:
            pass
        before, self._killed = self._killed, self._count()
        return max(self._killed - before, 0)

    def close(self) -> None:
        os.close(self.fd)


def _follow(container: Container, watch: WatchV1 | WatchV2, interval_s: float) -> None:
    gc.enable()
    try:
        pidfd = os.pidfd_open(container.pid)
    except ProcessLookupError:
        return
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.register(watch.fd, select.POLLIN)
        due = time.monotonic() + interval_s
        ended = not state.is_alive(container)
        while not ended:
            ready = poll.poll(max(due - time.monotonic(), 0) * 1000)
            ended = any(fd == pidfd for fd, _ in ready)
            for _ in range(watch.happened()):
                _print({"type": "oom", "id": container.id})
            if not ended and time.monotonic() >= due:
                # Of those that were missed (this process stood still) one will do.
                due = max(due + interval_s, time.monotonic())
                try:
                    _print_statistics(container)
                except OSError:  # it is just being removed, which the next look will show
                    continue
    finally:
        os.close(pidfd)


def _print_statistics(container: Container) -> None:
    _print({"type": "stats", "id": container.id, "data": read_statistics(_with_cpuset(container))})


def _with_cpuset(container: Container) -> Cgroup:
    """The container's cgroup with that of its CPUs, which it shares with whoever created it unless it asked for its own."""
    cgroup = container.cgroup
    if cgroup.version == 2 or "cpuset" in cgroup.folders:
        return cgroup
    hierarchy = read_layout().v1.get("cpuset")
    try:
        lines = read_file(f"/proc/{container.pid}/cgroup").splitlines()
    except OSError:
        return cgroup
    for line in lines:
        _, names, path = line.split(":", 2)
        if hierarchy is not None and "cpuset" in names.split(","):
            return changed(cgroup, folders={**cgroup.folders, "cpuset": f"{hierarchy.folder}{path}"})
    return cgroup


def _print(event: dict[str, object]) -> None:
    sys.stdout.write(document.render(event) + "\n")
    sys.stdout.flush()
