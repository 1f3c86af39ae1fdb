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
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Protocol, cast

from harness.linux import syscalls
from harness.minirt.errors import InvalidArgument

OPAQUE = "trusted.overlay.opaque"
_WHITEOUT = ".wh."
_OPAQUE_NAME = ".wh..wh..opq"
_RESERVED = ".wh..wh."
_CHUNK = 1 << 20
_IN_ROOT = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS


class Source(Protocol):
    """What a layer's bytes are read from; b"" is the end."""

    def read(self, size: int, /) -> bytes: ...


class Inflater:
    """The bytes of a gzip stream (of one or more members), or those of a plain one as they are: told by its first bytes."""

    def __init__(self, source: Source) -> None:
        self._source = source
        first = b""
        while len(first) < 4 and (part := source.read(4 - len(first))):
            first += part
        self._gzip = first[:2] == b"\x1f\x8b"
        if first == b"\x28\xb5\x2f\xfd":
            raise InvalidArgument("the layer is compressed with zstd, which is not supported")
        self._inflate = zlib.decompressobj(31)
        self._pending = first
        self._left = b""

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes; fewer only at the end. Raises `InvalidArgument` where the stream is damaged or cut."""
        parts = [self._left[:size]]
        self._left = self._left[size:]
        have = len(parts[0])
        while have < size and (part := self._more(size - have)):
            parts.append(part[: size - have])
            self._left = part[size - have :]
            have += len(parts[-1])
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _more(self, wanted: int) -> bytes:
        while True:
            pending = self._pending or self._source.read(_CHUNK)
            self._pending = b""
            if not self._gzip:
                return pending
            if not pending:
                if not self._inflate.eof:
                    raise InvalidArgument("the layer's gzip stream ends too early")
                return b""
            try:
                if self._inflate.eof:
                    pending = pending.lstrip(b"\0")  # padding is allowed behind the last member
                    if not pending:
                        continue
                    self._inflate = zlib.decompressobj(31)
                # Bounded, so that a small piece of input cannot fill the memory.
                part = self._inflate.decompress(pending, max(wanted, _CHUNK))
            except zlib.error as error:
                raise InvalidArgument(f"the layer's gzip stream is damaged: {error}") from error
            self._pending = self._inflate.unconsumed_tail or self._inflate.unused_data
            if part:
                return part


def unpack(source: Source, folder: Path) -> int:
    """Apply the plain tar stream `source` to the empty `folder`; how many bytes of files it wrote.

    Raises `InvalidArgument` for a damaged or hostile layer, `OSError` where the disk fails. Half a layer may then be in
    `folder`, nothing anywhere else.
    """
    with contextlib.ExitStack() as stack:
        root = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, root)
        unpacking = _Unpacking(root)
        stack.callback(unpacking.close)
        try:
            with tarfile.open(fileobj=cast("IO[bytes]", source), mode="r|", bufsize=_CHUNK) as tar:
                for member in tar:
                    unpacking.add(tar, member)
                    tar.members = []  # type: ignore[attr-defined]  # else it keeps every header until the end
        except (tarfile.TarError, ValueError, EOFError, OverflowError) as error:
            raise InvalidArgument(f"the layer is not a tar archive that can be read: {error}") from error
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EISDIR, errno.EXDEV):
                raise InvalidArgument(
                    f"the layer holds {unpacking.current!r}, which cannot be made: {error}"
                ) from error
            raise
        while source.read(_CHUNK):  # what stands behind the archive's end still belongs to the digest
            pass
        unpacking.finish()
        return unpacking.written


class _Unpacking:
    """One layer on its way into the folder behind the descriptor `root`."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._parent_name = ""
        self._parent = os.dup(root)
        self._folders: dict[str, tarfile.TarInfo] = {}
        self.current = ""
        self.written = 0

    def close(self) -> None:
        os.close(self._parent)

    def add(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        self.current = member.name
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
            return
        self._clear(parent, base)
        if member.isreg():
            self._write(parent, base, tar, member)
        elif member.issym():
            os.symlink(member.linkname, base, dir_fd=parent)
        elif member.islnk():
            self._link(parent, base, member)
            return  # its attributes are those of the file that it is
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

    def _write(self, parent: int, base: str, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        content = tar.extractfile(member)
        with open(os.open(base, flags, 0o600, dir_fd=parent), "wb", buffering=0) as out:
            if content is not None:
                shutil.copyfileobj(content, out, _CHUNK)
        self.written += member.size

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

    def _set_attributes(self, parent: int, base: str, member: tarfile.TarInfo) -> None:
        os.chown(base, member.uid, member.gid, dir_fd=parent, follow_symlinks=False)
        for key, value in member.pax_headers.items():
            attribute = key.removeprefix("SCHILY.xattr.")
            # Others steer the kernel (trusted.overlay.redirect could lead out of the stack) or another machine's policy.
            if attribute != key and attribute.startswith(("user.", "security.capability")):
                raw = value.encode("utf-8", "surrogateescape")
                with _unsupported_attributes_ignored():
                    os.setxattr(f"/proc/self/fd/{parent}/{base}", attribute, raw, follow_symlinks=False)
        if not member.issym():
            os.chmod(base, member.mode & 0o7777, dir_fd=parent)
        times = int(member.mtime * 1_000_000_000)
        os.utime(base, ns=(times, times), dir_fd=parent, follow_symlinks=False)


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
