"""The machine's procfs by descriptor, for what a child writes about itself once ``/proc`` may be somebody else's.

A container can lay anything over its ``/proc``: a folder of its own, or a file of procfs over another one, so that a label or
a sysctl ends in ``sysrq-trigger``. So it is opened before any namespace is entered, it has to be a procfs, and nothing
below it is reached across a mount.
"""

from __future__ import annotations

from harness.linux import lean as os
from harness.linux import syscalls

_ROOT_INODE = 1
_RESOLVE = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_MAGICLINKS | syscalls.RESOLVE_NO_XDEV


def open_procfs(path: str = "/proc") -> int:
    """A descriptor of the root of a procfs, which the caller closes. Raises `OSError` for anything else."""
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    if syscalls.filesystem_type(fd) != syscalls.PROC_SUPER_MAGIC or os.fstat(fd).st_ino != _ROOT_INODE:
        os.close(fd)
        raise OSError(19, "is not a proc filesystem", path)
    return fd


def in_user_namespace() -> bool:
    """Whether our user namespace is another one than the machine's."""
    with open("/proc/self/uid_map", "rb", buffering=0) as file:
        return file.read().split() != [b"0", b"0", b"4294967295"]


def write_file(proc: int, path: str, text: str) -> None:
    """Write to a file of the procfs in one call; the error names it."""
    fd = syscalls.openat2(proc, path, os.O_WRONLY, _RESOLVE)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno or 0), f"/proc/{path}") from None
    finally:
        os.close(fd)


def read_file(proc: int, path: str) -> str:
    """A file's text, however long (procfs gives a page at a time)."""
    fd = syscalls.openat2(proc, path, os.O_RDONLY, _RESOLVE)
    with open(fd, "rb", buffering=0) as file:
        return file.read().decode(errors="surrogateescape")


def exists(proc: int, path: str) -> bool:
    """Whether the procfs has the file."""
    try:
        os.close(syscalls.openat2(proc, path, os.O_PATH, _RESOLVE))
    except OSError:
        return False
    return True
