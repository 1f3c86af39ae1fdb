"""The root of a container that has no mount namespace of its own, and so inherits the runtime's (config-linux.md, "Namespaces").

What is mounted for it, everybody sees, and no end of a namespace takes it away. So all of it is below one mount, the root
filesystem bound to its own place, which propagates nothing and with which it goes. What shall be unmounted is known by its
number: another mount at that place is somebody else's.
"""

from __future__ import annotations

import os

from harness.linux import syscalls as sys
from harness.minirt.container.boundary import seal_imports
from harness.minirt.container.files import read_file
from harness.minirt.container.mounting import clone_tree
from harness.minirt.container.operations import Operation, Stage

_ATTACH = sys.MOVE_MOUNT_F_EMPTY_PATH | sys.MOVE_MOUNT_T_EMPTY_PATH


class OpenRoot(Operation):
    """Make `Stage.root` the root filesystem as it is: in a user namespace nothing can be mounted among the machine's mounts."""

    path: str

    @property
    def title(self) -> str:
        return f"open the root filesystem {self.path}"

    def perform(self, stage: Stage) -> None:
        stage.root = os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


class MountRoot(Operation):
    """Bind the root filesystem to its own place, make it `Stage.root`, and have the parent remember it."""

    path: str

    @property
    def title(self) -> str:
        return f"bind the root filesystem {self.path}"

    def perform(self, stage: Stage) -> None:
        target = os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        tree = clone_tree(target, recursive=True)
        # Before, as a copy is a peer of what it was made of; after, as it becomes what the mount is that it is attached to.
        flags = sys.AT_EMPTY_PATH | sys.AT_RECURSIVE
        sys.mount_setattr(tree, "", flags, propagation=sys.MS_PRIVATE)
        sys.move_mount(tree, "", target, "", _ATTACH)
        stage.channel.ask("mounted")
        sys.mount_setattr(tree, "", flags, propagation=sys.MS_PRIVATE)
        os.close(target)
        stage.root = tree


class Chroot(Operation):
    """Make `Stage.root` the root, and leave the mounts as they are."""

    @property
    def title(self) -> str:
        return "change the root"

    def perform(self, stage: Stage) -> None:
        seal_imports()
        for fd in stage.mounts.values():
            os.close(fd)
        os.fchdir(stage.root)
        os.chroot(".")
        os.chdir("/")


def number_at(path: str) -> int:
    """The number of the mount that is topmost at a place; 0: none is there."""
    place = os.path.realpath(path)
    fd = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        facts = read_file(f"/proc/self/fdinfo/{fd}")
    finally:
        os.close(fd)
    number = next((int(line.split()[1]) for line in facts.splitlines() if line.startswith("mnt_id:")), 0)
    quoted = place.replace("\\", "\\134").replace(" ", "\\040").replace("\t", "\\011").replace("\n", "\\012")
    for line in read_file("/proc/self/mountinfo").splitlines():
        words = line.split(" ", 5)
        if words[0] == str(number):
            return number if words[4] == quoted else 0
    return 0


def unmount(path: str, number: int) -> None:
    """Take a root away with all that is mounted below it; nothing happens where another mount is there. Raises `OSError`."""
    try:
        if number and number_at(path) == number:
            sys.umount2(path, sys.MNT_DETACH)
    except FileNotFoundError:
        return
