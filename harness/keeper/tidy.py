"""A cgroup file system without the v2 tree, for runtimes that refuse a hybrid layout.

To unmount that tree is not enough: crun takes the empty folder it leaves for a hierarchy, and would write files into the
machine's own ``/sys/fs/cgroup``, which is one and the same tmpfs in every mount namespace.
"""

from __future__ import annotations

import contextlib
import os

from harness.linux import mounts, syscalls


def hide_tree(unified: str) -> None:
    """Put a tmpfs of this mount namespace's own in place of the one that `unified` is mounted in.

    All other hierarchies are mounted in it as they were, symbolic links (``cpu`` for ``cpu,cpuacct``) copied. Must be
    called in a private mount namespace. Raises `OSError`.
    """
    top = os.path.dirname(unified)
    kept = {
        mount.target: syscalls.open_tree(-1, mount.target, syscalls.OPEN_TREE_CLONE | syscalls.OPEN_TREE_CLOEXEC)
        for mount in mounts.mounts_below(mounts.read_mounts(), top)
        if mount.target not in (top, unified)
    }
    with contextlib.ExitStack() as stack:
        for tree in kept.values():
            stack.callback(os.close, tree)
        links = {entry.name: os.readlink(entry.path) for entry in os.scandir(top) if entry.is_symlink()}
        syscalls.umount2(top, syscalls.MNT_DETACH)
        syscalls.mount("cgroup", top, "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC, "mode=755")
        for target, tree in kept.items():
            os.mkdir(target)
            syscalls.move_mount(tree, "", -1, target, syscalls.MOVE_MOUNT_F_EMPTY_PATH)
        for name, target in links.items():
            os.symlink(target, os.path.join(top, name))
        flags = syscalls.MS_REMOUNT | syscalls.MS_BIND | syscalls.MS_RDONLY
        syscalls.mount(None, top, None, flags | syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC)
