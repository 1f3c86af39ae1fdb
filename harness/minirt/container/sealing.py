"""Being started from a file that nobody can write: the program once more, from a read-only mount that belongs to no namespace.

A process that is in a container's namespaces can be looked at from there, and the file that it was started from can be got hold
of (``/proc/PID/exe``) and be overwritten when nobody executes it any more (CVE-2019-5736). Through a read-only mount it cannot,
by whoever, and a mount that is attached nowhere cannot be made writable again from anywhere.
"""

from __future__ import annotations

import errno
import os
import sys

from harness.linux import syscalls
from harness.minirt.errors import step_error

_OWN = "/proc/self/exe"
_AGAIN = "_MINIRT_SEALED"
"""set in the environment of the second start, so that there is no third"""
_NAME = b"minirt\0"


def seal() -> None:
    """Execute this very command again, from a file that cannot be written; comes back only where it is from one already.

    To be called before anything else is done, by a process of one thread. Raises `StepError`.
    """
    again = os.environ.pop(_AGAIN, "")
    if again:
        syscalls.set_name(_NAME)
    if not _is_writable():
        return
    try:
        if again:
            raise OSError(errno.ETXTBSY, os.strerror(errno.ETXTBSY), _OWN)
        fd = _open_sealed(os.readlink(_OWN))
        os.execve(fd, sys.orig_argv, {**os.environ, _AGAIN: "1"})
    except OSError as error:
        raise step_error("protect the runtime's own program", error) from None


def _is_writable() -> bool:
    """Whether the file that this process was started from could be written to by us, were it not being executed."""
    # A copy in memory is sealed, which access(2) does not tell.
    return os.access(_OWN, os.W_OK) and not os.readlink(_OWN).startswith("/memfd:")


def _open_sealed(program: str) -> int:
    """The program, opened through a read-only mount of the file system that it is on; where we must not mount: a copy."""
    try:
        top = _top_of(program)
        tree = syscalls.open_tree(syscalls.AT_FDCWD, top, syscalls.OPEN_TREE_CLONE)
        try:
            syscalls.mount_setattr(tree, "", syscalls.AT_EMPTY_PATH, attr_set=syscalls.MOUNT_ATTR_RDONLY)
            return os.open(program[len(top) :].lstrip("/"), os.O_RDONLY | os.O_CLOEXEC, dir_fd=tree)
        finally:
            os.close(tree)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOSYS, errno.EINVAL):
            raise
    return _copy(program)


def _top_of(path: str) -> str:
    """The highest folder above `path` on the same device: seen from there, the program has its own name for its libraries."""
    top = os.path.dirname(path)
    device = os.stat(top).st_dev
    while top != "/" and os.stat(os.path.dirname(top)).st_dev == device:
        top = os.path.dirname(top)
    return top


def _copy(program: str) -> int:
    fd = os.memfd_create("minirt", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    source = os.open(program, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while os.sendfile(fd, source, None, 1 << 30):
            continue
    finally:
        os.close(source)
    from fcntl import fcntl

    fcntl(fd, 1033, 0x000F)  # F_ADD_SEALS: seal, shrink, grow, write
    return fd
