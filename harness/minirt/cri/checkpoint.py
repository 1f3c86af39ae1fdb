"""CheckpointContainer: a container as one archive, laid out as CRI-O and containerd do it.

::

    checkpoint/          the images of CRIU: processes, memory, open files
    config.dump          who the container was (JSON)
    spec.dump            its config.json
    rootfs-diff.tar      what it had written, as a layer of an image: deleted files are whiteouts
    dump.log, stats-dump what CRIU said of its work
    container.log        its log so far, if it has one
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import stat
import tarfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.minirt.container import cgroup as cgroups
from harness.minirt.container.checkpoint import LOG, dump, find_criu
from harness.minirt.cri.records import RUNNING, Container
from harness.minirt.errors import InvalidArgument, WrongState
from harness.minirt.images.layers import OPAQUE

DEFAULT_TIMEOUT_S = 120
_WHITEOUT, _OPAQUE_MARK = ".wh.", ".wh..wh..opq"


def check_location(location: str) -> None:
    """Raises `InvalidArgument` for what cannot be the path of a new archive, `WrongState` where its folder is missing."""
    if not os.path.isabs(location) or "\0" in location or location.endswith("/"):
        raise InvalidArgument(f"location {location!r} is not the absolute path of a file")
    if not os.path.isdir(os.path.dirname(location)):
        raise WrongState(f"location {location!r}: the folder is not there")


def checkpoint(
    container: Container, spec: Mapping[str, Any], folder: Path, image_name: str, location: str, timeout_s: float
) -> None:
    """Write the archive; the container stands still meanwhile, and goes on after it, whatever happens.

    `folder`: where its writable layer is. Raises `WrongState` unless it runs, and what `dump` raises; nothing is left at
    `location` then.
    """
    find_criu()
    if container.state != RUNNING:
        raise WrongState(f"container {container.id} is not running")
    place = cgroups.find(cgroups.read_layout(), container.cgroup)
    if place.is_frozen():
        raise WrongState(f"container {container.id} is paused")
    work = folder / "checkpoint"
    shutil.rmtree(work, ignore_errors=True)
    fresh = f"{location}.{secrets.token_hex(4)}"
    try:
        (work / "checkpoint").mkdir(parents=True, mode=0o700)
        place.freeze()
        try:
            dump(place, container.pid, dict(spec), str(work / "checkpoint"), str(work), timeout_s)
            _write_layer(folder / "upper", work / "rootfs-diff.tar")
        finally:
            place.thaw()
        (work / "spec.dump").write_text(json.dumps(spec))
        (work / "config.dump").write_text(json.dumps(_describe(container, image_name)))
        _write_archive(work, container.log_path, fresh)
        os.rename(fresh, location)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(fresh)
        shutil.rmtree(work, ignore_errors=True)


def _describe(container: Container, image_name: str) -> dict[str, Any]:
    """``config.dump``, with the keys that readers of such archives look for."""
    created = datetime.fromtimestamp(container.created_ns / 1e9, UTC)
    return {
        "id": container.id,
        "name": container.config.metadata.name,
        "rootfsImage": image_name,
        "rootfsImageRef": container.image_id,
        "rootfsImageName": image_name,
        "runtime": "minirt",
        "createdTime": created.isoformat(),
        "checkpointedTime": datetime.now(UTC).isoformat(),
        "restoredTime": "0001-01-01T00:00:00Z",
        "restored": False,
    }


def _write_layer(upper: Path, path: Path) -> None:
    """An overlay's upper folder as a layer (OCI image-spec, layer.md)."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for where, folders, files in os.walk(upper):
            folders.sort()
            for name in sorted((*folders, *files)):
                full = os.path.join(where, name)
                inside = os.path.relpath(full, upper)
                status = os.lstat(full)
                if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
                    tar.addfile(tarfile.TarInfo(os.path.join(os.path.dirname(inside), _WHITEOUT + name)))
                elif not stat.S_ISSOCK(status.st_mode):
                    tar.add(full, inside, recursive=False)
                    if stat.S_ISDIR(status.st_mode) and _is_opaque(full):
                        tar.addfile(tarfile.TarInfo(os.path.join(inside, _OPAQUE_MARK)))


def _is_opaque(folder: str) -> bool:
    try:
        return os.getxattr(folder, OPAQUE) == b"y"
    except OSError:
        return False


def _write_archive(work: Path, log: str, path: str) -> None:
    def shut(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.uid = info.gid = 0
        info.uname = info.gname = ""
        return info

    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("checkpoint", "config.dump", "spec.dump", "rootfs-diff.tar", LOG, "stats-dump"):
            if (work / name).exists():
                tar.add(work / name, name, filter=shut)
        if log and os.path.isfile(log):
            tar.add(log, "container.log", filter=shut)
