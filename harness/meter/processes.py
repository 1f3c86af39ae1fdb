"""Memory of processes one by one: their proportional set size, in which shared pages count once in all."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Pss:
    """Proportional set size in bytes. `anon` is the process' own doing; `file` depends on who else maps the same files."""

    anon: int
    file: int


def parse_smaps_rollup(text: str) -> Pss | None:
    """``/proc/PID/smaps_rollup``; None for a process without memory (ended, not yet waited for) and before Linux 5.4."""
    sizes: dict[str, int] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key in ("Pss_Anon", "Pss_File"):
            number, unit = value.split()
            if unit != "kB":
                raise ValueError(f"not a size of smaps_rollup: {line!r}")
            sizes[key] = int(number) * 1024
    return Pss(sizes["Pss_Anon"], sizes["Pss_File"]) if len(sizes) == 2 else None


def read_pss(pid: int, proc: Path = PROC) -> Pss | None:
    """The sizes of `pid`; None once it is gone. Raises `PermissionError` where it may not be looked at."""
    try:
        return parse_smaps_rollup((proc / str(pid) / "smaps_rollup").read_text())
    except (FileNotFoundError, ProcessLookupError):
        return None


def read_total_pss(pids: Iterable[int], proc: Path = PROC) -> Pss | None:
    """The sum over `pids`; those that vanish while it is taken are left out. None where none could be read."""
    sizes = [size for size in (read_pss(pid, proc) for pid in pids) if size]
    if not sizes:
        return None
    return Pss(sum(size.anon for size in sizes), sum(size.file for size in sizes))
