"""What a cgroup uses and has used, in one shape for v1 and v2.

Times are nanoseconds, sizes bytes. A figure that the kernel does not give is None; a limit that is not set is 0. Raises
`OSError` where the cgroup is gone. Files: the kernel's admin-guide/cgroup-v1 and admin-guide/cgroup-v2.rst,
accounting/psi.rst.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

from harness.linux.cgroups import Layout, parse_flat, parse_limit, path_of, read_pids

_ABSENT = (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP, errno.ENOTDIR)
_LARGEST_FILE_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Stall:
    """One line of a pressure file: how long tasks waited, and the share of recent time in percent."""

    total_ns: int
    avg10: float
    avg60: float
    avg300: float


@dataclass(frozen=True, slots=True)
class Pressure:
    """`some`: at least one task waited; `full`: all that were not idle did."""

    some: Stall
    full: Stall


@dataclass(frozen=True, slots=True)
class Cpu:
    used_ns: int
    user_ns: int
    system_ns: int
    periods: int = 0
    throttled_periods: int = 0
    throttled_ns: int = 0
    pressure: Pressure | None = None


@dataclass(frozen=True, slots=True)
class Memory:
    """`working_set` is what cannot be given back at once: all but file pages that are not in use."""

    used: int
    limit: int
    peak: int | None
    working_set: int
    rss: int
    cache: int
    mapped: int
    kernel: int | None
    active_file: int
    inactive_file: int
    faults: int
    major_faults: int
    limit_hits: int
    oom_kills: int
    swap: int | None
    swap_limit: int
    pressure: Pressure | None = None

    @property
    def available(self) -> int | None:
        """What is left below the limit; None without a limit."""
        return max(self.limit - self.working_set, 0) if self.limit else None


@dataclass(frozen=True, slots=True)
class Disk:
    """What went to and from one block device."""

    major: int
    minor: int
    read_bytes: int
    written_bytes: int
    reads: int
    writes: int


class Usages:
    """Reads what cgroups use; a cgroup is named by its path inside a hierarchy."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def cpu(self, cgroup: str) -> Cpu:
        v2 = self._layout.is_v2("cpuacct")
        return _cpu_v2(self._folder("cpuacct", cgroup)) if v2 else self._cpu_v1(cgroup)

    def memory(self, cgroup: str) -> Memory:
        folder = self._folder("memory", cgroup)
        return _memory_v2(folder) if self._layout.is_v2("memory") else _memory_v1(folder)

    def disks(self, cgroup: str) -> list[Disk]:
        """Nothing where the cgroup has no part in that controller (v1: minirt uses it only for containers with a weight)."""
        folder = self._folder("blkio", cgroup)
        return _disks_v2(folder) if self._layout.is_v2("blkio") else _disks_v1(folder)

    def io_pressure(self, cgroup: str) -> Pressure | None:
        return _pressure(self._folder("blkio", cgroup), "io") if self._layout.is_v2("blkio") else None

    def threads(self, cgroup: str) -> tuple[int, int]:
        """How many there are, and how many there may be (0: no limit)."""
        folder = self._folder("pids", cgroup)
        return int(_read(folder, "pids.current")), _limit(folder, "pids.max")

    def processes(self, cgroup: str) -> list[int]:
        return read_pids(path_of(self._layout, "pids", cgroup))

    def _folder(self, controller: str, cgroup: str) -> str:
        mount = self._layout.controllers.get(controller, self._layout.unified)
        if mount is not None and self._layout.roots.get(mount, "/") == "/":
            return f"{mount}{cgroup}"
        return str(path_of(self._layout, controller, cgroup))

    def _cpu_v1(self, cgroup: str) -> Cpu:
        folder = self._folder("cpuacct", cgroup)
        throttling = parse_flat(_read_if_there(self._folder("cpu", cgroup), "cpu.stat"))
        return Cpu(
            used_ns=int(_read(folder, "cpuacct.usage")),
            user_ns=int(_read_if_there(folder, "cpuacct.usage_user") or 0),
            system_ns=int(_read_if_there(folder, "cpuacct.usage_sys") or 0),
            periods=throttling.get("nr_periods", 0),
            throttled_periods=throttling.get("nr_throttled", 0),
            throttled_ns=throttling.get("throttled_time", 0),
        )


def _cpu_v2(folder: str) -> Cpu:
    stat = parse_flat(_read(folder, "cpu.stat"))
    return Cpu(
        used_ns=stat["usage_usec"] * 1000,
        user_ns=stat["user_usec"] * 1000,
        system_ns=stat["system_usec"] * 1000,
        periods=stat.get("nr_periods", 0),
        throttled_periods=stat.get("nr_throttled", 0),
        throttled_ns=stat.get("throttled_usec", 0) * 1000,
        pressure=_pressure(folder, "cpu"),
    )


def _memory_v1(folder: str) -> Memory:
    used = int(_read(folder, "memory.usage_in_bytes"))
    stat = parse_flat(_read(folder, "memory.stat"))
    # Not every line of it is there with every configuration; some give two words that are no number.
    control = dict(line.split(" ", 1) for line in _read_if_there(folder, "memory.oom_control").splitlines())
    limit = _limit(folder, "memory.limit_in_bytes")
    with_swap = _limit(folder, "memory.memsw.limit_in_bytes")
    return Memory(
        used=used,
        limit=limit,
        peak=_number(folder, "memory.max_usage_in_bytes"),
        working_set=max(used - stat.get("total_inactive_file", 0), 0),
        rss=stat.get("total_rss", 0),
        cache=stat.get("total_cache", 0),
        mapped=stat.get("total_mapped_file", 0),
        kernel=_number(folder, "memory.kmem.usage_in_bytes"),
        active_file=stat.get("total_active_file", 0),
        inactive_file=stat.get("total_inactive_file", 0),
        faults=stat.get("total_pgfault", 0),
        major_faults=stat.get("total_pgmajfault", 0),
        limit_hits=_number(folder, "memory.failcnt") or 0,
        oom_kills=int(control.get("oom_kill", 0)),
        swap=stat.get("total_swap"),
        swap_limit=max(with_swap - limit, 0) if limit and with_swap else 0,
    )


def _memory_v2(folder: str) -> Memory:
    used = int(_read(folder, "memory.current"))
    stat = parse_flat(_read(folder, "memory.stat"))
    events = parse_flat(_read_if_there(folder, "memory.events"))
    return Memory(
        used=used,
        limit=_limit(folder, "memory.max"),
        peak=_number(folder, "memory.peak"),
        working_set=max(used - stat.get("inactive_file", 0), 0),
        rss=stat.get("anon", 0),
        cache=stat.get("file", 0),
        mapped=stat.get("file_mapped", 0),
        kernel=stat.get("kernel"),
        active_file=stat.get("active_file", 0),
        inactive_file=stat.get("inactive_file", 0),
        faults=stat.get("pgfault", 0),
        major_faults=stat.get("pgmajfault", 0),
        limit_hits=events.get("max", 0),
        oom_kills=events.get("oom_kill", 0),
        swap=_number(folder, "memory.swap.current"),
        swap_limit=_limit(folder, "memory.swap.max"),
        pressure=_pressure(folder, "memory"),
    )


def _disks_v1(folder: str) -> list[Disk]:
    found: dict[str, dict[str, int]] = {}
    for file, kind in (("io_service_bytes", "bytes"), ("io_serviced", "times")):
        for line in _read_if_there(folder, f"blkio.throttle.{file}_recursive").splitlines():
            words = line.split()
            if len(words) == 3 and ":" in words[0]:
                found.setdefault(words[0], {})[f"{words[1]} {kind}"] = int(words[2])
    return [
        Disk(
            *map(int, device.split(":")),
            *(row.get(key, 0) for key in ("Read bytes", "Write bytes", "Read times", "Write times")),
        )
        for device, row in found.items()
    ]


def _disks_v2(folder: str) -> list[Disk]:
    disks = []
    for line in _read_if_there(folder, "io.stat").splitlines():
        device, *pairs = line.split()
        row = dict(pair.split("=", 1) for pair in pairs)
        if "rbytes" in row:
            figures = (int(row.get(key, 0)) for key in ("rbytes", "wbytes", "rios", "wios"))
            disks.append(Disk(*map(int, device.split(":")), *figures))
    return disks


def _pressure(folder: str, kind: str) -> Pressure | None:
    """None where the kernel does not keep account of it."""
    stalls = {}
    for line in _read_if_there(folder, f"{kind}.pressure").splitlines():
        name, *pairs = line.split()
        row = dict(pair.split("=", 1) for pair in pairs)
        averages = (float(row[key]) for key in ("avg10", "avg60", "avg300"))
        stalls[name] = Stall(int(row["total"]) * 1000, *averages)
    return Pressure(stalls["some"], stalls.get("full") or Stall(0, 0, 0, 0)) if "some" in stalls else None


def _number(folder: str, name: str) -> int | None:
    text = _read_if_there(folder, name)
    return int(text) if text else None


def _limit(folder: str, name: str) -> int:
    return parse_limit(_read_if_there(folder, name) or "max") or 0


def _read(folder: str, name: str) -> str:
    fd = os.open(f"{folder}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, _LARGEST_FILE_BYTES).decode()
    finally:
        os.close(fd)


def _read_if_there(folder: str, name: str) -> str:
    try:
        return _read(folder, name)
    except OSError as error:
        if error.errno in _ABSENT:
            return ""
        raise
