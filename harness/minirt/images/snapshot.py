"""Unpacked layers, and the overlays made of them.

::

    <root>/layers/<key>/fs           one layer, as overlayfs wants it; <key>: the first 16 digits of its chain id
    <root>/layers/<key>/layer.json   chain id and size; written last, inside a folder that is then renamed into place
    <root>/layers/tmp-*              half a layer, or one that is being removed; cleared away when the daemon starts
    <root>/containers/<id>/{upper,work}

A chain id (OCI image-spec, config.md) names a layer together with everything below it.

Nobody waits for the disk. A layer is trusted for as long as the machine runs in which it was unpacked (layer.json says
which boot that was), and for ever once it has been synced to disk, some time later. After a power loss what had not
been synced is thrown away, and pulled again when it is needed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.linux import syscalls
from harness.minirt.errors import InvalidArgument, NotFound
from harness.minirt.images.room import Room
from harness.minirt.images.view import stacked

_KEY_DIGITS = 16
_SETTLE_S = 60.0
"""after a pull; by then the kernel has written most by itself"""
_FS_IOC_GETFLAGS, _FS_IOC_SETFLAGS, _FS_TOPDIR_FL = 0x80086601, 0x40086602, 0x00020000
_POLL_S = 0.1
_DESTROY_S = 1.0
"""how long a client waits for files to be removed; crictl gives a call 2 s"""
_LONGEST_OPTIONS = 4095 - len(",volatile")
"""what one page, of which mount(2) takes one, can hold, with what is added when it is mounted"""


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
        """The data of mount(2), whose lower layers whoever mounts it may have to shorten (`container.stacking` does).

        Raises `InvalidArgument` where there are more layers than fit then.
        """
        options = f"lowerdir={':'.join(self.lower)},upperdir={self.upper},workdir={self.work}"
        shared = len(f"{os.path.commonpath([os.path.dirname(layer) for layer in self.lower])}/") if self.lower else 0
        if len(options) - shared * len(self.lower) > _LONGEST_OPTIONS:
            raise InvalidArgument(f"an image of {len(self.lower)} layers is more than one mount can stack")
        return options


@dataclass(frozen=True, slots=True)
class Usage:
    """Space that layers take."""

    bytes: int
    inodes: int


def boot_id() -> str:
    """What tells this run of the kernel from all others (random(4))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


class Snapshots:
    """The layers below `root`. Safe for threads: every change is one rename. `boot` is a `boot_id`."""

    def __init__(self, root: Path, boot: str = "") -> None:
        self._layers = root / "layers"
        self._containers = root / "containers"
        self._boot = boot or boot_id()
        self._layers.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._containers.mkdir(exist_ok=True, mode=0o700)
        self._usage: dict[str, Usage] = {}
        self._unsettled: set[str] = set()
        self._lock = threading.Lock()
        self._claims: dict[str, threading.Lock] = {}
        self._committed = threading.Condition()
        self._timer: threading.Timer | None = None
        _spread(self._layers)
        doomed = []
        for folder in list(self._layers.iterdir()):
            if folder.name.startswith("tmp-"):
                doomed.append(folder)
            elif not self._remember(folder):
                doomed.append(self._move_away(folder))
        self.destroy(doomed)
        if self._unsettled:
            self._settle_later()

    def _remember(self, folder: Path) -> bool:
        """Whether `folder` is a whole layer."""
        try:
            record = json.loads((folder / "layer.json").read_bytes())
            chain_id, usage = record["chain_id"], Usage(record["bytes"], record["inodes"])
            if self._folder(chain_id) != folder or not (folder / "fs").is_dir():
                return False
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False
        if boot := record.get("boot"):
            if boot != self._boot:
                return False
            self._unsettled.add(chain_id)
        self._usage[chain_id] = usage
        return True

    def _folder(self, chain_id: str) -> Path:
        return self._layers / chain_id.partition(":")[2][:_KEY_DIGITS]

    def has(self, chain_id: str) -> bool:
        """Whether that layer is there, whole."""
        return chain_id in self._usage and (self._folder(chain_id) / "fs").is_dir()

    def room(self) -> Room:
        """What the disk of the layers has room for."""
        return Room(self._layers)

    @contextlib.contextmanager
    def claim(self, chain_id: str, check: Callable[[], None]) -> Iterator[None]:
        """Be the only one to work on a layer. `check` is called while somebody else is, and may raise."""
        with self._lock:
            claim = self._claims.setdefault(chain_id, threading.Lock())
        while not claim.acquire(timeout=_POLL_S):
            check()
        try:
            yield
        finally:
            claim.release()
            with self._lock:
                if not claim.locked():
                    self._claims.pop(chain_id, None)

    def wait_for(self, chain: Sequence[str], check: Callable[[], None]) -> None:
        """Until others have committed those layers. `check` is called meanwhile, and may raise."""
        with self._committed:
            while not all(self.has(chain_id) for chain_id in chain):
                check()
                self._committed.wait(_POLL_S)

    @contextlib.contextmanager
    def stage(self) -> Iterator[Path]:
        """An empty folder to unpack a layer into, for `commit`; gone afterwards, whatever happened."""
        folder = self._layers / f"tmp-{secrets.token_hex(8)}"
        try:
            (folder / "fs").mkdir(parents=True, mode=0o755)
            yield folder / "fs"
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @contextlib.contextmanager
    def view(self, chain: Sequence[str], staged: Path | None = None) -> Iterator[int]:
        """An image's layers as one tree, behind a descriptor; with `staged` on top of them, where what is written goes."""
        lower = [f"{self._folder(chain_id).name}/fs" for chain_id in reversed(chain)]
        if staged is None:
            with stacked(str(self._layers), lower) as root:
                yield root
            return
        work = staged.with_name("work")
        work.mkdir(mode=0o700)
        try:
            with stacked(
                str(self._layers), lower, *(str(path.relative_to(self._layers)) for path in (staged, work))
            ) as root:
                yield root
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def commit(self, staged: Path, chain_id: str) -> None:
        """Make what was unpacked into `staged` the layer `chain_id`; nothing happens where that is there already."""
        usage = _measure(staged)
        record = {"chain_id": chain_id, "bytes": usage.bytes, "inodes": usage.inodes}
        (staged.parent / "layer.json").write_text(json.dumps({**record, "boot": self._boot}))
        folder = self._folder(chain_id)
        if not self.has(chain_id):
            shutil.rmtree(folder, ignore_errors=True)  # what is damaged makes way
            os.rename(staged.parent, folder)
        with self._committed:
            self._usage[chain_id] = usage
            self._committed.notify_all()
        self._unsettled.add(chain_id)
        self._settle_later()

    def _settle_later(self) -> None:
        with self._lock:
            if self._timer is None:
                self._timer = threading.Timer(_SETTLE_S, self.settle)
                self._timer.daemon = True
                self._timer.name = "settle"
                self._timer.start()

    def settle(self) -> None:
        """Have all layers on the disk itself, so that they outlast the loss of power."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            settled, self._unsettled = self._unsettled, set()
        if not settled:
            return
        with contextlib.suppress(OSError):  # then they are pulled again after a power loss
            fd = os.open(self._layers, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                syscalls.syncfs(fd)
            finally:
                os.close(fd)
            for chain_id in settled:
                if usage := self._usage.get(chain_id):
                    record = {"chain_id": chain_id, "bytes": usage.bytes, "inodes": usage.inodes}
                    path = self._folder(chain_id) / "layer.json"
                    temporary = path.with_name("layer.json.new")
                    with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                        temporary.write_text(json.dumps(record))
                        os.rename(temporary, path)

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
        for chain_id in chain:
            if not self.has(chain_id):
                raise NotFound(f"layer {chain_id} is gone or damaged: pull the image again")
        os.makedirs(overlay.work, 0o700)
        os.mkdir(overlay.upper, 0o755)
        if overlay.lower:
            # The root of an overlay looks like its topmost layer's, which is what a file system shows at "/".
            top = os.stat(overlay.lower[0])
            os.chmod(overlay.upper, top.st_mode & 0o7777)
            os.chown(overlay.upper, top.st_uid + shift[0], top.st_gid + shift[1])
        return overlay

    def detach(self, used: Iterable[str]) -> list[Path]:
        """Forget every layer that is not in `used` (chain ids); the folders, out of the way, to `destroy`."""
        keep = set(used)
        doomed = []
        for chain_id in [chain_id for chain_id in list(self._usage) if chain_id not in keep]:
            del self._usage[chain_id]
            self._unsettled.discard(chain_id)
            doomed.append(self._move_away(self._folder(chain_id)))
        return doomed

    def _move_away(self, folder: Path) -> Path:
        """Out of the way of a new layer of that name; where it is now."""
        away = self._layers / f"tmp-{secrets.token_hex(8)}"
        with contextlib.suppress(OSError):  # gone already, or on a disk that is read-only
            os.rename(folder, away)
        return away

    @staticmethod
    def destroy(doomed: Sequence[Path]) -> None:
        """Remove what `detach` has taken away. Large ones go on being removed behind the caller's back.

        What is left when the daemon ends goes when the next one starts.
        """
        if doomed:
            thread = threading.Thread(target=_remove, args=(doomed,), name="destroy", daemon=True)
            thread.start()
            thread.join(_DESTROY_S)

    def usage(self) -> Usage:
        """What all layers take together, as measured when they were unpacked."""
        rows = list(self._usage.values())
        return Usage(sum(row.bytes for row in rows), sum(row.inodes for row in rows))


def _remove(folders: Iterable[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _spread(folder: Path) -> None:
    """Tell ext4 that what is in `folder` is unrelated (chattr(1), "T"): each layer then gets a part of the disk of its own.

    In one part alone, making files becomes ten times slower once many have been removed there a short while ago.
    """
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            (flags,) = struct.unpack("l", fcntl.ioctl(fd, _FS_IOC_GETFLAGS, bytes(struct.calcsize("l"))))
            fcntl.ioctl(fd, _FS_IOC_SETFLAGS, struct.pack("l", flags | _FS_TOPDIR_FL))
        finally:
            os.close(fd)


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
