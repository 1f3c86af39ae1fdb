"""Unpack one layer: a tar stream into a folder that overlayfs will stack (OCI image-spec, layer.md).

Nothing is ever written outside the folder: every parent is opened with openat2(RESOLVE_IN_ROOT), so a symbolic link or
an absolute name inside the layer means a place inside the layer, and the last component is never followed. A name
that climbs above the root is refused. Whiteouts become what overlayfs understands: a character device 0:0, or the
attribute ``trusted.overlay.opaque``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import shutil
import stat
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from harness.linux import syscalls
from harness.minirt.errors import InvalidArgument
from harness.minirt.images.archive import BROKEN, Archive
from harness.minirt.images.compression import Source

OPAQUE = "trusted.overlay.opaque"
_WHITEOUT = ".wh."
_OPAQUE_NAME = ".wh..wh..opq"
_RESERVED = ".wh..wh."
_IN_ROOT = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS
_LAYERS_FAULT = (errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EISDIR, errno.EXDEV, errno.EINVAL, errno.EFBIG)
"""what the kernel says of names and sizes that only a broken layer has"""
_NOBODY = (1 << 32) - 1

Room = Callable[[int], None]
"""Told of bytes that are about to be written; raises where there is no room for them."""


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What a layer has become. `implied` are the folders, parents first, that the layer has things in but says nothing of."""

    written_bytes: int
    implied: tuple[str, ...]


def unpack(source: Source, folder: Path, room: Room = lambda size: None) -> Unpacked:
    """Apply the plain tar stream `source` to the empty `folder`.

    Raises `InvalidArgument` for a damaged or hostile layer, `OSError` where the disk fails, and what `room` does. Half a
    layer may then be in `folder`, nothing anywhere else.
    """
    with contextlib.ExitStack() as stack:
        root = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, root)
        archive = Archive(source)
        unpacking = _Unpacking(root, archive, room)
        stack.callback(unpacking.close)
        try:
            for member in archive:
                unpacking.add(member)
            archive.drain()
            unpacking.finish()
        except BROKEN as error:
            raise InvalidArgument(f"the layer is not a tar archive that can be read: {error}") from error
        except OSError as error:
            if error.errno in _LAYERS_FAULT:
                raise InvalidArgument(
                    f"the layer holds {unpacking.current!r}, which cannot be made: {error}"
                ) from error
            raise
        return Unpacked(unpacking.written, tuple(sorted(unpacking.implied)))


def adopt(folder: Path, implied: Sequence[str], lower: Sequence[str]) -> None:
    """Have the `implied` folders of a layer look as they do below it, in the layers `lower` (topmost first).

    A layer with ``tmp/file`` and no word on ``tmp`` must not take the sticky bit off it.
    """
    with contextlib.ExitStack() as stack:
        root = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, root)
        below = [os.open(layer, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) for layer in lower]
        for fd in below:
            stack.callback(os.close, fd)
        for name in implied:
            found = _first_folder(below, name)
            if found is None:
                continue
            mine = syscalls.openat2(root, name, os.O_RDONLY | os.O_DIRECTORY, _IN_ROOT)
            try:
                os.fchown(mine, found.st_uid, found.st_gid)
                os.fchmod(mine, stat.S_IMODE(found.st_mode))
                os.utime(mine, ns=(found.st_mtime_ns, found.st_mtime_ns))
            finally:
                os.close(mine)


def _first_folder(layers: Sequence[int], name: str) -> os.stat_result | None:
    """What `name` is in the topmost of `layers` that has it, where it is a folder."""
    for layer in layers:
        try:
            fd = syscalls.openat2(layer, name, os.O_PATH | os.O_NOFOLLOW, _IN_ROOT)
        except FileNotFoundError:
            continue
        except OSError:
            return None
        try:
            found = os.fstat(fd)
        finally:
            os.close(fd)
        return found if stat.S_ISDIR(found.st_mode) else None
    return None


class _Unpacking:
    """One layer on its way into the folder behind the descriptor `root`."""

    def __init__(self, root: int, archive: Archive, room: Room) -> None:
        self._root = root
        self._archive = archive
        self._room = room
        self._parent_name = ""
        self._parent = os.dup(root)
        self._folders: dict[str, tarfile.TarInfo] = {}
        self.implied: set[str] = set()
        self.current = ""
        self.written = 0

    def close(self) -> None:
        os.close(self._parent)

    def add(self, member: tarfile.TarInfo) -> None:
        self.current = member.name
        self._room(0)
        if member.size < 0:
            raise InvalidArgument(f"the layer holds {member.name!r} of {member.size} bytes")
        name = _inside(member.name)
        if name == ".":
            if member.isdir():
                self._folders[name] = member
            return
        folder, base = posixpath.split(name)
        if base == _OPAQUE_NAME:
            self._set_opaque(folder or ".")
            return
        if base.startswith(_RESERVED):
            return  # aufs' own bookkeeping
        parent = self._open_parent(folder)
        if base.startswith(_WHITEOUT):
            self._whiteout(parent, name, base.removeprefix(_WHITEOUT))
            return
        if member.isdir():
            self._make_folder(parent, name, base)
            self._folders[name] = member
            self.implied.discard(name)
            return
        self._clear(parent, base)
        if member.isreg():
            self._write(parent, base, member)
            return
        if member.islnk():
            self._link(parent, base, member)
            return  # its attributes are those of the file that it is
        if member.issym():
            os.symlink(member.linkname, base, dir_fd=parent)
        elif member.isfifo():
            os.mkfifo(base, 0o600, dir_fd=parent)
        elif member.ischr() or member.isblk():
            kind = stat.S_IFCHR if member.ischr() else stat.S_IFBLK
            os.mknod(base, kind | 0o600, os.makedev(member.devmajor, member.devminor), dir_fd=parent)
        else:
            raise InvalidArgument(f"the layer holds {member.name!r}, which is of no known type")
        self._set_attributes(parent, base, member)

    def finish(self) -> None:
        """Give folders their attributes, deepest first: making what is in them had changed their times."""
        for name in sorted(self._folders, reverse=True):
            self.current = name
            member = self._folders[name]
            folder, base = posixpath.split(name)
            with self._opened(folder or ".") as parent:
                if stat.S_ISDIR(os.stat(base, dir_fd=parent, follow_symlinks=False).st_mode):
                    self._set_attributes(parent, base, member)

    @contextlib.contextmanager
    def _opened(self, name: str) -> Iterator[int]:
        fd = syscalls.openat2(self._root, name, os.O_PATH | os.O_DIRECTORY, _IN_ROOT)
        try:
            yield fd
        finally:
            os.close(fd)

    def _open_parent(self, name: str) -> int:
        """The folder `name`, made where the layer forgot to; stays open until another one is asked for."""
        if name == self._parent_name:
            return self._parent
        fd = self._open_folder(name)
        os.close(self._parent)
        self._parent, self._parent_name = fd, name
        return fd

    def _open_folder(self, name: str) -> int:
        try:
            return syscalls.openat2(self._root, name or ".", os.O_PATH | os.O_DIRECTORY, _IN_ROOT)
        except FileNotFoundError:
            above, base = posixpath.split(name)
        parent = self._open_folder(above)
        try:
            try:
                os.mkdir(base, 0o755, dir_fd=parent)
            except FileExistsError:
                raise InvalidArgument(
                    f"the layer reaches {self.current!r} by a symbolic link that leads nowhere"
                ) from None
            self.implied.add(name)
        finally:
            os.close(parent)
        return syscalls.openat2(self._root, name, os.O_PATH | os.O_DIRECTORY, _IN_ROOT)

    def _clear(self, parent: int, base: str) -> None:
        """Take away what has this name so far: the later entry wins."""
        try:
            mode = os.lstat(base, dir_fd=parent).st_mode
        except FileNotFoundError:
            return
        if stat.S_ISDIR(mode):
            shutil.rmtree(base, dir_fd=parent)
        else:
            os.unlink(base, dir_fd=parent)

    def _make_folder(self, parent: int, name: str, base: str) -> None:
        hidden = False
        try:
            status = os.lstat(base, dir_fd=parent)
        except FileNotFoundError:
            pass
        else:
            if stat.S_ISDIR(status.st_mode):
                return
            hidden = _is_whiteout(status)
            os.unlink(base, dir_fd=parent)
        os.mkdir(base, 0o755, dir_fd=parent)
        if hidden:
            self._set_opaque(name)

    def _whiteout(self, parent: int, name: str, hidden: str) -> None:
        if hidden in ("", ".", ".."):
            raise InvalidArgument(f"the layer holds {name!r}: a whiteout of nothing that could be there")
        try:
            status = os.lstat(hidden, dir_fd=parent)
        except FileNotFoundError:
            os.mknod(hidden, stat.S_IFCHR | 0o600, os.makedev(0, 0), dir_fd=parent)
            return
        # A whiteout speaks of the layers below only; what this layer itself brought stays, alone.
        if stat.S_ISDIR(status.st_mode):
            self._set_opaque(posixpath.join(posixpath.dirname(name), hidden))

    def _set_opaque(self, name: str) -> None:
        parent = self._open_parent(posixpath.dirname(name) if name != "." else "")
        base = posixpath.basename(name) if name != "." else "."
        if base != ".":
            self._make_folder_plain(parent, base)
        os.setxattr(f"/proc/self/fd/{parent}/{base}", OPAQUE, b"y", follow_symlinks=False)

    @staticmethod
    def _make_folder_plain(parent: int, base: str) -> None:
        with contextlib.suppress(FileExistsError):
            os.mkdir(base, 0o755, dir_fd=parent)
        if not stat.S_ISDIR(os.lstat(base, dir_fd=parent).st_mode):
            raise InvalidArgument(f"the layer makes {base!r} opaque, which is not a folder")

    def _write(self, parent: int, base: str, member: tarfile.TarInfo) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(base, flags, 0o600, dir_fd=parent)
        try:
            if member.issparse():
                self._fill_sparse(fd, member)
            else:
                self._copy(fd, member.size)
            _check_owner(member)
            os.fchown(fd, member.uid, member.gid)
            for name, value in _extended(member):
                with _unsupported_attributes_ignored():
                    os.setxattr(fd, name, value)
            os.fchmod(fd, member.mode & 0o7777)
            os.utime(fd, ns=_times(member))
        finally:
            os.close(fd)

    def _copy(self, fd: int, size: int) -> None:
        for piece in self._archive.content(size):
            self._room(len(piece))
            while piece:
                piece = piece[os.write(fd, piece) :]
        self.written += size

    def _fill_sparse(self, fd: int, member: tarfile.TarInfo) -> None:
        """Holes stay holes: the archive has the parts between them only."""
        end = 0
        for offset, size in cast("list[tuple[int, int]]", member.sparse):
            if offset < end or size < 0 or offset + size > member.size:
                raise InvalidArgument(f"the layer holds {member.name!r}, whose map of holes makes no sense")
            end = os.lseek(fd, offset, os.SEEK_SET) + size
            self._copy(fd, size)
        os.ftruncate(fd, member.size)

    def _link(self, parent: int, base: str, member: tarfile.TarInfo) -> None:
        target = _inside(member.linkname)
        folder, target_base = posixpath.split(target)
        try:
            with self._opened(folder or ".") as target_parent:
                # linkat does not follow a symbolic link at the end: it links the link itself.
                os.link(target_base, base, src_dir_fd=target_parent, dst_dir_fd=parent, follow_symlinks=False)
        except (FileNotFoundError, PermissionError) as error:
            raise InvalidArgument(
                f"the layer holds {member.name!r}, a hard link to {member.linkname!r}, which is not in the layer"
            ) from error

    @staticmethod
    def _set_attributes(parent: int, base: str, member: tarfile.TarInfo) -> None:
        _check_owner(member)
        os.chown(base, member.uid, member.gid, dir_fd=parent, follow_symlinks=False)
        for name, value in _extended(member):
            with _unsupported_attributes_ignored():
                os.setxattr(f"/proc/self/fd/{parent}/{base}", name, value, follow_symlinks=False)
        if not member.issym():
            os.chmod(base, member.mode & 0o7777, dir_fd=parent)
        os.utime(base, ns=_times(member), dir_fd=parent, follow_symlinks=False)


def _check_owner(member: tarfile.TarInfo) -> None:
    # To chown(2) the highest number means: as it is.
    if not (0 <= member.uid < _NOBODY and 0 <= member.gid < _NOBODY):
        raise InvalidArgument(f"the layer holds {member.name!r} of user {member.uid}, group {member.gid}")


def _times(member: tarfile.TarInfo) -> tuple[int, int]:
    times = int(member.mtime * 1_000_000_000)
    return times, times


def _extended(member: tarfile.TarInfo) -> Iterator[tuple[str, bytes]]:
    """The extended attributes that an image may set."""
    for key, value in member.pax_headers.items():
        name = key.removeprefix("SCHILY.xattr.")
        # Others steer the kernel (trusted.overlay.redirect could lead out of the stack) or another machine's policy.
        if name != key and (name.startswith("user.") or name == "security.capability"):
            yield name, value.encode("utf-8", "surrogateescape")


@contextlib.contextmanager
def _unsupported_attributes_ignored() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.EPERM):
            raise


def _is_whiteout(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _inside(name: str) -> str:
    """`name` relative to the layer's root. Raises `InvalidArgument` where it climbs above it."""
    if "\0" in name:
        raise InvalidArgument(f"the layer holds a name with a NUL in it: {name!r}")
    clean = posixpath.normpath(name.lstrip("/") or ".")
    if clean == ".." or clean.startswith("../"):
        raise InvalidArgument(f"the layer holds {name!r}, which is outside its root")
    return clean
