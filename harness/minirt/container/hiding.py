"""The steps that hide paths of a container or make them read-only (config-linux.md, "Masked Paths" and "Readonly Paths").

All by descriptor: a path that leads elsewhere between the look and the mount would hide something else. What is below /proc
and /sys is looked for in the very mounts that have been made there, wherever their folders are by now.
"""

from __future__ import annotations

import errno
import stat

from harness.linux import lean as os
from harness.linux import syscalls as sys
from harness.minirt.container import rootfs
from harness.minirt.container.filesystem import make_filesystem
from harness.minirt.container.mounting import ANCHORS, clone_tree, set_attributes
from harness.minirt.container.operations import Operation, Stage
from harness.minirt.container.options import Attributes

_ATTACH = sys.MOVE_MOUNT_F_EMPTY_PATH | sys.MOVE_MOUNT_T_EMPTY_PATH


def find_shown(stage: Stage, path: str) -> int:
    """What a path of the container leads to, opened with O_PATH; below /proc and /sys in what has been mounted there."""
    plain = rootfs.plain(path)
    top, _, rest = plain[1:].partition("/")
    mount = stage.mounts.get(f"/{top}") if ".." not in plain.split("/") else None
    if mount is None or f"/{top}" not in ANCHORS:
        return rootfs.find(stage.root, path)
    return sys.openat2(mount, rest or ".", os.O_PATH, sys.RESOLVE_BENEATH | sys.RESOLVE_NO_MAGICLINKS)


class MaskPaths(Operation):
    """Hide paths: a folder below an empty read-only tmpfs, a file below /dev/null. What is not there needs no hiding."""

    paths: tuple[str, ...]
    label: str = ""

    @property
    def title(self) -> str:
        return "mask paths"

    def perform(self, stage: Stage) -> None:
        null = empty = -1
        for path in self.paths:
            try:
                fd = find_shown(stage, path)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ENOTDIR):
                    continue
                raise
            if not stat.S_ISDIR(os.fstat(fd).st_mode):
                if null < 0:
                    null = _open_null()
                tree = clone_tree(null)
            elif empty < 0:
                data = "nr_blocks=1,nr_inodes=1" + (f',context="{self.label}"' if self.label else "")
                tree = empty = make_filesystem("tmpfs", "tmpfs", sys.MS_RDONLY, sys.MOUNT_ATTR_RDONLY, data)
            else:
                tree = clone_tree(empty)
            sys.move_mount(tree, "", fd, "", _ATTACH)
            if tree != empty:
                os.close(tree)
            os.close(fd)
        for fd in (null, empty):
            if fd >= 0:
                os.close(fd)


def _open_null() -> int:
    """The machine's null device, and nothing that stands in its place."""
    fd = os.open("/dev/null", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    found = os.fstat(fd)
    if not stat.S_ISCHR(found.st_mode) or found.st_rdev != os.makedev(1, 3):
        os.close(fd)
        raise OSError(errno.ENODEV, "is not the null device", "/dev/null")
    return fd


class ReadonlyPaths(Operation):
    """Make paths read-only; what is not there is left alone."""

    paths: tuple[str, ...]

    @property
    def title(self) -> str:
        return "make paths read-only"

    def perform(self, stage: Stage) -> None:
        for path in self.paths:
            try:
                fd = find_shown(stage, path)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ENOTDIR):
                    continue
                raise
            tree = clone_tree(fd, recursive=True)
            set_attributes(tree, Attributes(sys.MOUNT_ATTR_RDONLY))
            sys.move_mount(tree, "", fd, "", _ATTACH)
            os.close(tree)
            os.close(fd)
