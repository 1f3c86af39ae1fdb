"""Memory of processes one by one: their proportional set size, in which shared pages count once in all."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Pss:
    """Proportional set size in bytes. `anon` is the process' own doing; `file` depends on who else maps the same files."""

    anon: int
    file: int


_MAPPING = re.compile(r"[0-9a-f]+-[0-9a-f]+ \S+ [0-9a-f]+ ([0-9a-f]+:[0-9a-f]+) (\d+)")


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


def parse_mapped_files(text: str) -> dict[str, int]:
    """``/proc/PID/smaps``: bytes resident of each mapped file (``device inode``), pages that were copied left out."""
    files: dict[str, int] = {}
    file = ""
    for line in text.splitlines():
        mapping = _MAPPING.match(line)
        if mapping:
            file = f"{mapping[1]} {mapping[2]}" if mapping[2] != "0" else ""
        elif file and line.startswith(("Rss:", "Anonymous:")):
            size = int(line.split()[1]) * 1024
            files[file] = files.get(file, 0) + (size if line.startswith("R") else -size)
    return files


def read_file_alone(pids: Iterable[int], proc: Path = PROC) -> int | None:
    """Bytes of files that `pids` map, each file counted once: their ``Pss_File`` if nobody else mapped those files.

    ``Pss_File`` itself shrinks with every other engine of the same program that happens to run beside. Costs some
    milliseconds for a process with many mappings. None where nothing could be read.
    """
    largest: dict[str, int] = {}
    seen = False
    for pid in pids:
        try:
            files: Mapping[str, int] = parse_mapped_files((proc / str(pid) / "smaps").read_text(errors="replace"))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        seen = True
        for file, size in files.items():
            largest[file] = max(size, largest.get(file, 0))
    return sum(largest.values()) if seen else None
