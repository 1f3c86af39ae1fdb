"""Id-mapped mounts: files that belong to one user on their disk, and to another one in a container (mount_setattr(2))."""

from __future__ import annotations

import errno

from harness.linux import lean as os
from harness.linux import syscalls
from harness.minirt.container.files import write_file
from harness.minirt.container.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from harness.minirt.container.spec import IdMap

_SIGKILL = 9


class Maps(Record):
    """How the ids of users and of groups are mapped."""

    uids: tuple[IdMap, ...]
    gids: tuple[IdMap, ...]


OF_THE_CONTAINER = Maps((), ())
"""As the user namespace maps them that the container joins."""


def write_maps(pid: int, uid_maps: Iterable[IdMap], gid_maps: Iterable[IdMap]) -> None:
    """Map the ids of a process's new user namespace. Raises `OSError` with the file that was refused, and `Unsupported`."""
    if os.geteuid() != 0:
        from harness.minirt.container.subids import write_maps_as_user

        write_maps_as_user(pid, tuple(uid_maps), tuple(gid_maps))
        return
    for name, maps in (("uid_map", uid_maps), ("gid_map", gid_maps)):
        lines = [f"{item.inside} {item.outside} {item.size}\n" for item in maps]
        write_file(f"/proc/{pid}/{name}", "".join(lines))


def open_mapping(uid_maps: Iterable[IdMap], gid_maps: Iterable[IdMap]) -> int:
    """A descriptor of a user namespace with these maps, which is what the kernel takes for a mapping. The caller closes it."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    pid, pidfd = syscalls.clone3(syscalls.CLONE_NEWUSER)
    if pid == 0:
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)
    os.close(reading)
    try:
        write_maps(pid, uid_maps, gid_maps)
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(writing)
        syscalls.pidfd_send_signal(pidfd, _SIGKILL)  # in a copy of a process with threads it may never get to its exit
        os.waitpid(pid, 0)
        os.close(pidfd)


def map_ids(tree: int, mapping: int, path: str, recursive: bool = False) -> None:
    """Have a detached mount (of `path`) show its files' owners as `mapping` says."""
    flags = syscalls.AT_EMPTY_PATH | (syscalls.AT_RECURSIVE if recursive else 0)
    try:
        syscalls.mount_setattr(tree, "", flags, attr_set=syscalls.MOUNT_ATTR_IDMAP, userns_fd=mapping)
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise OSError(errno.EINVAL, "its filesystem does not support id-mapped mounts", path) from None
        raise OSError(error.errno, os.strerror(error.errno or 0), path) from None


def can_map(path: str) -> bool:
    """Whether the filesystem that `path` is on can be mounted with mapped ids."""
    from harness.minirt.container.spec import IdMap

    try:
        mapping = open_mapping([IdMap(0, 65536, 65536)], [IdMap(0, 65536, 65536)])
        try:
            tree = syscalls.open_tree(syscalls.AT_FDCWD, path, syscalls.OPEN_TREE_CLONE)
            try:
                map_ids(tree, mapping, path)
            finally:
                os.close(tree)
        finally:
            os.close(mapping)
    except OSError:
        return False
    return True
