"""Namespaces: their kinds, opening, entering, making new ones, and keeping one alive under a path."""

from __future__ import annotations

from harness.linux import lean as os
from harness.linux import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

FLAGS: dict[str, int] = {
    "user": syscalls.CLONE_NEWUSER,
    "mnt": syscalls.CLONE_NEWNS,
    "pid": syscalls.CLONE_NEWPID,
    "net": syscalls.CLONE_NEWNET,
    "ipc": syscalls.CLONE_NEWIPC,
    "uts": syscalls.CLONE_NEWUTS,
    "cgroup": syscalls.CLONE_NEWCGROUP,
    "time": syscalls.CLONE_NEWTIME,
}
"""Kinds as ``/proc/<pid>/ns/`` names them → the CLONE_* flag."""


def flags_of(kinds: Iterable[str]) -> int:
    """The CLONE_* flags of several kinds; raises `KeyError` for an unknown one."""
    flags = 0
    for kind in kinds:
        flags |= FLAGS[kind]
    return flags


def namespace_path(pid: int | str, kind: str) -> str:
    """Where the kernel shows a process's namespace; ``pid`` may be "self"."""
    return f"/proc/{pid}/ns/{kind}"


def identity(pid: int | str, kind: str) -> tuple[int, int]:
    """``(device, inode)`` of a process's namespace: equal for two processes in the same one."""
    status = os.stat(namespace_path(pid, kind))
    return status.st_dev, status.st_ino


def enter(fds: Iterable[int]) -> None:
    """Enter namespaces by descriptor, in the order given (a pid namespace concerns children only)."""
    for fd in fds:
        syscalls.setns(fd)


def unshare(kinds: Iterable[str]) -> None:
    """Leave the caller's namespaces of these kinds for new ones."""
    syscalls.unshare(flags_of(kinds))


def bind_namespace(path: str, kind: str, pid: int | str = "self") -> None:
    """Keep a process's namespace alive by a bind mount on `path`, which is made as an empty file.

    `umount2(path)` and `os.unlink(path)` end that. On failure nothing is left behind.
    """
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDONLY | os.O_CLOEXEC, 0o444))
    try:
        syscalls.mount(namespace_path(pid, kind), path, None, syscalls.MS_BIND)
    except OSError:
        os.unlink(path)
        raise


def unbind_namespace(path: str) -> None:
    """Undo `bind_namespace`; nothing happens where the path is gone."""
    try:
        syscalls.umount2(path, syscalls.MNT_DETACH)
    except OSError as error:
        if error.errno not in (2, 22):  # ENOENT; EINVAL: not mounted (any more)
            raise
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
