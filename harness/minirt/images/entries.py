"""One entry of a layer, written into a folder that is open: contents, owners, modes, times, extended attributes."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import tarfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import cast

from harness.minirt.errors import InvalidArgument
from harness.minirt.images.archive import Archive

_NOBODY = (1 << 32) - 1

Room = Callable[[int], None]
"""Told of bytes that are about to be written; raises where there is no room for them."""


class Writer:
    """Makes files out of the entries of `archive`. `parent` is a descriptor everywhere, and `base` a name in it that is free."""

    def __init__(self, archive: Archive, room: Room) -> None:
        self._archive = archive
        self._room = room
        self.written = 0

    def write(self, parent: int, base: str, member: tarfile.TarInfo) -> None:
        """Make what is neither a folder nor a hard link. Raises `InvalidArgument` for what is of no known type."""
        if member.isreg():
            self._write_file(parent, base, member)
            return
        if member.issym():
            os.symlink(member.linkname, base, dir_fd=parent)
        elif member.isfifo():
            os.mkfifo(base, 0o600, dir_fd=parent)
        elif member.ischr() or member.isblk():
            if _in_user_namespace():
                return  # where nobody may make them, images are used without
            kind = stat.S_IFCHR if member.ischr() else stat.S_IFBLK
            os.mknod(base, kind | 0o600, os.makedev(member.devmajor, member.devminor), dir_fd=parent)
        else:
            raise InvalidArgument(f"the layer holds {member.name!r}, which is of no known type")
        set_attributes(parent, base, member)
        os.utime(base, ns=times_of(member), dir_fd=parent, follow_symlinks=False)

    def _write_file(self, parent: int, base: str, member: tarfile.TarInfo) -> None:
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
            os.utime(fd, ns=times_of(member))
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


def set_attributes(parent: int, base: str, member: tarfile.TarInfo) -> None:
    """Owner, extended attributes and mode."""
    _check_owner(member)
    os.chown(base, member.uid, member.gid, dir_fd=parent, follow_symlinks=False)
    for name, value in _extended(member):
        with _unsupported_attributes_ignored():
            os.setxattr(f"/proc/self/fd/{parent}/{base}", name, value, follow_symlinks=False)
    if not member.issym():
        os.chmod(base, member.mode & 0o7777, dir_fd=parent)


def copy_attributes(source: int, target: int) -> None:
    """Give the folder `target` what the folder `source` has; what steers overlayfs stays what it is."""
    found = os.fstat(source)
    os.fchown(target, found.st_uid, found.st_gid)
    for name in os.listxattr(source):
        if not name.startswith("trusted.overlay."):
            with _unsupported_attributes_ignored():
                os.setxattr(target, name, os.getxattr(source, name))
    os.fchmod(target, stat.S_IMODE(found.st_mode))
    os.utime(target, ns=(found.st_mtime_ns, found.st_mtime_ns))


def clear(parent: int, base: str) -> bool:
    """Take away what has this name, if anything; whether it was a folder."""
    status = find(parent, base)
    if status is None:
        return False
    if stat.S_ISDIR(status.st_mode):
        shutil.rmtree(base, dir_fd=parent)
        return True
    os.unlink(base, dir_fd=parent)
    return False


def find(parent: int, base: str) -> os.stat_result | None:
    """What has this name, if anything."""
    try:
        return os.lstat(base, dir_fd=parent)
    except FileNotFoundError:
        return None


def times_of(member: tarfile.TarInfo) -> tuple[int, int]:
    """For `os.utime`, in nanoseconds."""
    times = int(member.mtime * 1_000_000_000)
    return times, times


def _check_owner(member: tarfile.TarInfo) -> None:
    # To chown(2) the highest number means: as it is.
    if not (0 <= member.uid < _NOBODY and 0 <= member.gid < _NOBODY):
        raise InvalidArgument(f"the layer holds {member.name!r} of user {member.uid}, group {member.gid}")


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


@cache
def _in_user_namespace() -> bool:
    """Whether we are root of less than the machine."""
    return Path("/proc/self/uid_map").read_text().split() != ["0", "0", str(_NOBODY)]
