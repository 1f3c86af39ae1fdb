"""Paths inside a container's root filesystem, reached by descriptor and never by a plain path.

Whoever wrote the image, or runs beside us in the same root, may put a symbolic link anywhere at any time. So every
path is resolved by the kernel with the root filesystem as its ceiling (openat2, RESOLVE_IN_ROOT), and what is then done is
done to ``/proc/self/fd/N``, the very object that was found.
"""

from __future__ import annotations

import errno
import stat

from harness.linux import lean as os
from harness.linux import syscalls

_RESOLVE = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS


PROC_FILES = (
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/crypto/fips_enabled",
)
"""What may be mounted on inside procfs, because file systems such as lxcfs give the container's own view of it."""


def refusal_of(place: str, type: str, bind: bool) -> str:
    """Why nothing of that kind may be mounted at a place in the container; empty: it may.

    A process trusts what it reads in /proc: a file there that somebody else made would lead it astray, and the runtime too.
    """
    if place == "/":
        return "is the root itself, on which nothing can be mounted"
    if place == "/proc":
        return "" if bind or type == "proc" else f"cannot be mounted because it is not of type proc but {type}"
    if place.startswith("/proc/") and place not in PROC_FILES:
        return "cannot be mounted because it is inside /proc"
    return ""


def magic(fd: int) -> str:
    """A path that leads to an open descriptor and nowhere else."""
    return f"/proc/self/fd/{fd}"


def plain(path: str) -> str:
    """An absolute path without what does not count in it (``//`` and ``.``)."""
    return "/" + "/".join([word for word in path.split("/") if word not in ("", ".")])


def find(root: int, path: str, flags: int = os.O_PATH) -> int:
    """Open `path` with `root` as ``/``. The caller closes the result."""
    return syscalls.openat2(root, path.lstrip("/") or ".", flags, _RESOLVE)


def exists(root: int, path: str) -> bool:
    """Whether `path` leads to something."""
    try:
        os.close(find(root, path))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES):
            return False
        raise
    return True


def make_folder(root: int, path: str, mode: int = 0o755) -> int:
    """The folder at `path`, opened; it and its parents are made where missing."""
    try:
        return find(root, path, os.O_PATH | os.O_DIRECTORY)
    except FileNotFoundError:
        pass
    here = os.dup(root)
    walked = ""
    for word in path.split("/"):
        if word in ("", "."):
            continue
        if word == "..":
            walked = walked.rpartition("/")[0]
        else:
            walked = f"{walked}/{word}"
        try:
            following = find(root, walked, os.O_PATH | os.O_DIRECTORY)
        except FileNotFoundError:
            try:
                os.mkdir(word, mode, dir_fd=here)
            except FileExistsError:
                # A dangling link: what it points to is made, still below the root.
                target = os.readlink(word, dir_fd=here)
                base = target if target.startswith("/") else f"{walked.rpartition('/')[0]}/{target}"
                os.close(make_folder(root, base, mode))
            following = find(root, walked, os.O_PATH | os.O_DIRECTORY)
        os.close(here)
        here = following
    return here


def make_parent(root: int, path: str) -> tuple[int, str]:
    """The folder that holds `path`, opened (and made where missing), and the last word of `path`."""
    folder, _, name = path.rstrip("/").rpartition("/")
    if name in ("", ".", ".."):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
    return make_folder(root, folder), name


def make_file(root: int, path: str) -> int:
    """The file at `path`, opened with O_PATH; an empty one is made where there is none."""
    try:
        return find(root, path)
    except FileNotFoundError:
        pass
    parent, name = make_parent(root, path)
    try:
        try:
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o755, dir_fd=parent))
        except FileExistsError:
            target = os.readlink(name, dir_fd=parent)
            base = target if target.startswith("/") else f"{path.rpartition('/')[0]}/{target}"
            return make_file(root, base)
    finally:
        os.close(parent)
    return find(root, path)


def make_target(root: int, path: str, source_mode: int) -> int:
    """What a mount will cover: a folder or a file, as the mount's source is one (`source_mode` of its stat)."""
    return make_folder(root, path) if stat.S_ISDIR(source_mode) else make_file(root, path)
