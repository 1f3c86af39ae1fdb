"""Whether there is room for a machine, said before anything is started."""

from __future__ import annotations

import shutil
from pathlib import Path

from harness.errors import MachineError

SPARE_MB = 512
"""of memory, left to the machine itself"""


def require_disk(folder: Path, wanted_bytes: int, what: str) -> None:
    """Raises `MachineError` where the file system of `folder` has less than `wanted_bytes` free for `what`."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < wanted_bytes:
        raise MachineError(
            f"{what} takes {wanted_bytes / 1e9:.1f} GB of disk, and {folder} has {free / 1e9:.1f} GB free",
            "make room there",
        )


def require_memory(wanted_mb: int, what: str, meminfo: Path = Path("/proc/meminfo")) -> None:
    """Raises `MachineError` where less than `wanted_mb` MB of memory and `SPARE_MB` more are available (proc(5))."""
    for line in meminfo.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            available_mb = int(line.split()[1]) // 1024
            if available_mb < wanted_mb + SPARE_MB:
                raise MachineError(
                    f"{what} takes {wanted_mb} MB of memory and {SPARE_MB} have to stay free, but {available_mb} MB are",
                    "end something, or give it less in vagrant/machines.yaml (memory_mb)",
                )
