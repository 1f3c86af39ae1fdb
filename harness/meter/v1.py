"""Counters of cgroup v1: ``cpuacct`` and ``memory``, each in a hierarchy of its own.

Two differences to v2 that a reader of figures has to know, both in `V1_NOTES`: v1 tells kernel memory as one sum, which has
reclaimable slab in it (cached dentries and inodes), and it has no figure for unreclaimable slab.
"""

from __future__ import annotations

from pathlib import Path

from harness.linux.cgroups import parse_flat, read_pids
from harness.meter.gauge import OpenFile, Reading

V1_NOTES = (
    "cgroup v1: kernel memory is one figure (memory.kmem.usage_in_bytes), with reclaimable slab in it, so engine memory "
    "reads higher than on a v2 machine",
    "cgroup v1: unreclaimable slab is not told apart",
)


def parse_memory(stat: str, kmem: str | None) -> Reading:
    """``memory.stat`` and ``memory.kmem.usage_in_bytes`` of v1. Raises `ValueError`, `KeyError`."""
    values = parse_flat(stat)
    shmem = values["total_shmem"]
    return Reading(
        anon=values["total_rss"],
        shmem=shmem,
        kernel=None if kmem is None else int(kmem),
        slab=None,
        file=max(values["total_cache"] - shmem, 0),  # the two are not summed up at one moment
    )


class V1Gauge:
    """Reads one cgroup whose folders are `cpuacct` and `memory`; None for a controller that is not mounted."""

    def __init__(self, cpuacct: Path | None, memory: Path | None) -> None:
        self._folder = memory or cpuacct
        self._usage = OpenFile(cpuacct / "cpuacct.usage", 64) if cpuacct else None
        self._stat = OpenFile(memory / "memory.stat") if memory else None
        self._kmem = OpenFile(memory / "memory.kmem.usage_in_bytes", 64) if memory else None
        self._files = [file for file in (self._usage, self._stat, self._kmem) if file]

    @property
    def notes(self) -> tuple[str, ...]:
        missing = [
            f"cgroup v1: the controller {name} is not mounted"
            for name, file in (("cpuacct", self._usage), ("memory", self._stat))
            if file is None
        ]
        return (*V1_NOTES, *missing, *(file.problem for file in self._files if file.problem))

    def cpu_ns(self) -> int | None:
        text = self._usage.read() if self._usage else None
        return None if text is None else int(text)

    def memory(self) -> Reading:
        stat = self._stat.read() if self._stat else None
        kmem = self._kmem.read() if self._kmem else None
        return Reading() if stat is None else parse_memory(stat, kmem)

    def pids(self) -> list[int]:
        return read_pids(self._folder) if self._folder else []

    def close(self) -> None:
        for file in self._files:
            file.close()
