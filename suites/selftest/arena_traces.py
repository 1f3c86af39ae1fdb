"""What an arena can leave on a machine, looked up without asking the arena."""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path

from harness.arena.cgroups import bases
from harness.keeper import runs
from harness.linux.mounts import read_mounts


def fresh_run() -> str:
    """The id of a run that no other test has."""
    return f"t{uuid.uuid4().hex[:12]}"


def traces(run: str) -> list[str]:
    """Folders, cgroups, mounts and processes that have the run's id in them."""
    found = [top for base in (runs.DATA, runs.STATE, *bases()) if Path(top := f"{base}/{run}").exists()]
    found += [mount.target for mount in read_mounts() if run in mount.target or run in mount.source]
    found += [f"process {pid}" for pid in processes(run)]
    return found


def processes(run: str) -> list[int]:
    """Processes in the run's cgroups, or with its id among their arguments."""
    pids = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes() + (entry / "cgroup").read_bytes()
                state = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[0]
                if run.encode() in words and state not in "ZX":
                    pids.append(int(entry.name))
    return pids


def files_of_podman() -> set[Path]:
    """What podman writes on the host when nobody tells it not to; a folder alone is a mount point of some arena."""
    folders = ("/run/podman", "/run/libpod", "/run/containers", "/var/lib/containers", "/etc/cni")
    found = {path for folder in folders for path in Path(folder).rglob("*") if not path.is_dir()}
    # What is shipped to a machine, which may be this one, is another test's.
    temporary = {path for path in Path("/var/tmp").glob("*") if not path.name.startswith("seatrial-")}
    return found.union(Path("/run/netns").glob("netns-*"), Path("/dev/shm").glob("libpod*"), temporary)


def links() -> set[str]:
    """Network interfaces of the test's own (the host's) network namespace."""
    return {entry.name for entry in Path("/sys/class/net").iterdir()}
