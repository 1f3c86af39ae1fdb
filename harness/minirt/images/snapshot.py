"""Unpacked layers, and the overlays made of them.

::

    <root>/layers/<key>/fs           one layer, as overlayfs wants it; <key>: the first 16 digits of its chain id
    <root>/layers/<key>/layer.json   chain id and size; written last, inside a folder that is then renamed into place
    <root>/layers/tmp-*              half a layer; removed when the daemon starts
    <root>/containers/<id>/{upper,work}

A chain id (OCI image-spec, config.md) names a layer together with everything below it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.minirt.errors import InvalidArgument

_KEY_DIGITS = 16
_LONGEST_OPTIONS = 4095
"""what one page, of which mount(2) takes one, can hold"""


def chain_ids(diff_ids: Sequence[str]) -> tuple[str, ...]:
    """The chain id of each layer, lowest first."""
    chain: list[str] = []
    for diff_id in diff_ids:
        if chain:
            text = f"{chain[-1]} {diff_id}".encode()
            chain.append("sha256:" + hashlib.sha256(text).hexdigest())
        else:
            chain.append(diff_id)
    return tuple(chain)


@dataclass(frozen=True, slots=True)
class Overlay:
    """What a container's root is mounted from. `lower` has the topmost layer first."""

    lower: tuple[str, ...]
    upper: str
    work: str

    @property
    def options(self) -> str:
        """The data of mount(2). Raises `InvalidArgument` where there are more layers than fit."""
        options = f"lowerdir={':'.join(self.lower)},upperdir={self.upper},workdir={self.work}"
        if len(options) > _LONGEST_OPTIONS:
            raise InvalidArgument(f"an image of {len(self.lower)} layers is more than one mount can stack")
        return options


@dataclass(frozen=True, slots=True)
class Usage:
    """Space that layers take."""

    bytes: int
    inodes: int


class Snapshots:
    """The layers below `root`. Safe for threads: every change is one rename."""

    def __init__(self, root: Path) -> None:
        self._layers = root / "layers"
        self._containers = root / "containers"
        self._layers.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._containers.mkdir(exist_ok=True, mode=0o700)
        self._usage: dict[str, Usage] = {}
        for folder in self._layers.iterdir():
            if folder.name.startswith("tmp-"):
                shutil.rmtree(folder, ignore_errors=True)
            else:
                self._remember(folder)

    def _remember(self, folder: Path) -> None:
        with contextlib.suppress(OSError, ValueError, KeyError):
            record = json.loads((folder / "layer.json").read_bytes())
            self._usage[record["chain_id"]] = Usage(record["bytes"], record["inodes"])

    def _folder(self, chain_id: str) -> Path:
        return self._layers / chain_id.partition(":")[2][:_KEY_DIGITS]

    def has(self, chain_id: str) -> bool:
        """Whether that layer is there, whole."""
        return chain_id in self._usage

    @contextlib.contextmanager
    def stage(self) -> Iterator[Path]:
        """An empty folder to unpack a layer into, for `commit`; gone afterwards, whatever happened."""
        folder = self._layers / f"tmp-{secrets.token_hex(8)}"
        (folder / "fs").mkdir(parents=True, mode=0o755)
        try:
            yield folder / "fs"
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def commit(self, staged: Path, chain_id: str) -> None:
        """Make what was unpacked into `staged` the layer `chain_id`; nothing happens where that is there already."""
        usage = _measure(staged)
        record = {"chain_id": chain_id, "bytes": usage.bytes, "inodes": usage.inodes}
        (staged.parent / "layer.json").write_text(json.dumps(record))
        try:
            os.rename(staged.parent, self._folder(chain_id))
        except OSError:
            if not (self._folder(chain_id) / "layer.json").exists():
                raise
        self._usage[chain_id] = usage

    def layers(self, chain: Sequence[str]) -> tuple[str, ...]:
        """The folders of an image's layers, topmost first, as overlayfs lists them."""
        return tuple(str(self._folder(chain_id) / "fs") for chain_id in reversed(chain))

    def overlay(self, container_id: str, chain: Sequence[str]) -> Overlay:
        """What the root of a container is, or will be, mounted from."""
        folder = self._containers / container_id
        return Overlay(self.layers(chain), str(folder / "upper"), str(folder / "work"))

    def prepare(self, container_id: str, chain: Sequence[str], shift: tuple[int, int] = (0, 0)) -> Overlay:
        """A writable layer for a container, on top of an image. `shift`: what is added to ids in its user namespace."""
        overlay = self.overlay(container_id, chain)
        os.makedirs(overlay.work, 0o700)
        os.mkdir(overlay.upper, 0o755)
        if overlay.lower:
            # The root of an overlay looks like its topmost layer's, which is what a file system shows at "/".
            top = os.stat(overlay.lower[0])
            os.chmod(overlay.upper, top.st_mode & 0o7777)
            os.chown(overlay.upper, top.st_uid + shift[0], top.st_gid + shift[1])
        return overlay

    def collect(self, used: Iterable[str]) -> None:
        """Remove every layer that is not in `used` (chain ids)."""
        keep = set(used)
        for chain_id in [chain_id for chain_id in self._usage if chain_id not in keep]:
            del self._usage[chain_id]
            folder = self._folder(chain_id)
            doomed = self._layers / f"tmp-{secrets.token_hex(8)}"
            with contextlib.suppress(FileNotFoundError):
                os.rename(folder, doomed)
            shutil.rmtree(doomed, ignore_errors=True)

    def usage(self) -> Usage:
        """What all layers take together, as measured when they were unpacked."""
        rows = list(self._usage.values())
        return Usage(sum(row.bytes for row in rows), sum(row.inodes for row in rows))


def _measure(folder: Path) -> Usage:
    seen: set[int] = set()
    used = 0
    for where, _, files in os.walk(folder):
        for path in (where, *(f"{where}/{name}" for name in files)):
            status = os.lstat(path)
            if status.st_ino not in seen:
                seen.add(status.st_ino)
                used += status.st_blocks * 512
    return Usage(used, len(seen))


def measure(folder: Path) -> Usage:
    """What the files below `folder` take on their disk, hard links counted once; 0 where it is gone."""
    try:
        return _measure(folder)
    except OSError:
        return Usage(0, 0)
