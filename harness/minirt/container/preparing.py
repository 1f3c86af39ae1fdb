"""What is prepared for a container in a user namespace before it is born: the mounts that only the machine's root can make.

The steps are performed by the process in between (see `detour`), in a mount namespace that ends with it. What they make are
detached mounts in `Stage.trees`, which the container's own steps then attach.
"""

from __future__ import annotations

import os

from harness.linux import syscalls as sys
from harness.minirt.container import rootfs
from harness.minirt.container.idmap import Maps, map_ids
from harness.minirt.container.mounting import clone_tree, open_bind, set_attributes
from harness.minirt.container.operations import Operation, Stage
from harness.minirt.container.options import Attributes, MountOptions

_ATTACH = sys.MOVE_MOUNT_F_EMPTY_PATH | sys.MOVE_MOUNT_T_EMPTY_PATH
ROOT = "/"
"""the key of the root filesystem in `Stage.trees`"""


class LeaveMounts(Operation):
    """Go to a mount namespace of one's own, to which the machine's mounts still come."""

    @property
    def title(self) -> str:
        return "leave the machine's mounts"

    def perform(self, stage: Stage) -> None:
        sys.unshare(sys.CLONE_NEWNS)
        sys.mount(None, "/", None, sys.MS_SLAVE | sys.MS_REC)


class PrepareRoot(Operation):
    """Prepare a root filesystem that is there, at `path`; its owner is whoever made it."""

    path: str

    @property
    def title(self) -> str:
        return f"bind the root filesystem {self.path}"

    def perform(self, stage: Stage) -> None:
        fd = os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        stage.trees[ROOT] = clone_tree(fd, recursive=True)
        os.close(fd)
        os.chdir(self.path)


class PrepareOverlay(Operation):
    """Stack a filesystem out of layers whose files are shown with mapped owners; those of `upperdir` are mapped already.

    An overlay cannot be mapped as a whole, its lower layers can (Linux 5.19). They are attached below `path`, an empty folder.
    """

    key: str
    path: str
    options: str
    """of overlayfs, as mount(2) takes them, ``lowerdir`` first"""
    maps: Maps | None
    attributes: Attributes = Attributes()
    subfolder: str = ""

    @property
    def title(self) -> str:
        return "mount the root filesystem" if self.key == ROOT else "mount an image"

    def perform(self, stage: Stage) -> None:
        mapping = -1 if self.maps is None else stage.mapping(self.maps)
        layers, _, others = self.options.removeprefix("lowerdir=").partition(",")
        sys.mount("layers", self.path, "tmpfs", sys.MS_NOSUID | sys.MS_NODEV, "mode=700")
        # Relative names are short: the data of mount(2) is one page.
        os.chdir(self.path)
        names = []
        for index, layer in enumerate(layers.split(":")):
            os.mkdir(str(index))
            place = os.open(str(index), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            tree = sys.open_tree(sys.AT_FDCWD, layer, sys.OPEN_TREE_CLONE)
            if mapping >= 0:
                map_ids(tree, mapping, layer)
            sys.move_mount(tree, "", place, "", _ATTACH)
            os.close(tree)
            os.close(place)
            names.append(str(index))
        os.mkdir("root")
        words = [f"lowerdir={':'.join(names)}", *([others, "volatile"] if others else [])]
        sys.mount("overlay", "root", "overlay", 0, ",".join(words))
        top = os.open("root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        shown = rootfs.find(top, self.subfolder, os.O_PATH | os.O_DIRECTORY)
        tree = stage.trees[self.key] = clone_tree(shown)
        set_attributes(tree, self.attributes)
        os.close(shown)
        os.close(top)
        os.chdir("/")
        sys.umount2(self.path, sys.MNT_DETACH)
        os.chdir(self.path)


class PrepareBind(Operation):
    """Prepare a bind mount of a file or folder, also of one that the container's root could not reach."""

    key: str
    source: str
    destination: str
    options: MountOptions
    maps: Maps | None
    locked: bool

    @property
    def title(self) -> str:
        return f"bind mount {self.source} on {self.destination}"

    def perform(self, stage: Stage) -> None:
        stage.trees[self.key] = open_bind(stage, self.source, self.options, self.maps, self.locked)


class EnterTree(Operation):
    """Attach the prepared root filesystem to the folder that we are in, wherever that is."""

    @property
    def title(self) -> str:
        return "attach the root filesystem"

    def perform(self, stage: Stage) -> None:
        # By its path it may be out of reach: its parents are the machine's.
        target = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        tree = stage.trees[ROOT]
        sys.move_mount(tree, "", target, "", _ATTACH)
        os.close(target)
        stage.root = tree
