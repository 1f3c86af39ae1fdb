"""The device nodes of a container, and the links in its /dev (config-linux.md "Devices", runtime-linux.md)."""

from __future__ import annotations

import errno
import stat

from harness.linux import lean as os
from harness.linux import syscalls as sys
from harness.minirt.container import rootfs
from harness.minirt.container.operations import Operation, Stage

_ATTACH = sys.MOVE_MOUNT_F_EMPTY_PATH | sys.MOVE_MOUNT_T_EMPTY_PATH


class MakeDevice(Operation):
    """Make a device node, or bind the machine's one where nodes cannot be made (in a user namespace).

    One that is there already is used, if it is that device; anything else there is an error ("Devices").
    """

    path: str
    mode: int
    major: int
    minor: int
    uid: int
    gid: int
    bind: bool

    @property
    def title(self) -> str:
        return f"make the device {self.path}"

    def perform(self, stage: Stage) -> None:
        if self.bind and not stat.S_ISFIFO(self.mode):
            self._bind(stage)
            return
        parent, name = rootfs.make_parent(stage.root, self.path)
        try:
            os.mknod(name, self.mode, os.makedev(self.major, self.minor), dir_fd=parent)
            node = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            if not self._is_it(os.fstat(node)):
                raise OSError(errno.ENODEV, "is not the device that has just been made", self.path)
            os.chown(rootfs.magic(node), self.uid, self.gid)
            os.close(node)
        except FileExistsError:
            if not self._is_it(os.stat(name, dir_fd=parent, follow_symlinks=False)):
                raise OSError(errno.EEXIST, "another file is there already", self.path) from None
        except PermissionError:
            self._bind(stage)  # we are in a user namespace ourselves, or have no right to make nodes
        finally:
            os.close(parent)

    def _is_it(self, found: os.stat_result) -> bool:
        same = stat.S_IFMT(found.st_mode) == stat.S_IFMT(self.mode)
        return same and found.st_rdev == os.makedev(self.major, self.minor)

    def _bind(self, stage: Stage) -> None:
        tree = sys.open_tree(sys.AT_FDCWD, self.path, sys.OPEN_TREE_CLONE)
        if not self._is_it(os.fstat(tree)):
            raise OSError(errno.ENODEV, "the machine has another device there", self.path)
        target = rootfs.make_file(stage.root, self.path)
        sys.move_mount(tree, "", target, "", _ATTACH)
        os.close(tree)
        os.close(target)


class MakeLinks(Operation):
    """Make symbolic links; one that is there already stays, but for ptmx, which has to be the container's own."""

    links: tuple[tuple[str, str], ...]
    """path, what it says"""

    @property
    def title(self) -> str:
        return "make the links in /dev"

    def perform(self, stage: Stage) -> None:
        parents: dict[str, int] = {}
        for path, to in self.links:
            folder, _, name = path.rpartition("/")
            if folder not in parents:
                parents[folder] = rootfs.make_folder(stage.root, folder)
            try:
                os.symlink(to, name, dir_fd=parents[folder])
            except FileExistsError:
                if path == "/dev/ptmx":
                    os.unlink(name, dir_fd=parents[folder])
                    os.symlink(to, name, dir_fd=parents[folder])
        for fd in parents.values():
            os.close(fd)
