"""A layer becomes files: a tar stream, applied to what is below it (OCI image-spec, layer.md, "Applying Changesets").

There are two ways, with the same result. `unpack` does not look at the layers below, so that all of an image can be
unpacked side by side: into a folder of the layer's own, with whiteouts as overlayfs understands them (a character device
0:0, or the attribute ``trusted.overlay.opaque``). What it has taken for granted about the layers below, `adopt` holds
against them. The few layers that turn out to be `Entangled` with them (their entries go through a symbolic link of a lower
layer, or are hard links to its files) are applied once more by `apply`, entry by entry to the whole tree.

Nothing is ever written outside the tree: parents are opened one by one, or with openat2(RESOLVE_IN_ROOT), a symbolic link
or an absolute name means a place inside, and the last component is never followed. A name that climbs above the root is
refused.
"""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import stat
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.linux import syscalls
from harness.minirt.errors import InvalidArgument
from harness.minirt.images.archive import BROKEN, Archive
from harness.minirt.images.compression import Source
from harness.minirt.images.entries import Room, Writer, clear, copy_attributes, find, set_attributes, times_of

OPAQUE = "trusted.overlay.opaque"
_WHITEOUT = ".wh."
_OPAQUE_NAME = ".wh..wh..opq"
_RESERVED = ".wh..wh."
_PLAIN = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_SYMLINKS
_FOLDER = os.O_PATH | os.O_DIRECTORY
_MOST_LINKS = 40
"""on the way to one file, as in the kernel (path_resolution(7))"""
_NO_FOLDER = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
"""what the kernel says of a plain path that is not there, or leads through something that is no folder"""
_LAYERS_FAULT = (errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EISDIR, errno.EXDEV, errno.EINVAL, errno.EFBIG)
"""what the kernel says of names and sizes that only a broken layer has"""


class Entangled(InvalidArgument):
    """What a layer holds cannot be made without the layers below, if at all."""


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What a layer has become by itself. All names are relative to its root, and of no symbolic link's."""

    written_bytes: int
    assumed: tuple[str, ...] = ()
    """folders that it used before it spoke of them: below, there must be no symbolic links of these names"""
    implied: tuple[str, ...] = ()
    """those of them that it never spoke of, and which look as they do below"""
    whiteouts: tuple[str, ...] = ()
    """what it hides, if it is there"""


def unpack(source: Source, folder: Path, room: Room = lambda size: None) -> Unpacked:
    """Unpack the plain tar stream `source` into the empty `folder`, for `adopt`.

    Raises `Entangled`, `InvalidArgument` for a damaged or hostile layer, `OSError` where the disk fails, and what `room`
    does. Half a layer may then be in `folder`, nothing anywhere else.
    """
    with _opened(folder) as root:
        alone = _Alone(root, source, room)
        alone.run()
        return Unpacked(
            alone.writer.written, *(tuple(sorted(names)) for names in (alone.assumed, alone.implied, alone.whiteouts))
        )


def apply(source: Source, root: int, room: Room = lambda size: None) -> int:
    """Apply the plain tar stream `source` to the tree behind the descriptor `root`; the bytes that were written.

    Raises as `unpack` does, but for `Entangled`.
    """
    whole = _Whole(root, source, room)
    whole.run()
    return whole.writer.written


def adopt(folder: Path, made: Unpacked, below: int) -> None:
    """Fit what `unpack` has made in `folder` to the tree behind the descriptor `below`, all the layers below as one.

    Folders that the layer did not speak of look as they do there (a layer with ``tmp/file`` must not take the sticky bit off
    ``tmp``), and whiteouts of what is not there go: overlayfs would show some of them. Raises `Entangled`.
    """
    with _opened(folder) as root:
        for name in made.assumed:
            with _opened_below(below, name) as found:
                if found >= 0 and stat.S_ISLNK(os.fstat(found).st_mode):
                    raise Entangled(f"the layer holds things in {name!r}, which is a symbolic link in a lower layer")
        for name in made.whiteouts:
            with _opened_below(below, name) as found:
                if found < 0:
                    _drop_whiteout(root, name)
        for name in made.implied:
            with _opened_below(below, name, os.O_RDONLY | os.O_DIRECTORY) as found:
                if found >= 0:
                    mine = syscalls.openat2(root, name, os.O_RDONLY | os.O_DIRECTORY, _PLAIN)
                    try:
                        copy_attributes(found, mine)
                    finally:
                        os.close(mine)


class _Applying(ABC):
    """One layer on its way into the tree behind the descriptor `root`. A *place* is a name without symbolic links."""

    def __init__(self, root: int, source: Source, room: Room) -> None:
        self._root = root
        self._archive = Archive(source)
        self._room = room
        self.writer = Writer(self._archive, room)
        self._parent_name = self._parent_place = ""
        self._parent = os.dup(root)
        self._times: dict[str, tuple[int, int]] = {}
        self._current = ""

    def run(self) -> None:
        try:
            for member in self._archive:
                self._add(member)
            self._archive.drain()
            self._finish()
        except BROKEN as error:
            raise InvalidArgument(f"the layer is not a tar archive that can be read: {error}") from error
        except OSError as error:
            if error.errno in _LAYERS_FAULT:
                raise InvalidArgument(f"the layer holds {self._current!r}, which cannot be made: {error}") from error
            raise
        finally:
            os.close(self._parent)

    @abstractmethod
    def _open_folder(self, name: str) -> tuple[int, str]:
        """The folder `name`, made where the layer forgot to; and its place."""

    @abstractmethod
    def _open_there(self, name: str) -> int:
        """The folder `name`. Raises `OSError` where there is none."""

    @abstractmethod
    def _make_folder(self, parent: int, place: str) -> None:
        """Have a folder at `place`; one that is there is kept."""

    @abstractmethod
    def _clear(self, parent: int, place: str) -> None:
        """Make way for an entry: the later one wins."""

    @abstractmethod
    def _hide(self, parent: int, place: str) -> None:
        """A whiteout. It speaks of the layers below only: what this layer itself brought stays."""

    @abstractmethod
    def _hide_content(self, folder: int, place: str) -> None:
        """The same for everything in a folder: it becomes opaque."""

    @abstractmethod
    def _no_target(self, what: str) -> InvalidArgument:
        """The error for a hard link, described by `what`, to what is not to be found, or is a folder."""

    def _add(self, member: tarfile.TarInfo) -> None:
        self._current = member.name
        self._room(0)
        if member.size < 0:
            raise InvalidArgument(f"the layer holds {member.name!r} of {member.size} bytes")
        name = _inside(member.name)
        folder, base = posixpath.split(name)
        if base == ".":
            if member.isdir():
                set_attributes(self._root, base, member)
                self._times[""] = times_of(member)
            return
        if base.startswith(_RESERVED) and base != _OPAQUE_NAME:
            return  # aufs' own bookkeeping
        parent = self._open_parent(folder)
        if base == _OPAQUE_NAME:
            self._hide_content(parent, self._parent_place)
            return
        hidden = base.removeprefix(_WHITEOUT)
        if hidden in ("", ".", ".."):
            raise InvalidArgument(f"the layer holds {name!r}: a whiteout of nothing that could be there")
        place = f"{self._parent_place}/{hidden}" if self._parent_place else hidden
        if hidden != base or (member.ischr() and not member.devmajor and not member.devminor):
            self._hide(parent, place)
            return
        if member.isdir():
            self._make_folder(parent, place)
            set_attributes(parent, base, member)
            self._times[place] = times_of(member)
            return
        self._clear(parent, place)
        if member.islnk():
            self._link(parent, base, member)  # its attributes are those of the file that it is
        else:
            self.writer.write(parent, base, member)

    def _open_parent(self, name: str) -> int:
        """`_open_folder`, which stays open until another one is asked for."""
        if name != self._parent_name:
            fd, place = self._open_folder(name)
            os.close(self._parent)
            self._parent, self._parent_name, self._parent_place = fd, name, place
        return self._parent

    def _open(self, place: str, flags: int = _FOLDER) -> int:
        return syscalls.openat2(self._root, place or ".", flags, _PLAIN)

    def _link(self, parent: int, base: str, member: tarfile.TarInfo) -> None:
        folder, target = posixpath.split(_inside(member.linkname))
        what = f"the layer holds {member.name!r}, a hard link to {member.linkname!r}"
        try:
            holder = self._open_there(folder)
        except OSError as error:
            if error.errno in _NO_FOLDER:
                raise self._no_target(what) from error
            raise
        try:
            status = find(holder, target)
            if status is None or _is_whiteout(status):
                raise self._no_target(what)
            # linkat does not follow a symbolic link at the end: it links the link itself.
            os.link(target, base, src_dir_fd=holder, dst_dir_fd=parent, follow_symlinks=False)
        except PermissionError as error:  # it is a folder
            raise self._no_target(what) from error
        finally:
            os.close(holder)

    def _finish(self) -> None:
        """Give folders their times: making what is in them had changed those."""
        for place, times in self._times.items():
            try:
                fd = self._open(place, os.O_RDONLY | os.O_DIRECTORY)
            except OSError as error:
                if error.errno in _NO_FOLDER:
                    continue  # something else has taken its place
                raise
            try:
                os.utime(fd, ns=times)
            finally:
                os.close(fd)


class _Alone(_Applying):
    """Into a folder of the layer's own. No symbolic link is followed, so that names are the same here and in the whole tree."""

    def __init__(self, root: int, source: Source, room: Room) -> None:
        super().__init__(root, source, room)
        self.assumed: set[str] = set()
        self.implied: set[str] = set()
        self.whiteouts: set[str] = set()
        self._bare: set[str] = set()
        """folders through which nothing shows that is below"""

    def _open_folder(self, name: str) -> tuple[int, str]:
        try:
            return self._open(name), name
        except FileNotFoundError:
            above, base = posixpath.split(name)
        except OSError as error:
            if error.errno in _NO_FOLDER:
                raise self._entangled() from error
            raise
        parent, _ = self._open_folder(above)
        try:
            os.mkdir(base, 0o755, dir_fd=parent)
        finally:
            os.close(parent)
        if not self._is_bare(name):
            self.assumed.add(name)
            self.implied.add(name)
        return self._open(name), name

    def _entangled(self) -> Entangled:
        return Entangled(f"the layer holds {self._current!r}, which cannot be made in what is no folder")

    def _open_there(self, name: str) -> int:
        return self._open(name)

    def _no_target(self, what: str) -> InvalidArgument:
        return Entangled(f"{what}, which is no file in the layer")

    def _is_bare(self, place: str) -> bool:
        while self._bare and (place := posixpath.dirname(place)):
            if place in self._bare:
                return True
        return False

    def _make_folder(self, parent: int, place: str) -> None:
        base = posixpath.basename(place)
        status = find(parent, base)
        if status is not None and not stat.S_ISDIR(status.st_mode):
            os.unlink(base, dir_fd=parent)
        if status is None or not stat.S_ISDIR(status.st_mode):
            os.mkdir(base, 0o755, dir_fd=parent)
        if status is not None and not stat.S_ISDIR(status.st_mode):
            # What stood here had hidden whatever is below.
            self._make_opaque(f"{parent}/{base}", place)
        self.implied.discard(place)

    def _clear(self, parent: int, place: str) -> None:
        if clear(parent, posixpath.basename(place)):
            self.implied = {name for name in self.implied if name != place and not name.startswith(f"{place}/")}

    def _hide(self, parent: int, place: str) -> None:
        base = posixpath.basename(place)
        status = find(parent, base)
        if status is not None:
            if stat.S_ISDIR(status.st_mode):
                if place in self.implied:
                    raise self._undecided()
                self._make_opaque(f"{parent}/{base}", place)
        elif not self._is_bare(place):
            os.mknod(base, stat.S_IFCHR | 0o600, os.makedev(0, 0), dir_fd=parent)
            self.whiteouts.add(place)

    def _hide_content(self, folder: int, place: str) -> None:
        if not place:
            raise Entangled("the layer hides all that is below it")  # the root of an overlay is never opaque
        self._make_opaque(f"{folder}/.", place)

    def _make_opaque(self, path: str, place: str) -> None:
        if any(name.startswith(f"{place}/") for name in self.implied):
            raise self._undecided()
        os.setxattr(f"/proc/self/fd/{path}", OPAQUE, b"y", follow_symlinks=False)
        self._bare.add(place)

    def _undecided(self) -> Entangled:
        return Entangled(f"the layer holds {self._current!r}, a whiteout of folders that it may have had from below")

    def _finish(self) -> None:
        for place in self.whiteouts:
            if self._is_bare(place):
                _drop_whiteout(self._root, place)
        super()._finish()


class _Whole(_Applying):
    """Into the whole tree. Symbolic links are followed inside of it, those that lead nowhere too."""

    def __init__(self, root: int, source: Source, room: Room) -> None:
        super().__init__(root, source, room)
        self._mine: set[str] = set()
        """what this layer has brought, and the folders that lead there"""

    def _open_folder(self, name: str) -> tuple[int, str]:
        fd, place = self._find_folder(name, make=True)
        # What is done inside of it is not meant to change when it was changed last.
        self._times.setdefault(place, (os.fstat(fd).st_mtime_ns,) * 2)
        return fd, place

    def _open_there(self, name: str) -> int:
        return self._find_folder(name, make=False)[0]

    def _find_folder(self, name: str, make: bool) -> tuple[int, str]:
        with contextlib.suppress(OSError):
            return self._open(name), name
        rest = name.split("/")[::-1]
        place, links = "", 0
        while rest:
            part = rest.pop()
            if part == "..":
                place = posixpath.dirname(place)
            elif part not in ("", "."):
                parent = self._open(place)
                try:
                    status = find(parent, part)
                    if status is not None and stat.S_ISLNK(status.st_mode):
                        links += 1
                        if links > _MOST_LINKS:
                            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), name)
                        target = os.readlink(part, dir_fd=parent)
                        rest += target.split("/")[::-1]
                        place = "" if target.startswith("/") else place
                        continue
                    place = posixpath.join(place, part)
                    is_folder = status is not None and stat.S_ISDIR(status.st_mode)
                    if make and not is_folder and (status is None or place not in self._mine):
                        self._make_folder(parent, place)  # also in the place of a lower layer's file
                finally:
                    os.close(parent)
        return self._open(place), place

    def _no_target(self, what: str) -> InvalidArgument:
        return InvalidArgument(f"{what}, which is no file in the layer, nor below it")

    def _bring(self, place: str) -> None:
        while place and place not in self._mine:
            self._mine.add(place)
            place = posixpath.dirname(place)

    def _make_folder(self, parent: int, place: str) -> None:
        base = posixpath.basename(place)
        status = find(parent, base)
        if status is None or not stat.S_ISDIR(status.st_mode):
            clear(parent, base)
            os.mkdir(base, 0o755, dir_fd=parent)
        self._bring(place)

    def _clear(self, parent: int, place: str) -> None:
        clear(parent, posixpath.basename(place))
        self._bring(place)

    def _hide(self, parent: int, place: str) -> None:
        base = posixpath.basename(place)
        if place not in self._mine:
            clear(parent, base)
            return
        status = find(parent, base)
        if status is not None and stat.S_ISDIR(status.st_mode):
            self._hide_content(parent, place)

    def _hide_content(self, folder: int, place: str) -> None:
        fd = self._open(place, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for name in os.listdir(fd):
                self._hide(fd, posixpath.join(place, name))
        finally:
            os.close(fd)


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    fd = os.open(folder, _FOLDER | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _opened_below(below: int, name: str, flags: int = os.O_PATH | os.O_NOFOLLOW) -> Iterator[int]:
    """What is called `name` in the layers below; -1 where there is nothing, or not what `flags` ask for."""
    try:
        fd = syscalls.openat2(below, name, flags, _PLAIN)
    except OSError as error:
        if error.errno not in _NO_FOLDER:
            raise
        yield -1
        return
    try:
        yield fd
    finally:
        os.close(fd)


def _drop_whiteout(root: int, place: str) -> None:
    """Take the whiteout at `place` away, if it is still there, without a trace."""
    folder, base = posixpath.split(place)
    try:
        fd = syscalls.openat2(root, folder or ".", os.O_RDONLY | os.O_DIRECTORY, _PLAIN)
    except OSError as error:
        if error.errno not in _NO_FOLDER:
            raise
        return
    try:
        status = find(fd, base)
        if status is not None and _is_whiteout(status):
            times = os.fstat(fd).st_mtime_ns
            os.unlink(base, dir_fd=fd)
            os.utime(fd, ns=(times, times))
    finally:
        os.close(fd)


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
