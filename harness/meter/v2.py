"""Counters of cgroup v2: ``cpu.stat`` and ``memory.stat`` in the one tree."""

from __future__ import annotations

from pathlib import Path

from harness.linux.cgroups import parse_flat, read_pids
from harness.meter.gauge import OpenFile, Reading


def parse_memory(stat: str) -> Reading:
    """``memory.stat`` of v2. Raises `ValueError`, `KeyError`.

    ``file`` of the kernel has shmem in it, a `Reading` does not. ``pagetables`` came with Linux 5.14; where it is missing,
    page tables are charged but not told.
    """
    values = parse_flat(stat)
    return Reading(
        anon=values["anon"],
        shmem=values["shmem"],
        kernel=values["kernel_stack"] + values.get("pagetables", 0),
        slab=values["slab_unreclaimable"],
        file=max(values["file"] - values["shmem"], 0),
    )


class V2Gauge:
    """Reads one cgroup whose folder is `folder`. ``cpu.stat`` has its usage there without the cpu controller too."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._cpu = OpenFile(folder / "cpu.stat")
        self._stat = OpenFile(folder / "memory.stat")

    @property
    def notes(self) -> tuple[str, ...]:
        return tuple(file.problem for file in (self._cpu, self._stat) if file.problem)

    def cpu_ns(self) -> int | None:
        text = self._cpu.read()
        if text is None:
            return None
        # usage_usec is the first line of the file in every version of the kernel; the rest need not be parsed.
        key, _, value = text.partition("\n")[0].partition(" ")
        return int(value) * 1000 if key == "usage_usec" else parse_flat(text)["usage_usec"] * 1000

    def memory(self) -> Reading:
        text = self._stat.read()
        return Reading() if text is None else parse_memory(text)

    def pids(self) -> list[int]:
        return read_pids(self._folder)

    def close(self) -> None:
        self._cpu.close()
        self._stat.close()
