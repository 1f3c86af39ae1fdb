"""The steps that make a container's root filesystem: mounts, device nodes, hidden and read-only paths, and going there.

All of it happens before the root is changed, through `Stage.root` (see `rootfs`), while ``/proc`` and ``/dev`` are still the
machine's own and can be trusted.
"""

from __future__ import annotations

import errno
import os
import stat

from harness.linux import syscalls as sys
from harness.minirt.container import rootfs
from harness.minirt.container.files import read_file
from harness.minirt.container.idmap import Maps, map_ids
from harness.minirt.container.operations import Operation, Stage
from harness.minirt.container.options import Attributes, MountOptions
from harness.minirt.container.stacking import mount_overlay

_ATTACH = sys.MOVE_MOUNT_F_EMPTY_PATH | sys.MOVE_MOUNT_T_EMPTY_PATH
_MOUNT_ONLY = sys.MS_BIND | sys.MS_REC | sys.MS_REMOUNT


def set_attributes(fd: int, attributes: Attributes, recursive: bool = False) -> None:
    """mount_setattr on an open mount."""
    if attributes:
        flags = sys.AT_EMPTY_PATH | (sys.AT_RECURSIVE if recursive else 0)
        sys.mount_setattr(fd, "", flags, attr_set=attributes.set, attr_clr=attributes.clear)


def set_propagation(fd: int, words: tuple[int, ...]) -> None:
    """Apply propagation flags (MS_SHARED ..., with MS_REC or not) to an open, attached mount."""
    for flags in words:
        recursive = sys.AT_RECURSIVE if flags & sys.MS_REC else 0
        sys.mount_setattr(fd, "", sys.AT_EMPTY_PATH | recursive, propagation=flags & ~sys.MS_REC)


def clone_tree(fd: int, recursive: bool = False) -> int:
    """A detached copy of the mount (or of the file in it) behind an O_PATH descriptor."""
    flags = sys.OPEN_TREE_CLONE | sys.AT_EMPTY_PATH | (sys.AT_RECURSIVE if recursive else 0)
    return sys.open_tree(fd, "", flags)


def open_bind(stage: Stage, source: str, options: MountOptions, maps: Maps | None = None) -> int:
    """A detached mount of a file or folder of the machine, with its attributes and its mapping of ids."""
    recursive = bool(options.flags & sys.MS_REC)
    if options.subfolder:
        whole = os.open(source, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        folder = rootfs.find(whole, options.subfolder, os.O_PATH | os.O_DIRECTORY)
        tree = clone_tree(folder, recursive)
        os.close(folder)
        os.close(whole)
    else:
        tree = sys.open_tree(sys.AT_FDCWD, source, sys.OPEN_TREE_CLONE | (sys.AT_RECURSIVE if recursive else 0))
    if maps is not None:
        map_ids(tree, stage.mapping(maps), source, recursive=options.idmap == "ridmap")
    set_attributes(tree, options.attributes)
    set_attributes(tree, options.recursive, recursive=True)
    return tree


class SetPropagation(Operation):
    """Cut the new mount namespace off from the machine's, as far as ``rootfsPropagation`` wants it."""

    flags: int

    @property
    def title(self) -> str:
        return "set the propagation of /"

    def perform(self, stage: Stage) -> None:
        sys.mount(None, "/", None, self.flags)


class EnterRoot(Operation):
    """Make the root filesystem a mount of its own, and `Stage.root` its descriptor."""

    path: str
    shared: bool
    """whether mounts of this namespace still propagate to the machine"""

    @property
    def title(self) -> str:
        return f"bind the root filesystem {self.path}"

    def perform(self, stage: Stage) -> None:
        if self.shared:
            # pivot_root refuses a shared parent, and the machine shall not see our root a second time.
            sys.mount(None, _mount_point_of(self.path), None, sys.MS_PRIVATE)
        target = os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        tree = clone_tree(target, recursive=True)
        sys.move_mount(tree, "", target, "", _ATTACH)
        os.close(target)
        stage.root = tree


class EnterOverlay(Operation):
    """Stack the root filesystem at `path`, an empty folder, out of layers: a mount that nobody outside ever sees."""

    path: str
    options: str
    """of overlayfs, as mount(2) takes them"""
    shared: bool

    @property
    def title(self) -> str:
        return f"mount the root filesystem {self.path}"

    def perform(self, stage: Stage) -> None:
        if self.shared:
            sys.mount(None, _mount_point_of(self.path), None, sys.MS_PRIVATE)
        # A container's root is never used again after its end: nothing in it has to reach the disk when it is unmounted.
        mount_overlay("overlay", self.path, 0, f"{self.options},volatile")
        stage.root = os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def _mount_point_of(path: str) -> str:
    best = "/"
    path = os.path.realpath(path)
    for line in read_file("/proc/self/mountinfo").splitlines():
        target = line.split(" ", 5)[4].replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
        if len(target) >= len(best) and (path == target or path.startswith(target.rstrip("/") + "/")):
            best = target
    return best


class Bind(Operation):
    """Bind mount a file or folder of the machine."""

    source: str
    destination: str
    options: MountOptions
    prepared: str = ""
    """the key of the mount in `Stage.trees`, where it has been prepared"""

    @property
    def title(self) -> str:
        return f"bind mount {self.source} on {self.destination}"

    def perform(self, stage: Stage) -> None:
        tree = stage.trees[self.prepared] if self.prepared else open_bind(stage, self.source, self.options)
        target = rootfs.make_target(stage.root, self.destination, os.fstat(tree).st_mode)
        if self.options.copy_up:
            fill(rootfs.magic(tree), target)
        sys.move_mount(tree, "", target, "", _ATTACH)
        set_propagation(tree, self.options.propagation)
        os.close(target)
        os.close(tree)


class MountFilesystem(Operation):
    """Mount a new filesystem."""

    type: str
    source: str
    destination: str
    options: MountOptions

    @property
    def title(self) -> str:
        return f"mount {self.type} on {self.destination}"

    def perform(self, stage: Stage) -> None:
        options = self.options
        target = rootfs.make_folder(stage.root, self.destination)
        try:
            if self.type in ("proc", "sysfs"):
                # Behind a symbolic link they could end up where what has to be masked in them is not masked.
                plain = sys.openat2(stage.root, self.destination.lstrip("/"), os.O_PATH, sys.RESOLVE_NO_SYMLINKS)
                os.close(plain)
            flags = options.flags & ~_MOUNT_ONLY
            data = options.data
            if self.type == "tmpfs":
                # What follows may still have to make folders in it: `Remount` ends the list of mounts.
                flags &= ~sys.MS_RDONLY
                if "mode=" not in data:
                    data = f"{data},mode={os.fstat(target).st_mode & 0o7777:o}".lstrip(",")
            hidden = os.open(".", os.O_RDONLY | os.O_CLOEXEC, dir_fd=target) if options.copy_up else -1
            if self.type == "overlay":
                mount_overlay(self.source or self.type, rootfs.magic(target), flags, data)
            else:
                sys.mount(self.source or self.type, rootfs.magic(target), self.type, flags, data or None)
            if options.propagation or hidden >= 0:
                fresh = rootfs.find(stage.root, self.destination)
                if hidden >= 0:
                    copy_tree(hidden, os.open(rootfs.magic(fresh), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
                set_propagation(fresh, options.propagation)
                os.close(fresh)
            if options.subfolder:
                whole = rootfs.find(stage.root, self.destination)
                part = rootfs.find(whole, options.subfolder, os.O_PATH | os.O_DIRECTORY)
                tree = clone_tree(part)
                sys.move_mount(tree, "", whole, "", _ATTACH)
                for fd in (tree, part, whole):
                    os.close(fd)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise OSError(errno.ELOOP, "has to be mounted on an ordinary folder", self.destination) from None
            raise
        finally:
            os.close(target)


def fill(folder: str, like: int) -> None:
    """Give an empty folder what is in the folder behind a descriptor, and its owner and mode; one that has something stays."""
    with os.scandir(folder) as entries:
        if any(entries):
            return
    status = os.fstat(like)
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    copy_tree(os.open(".", flags, dir_fd=like), os.open(folder, flags))
    os.chown(folder, status.st_uid, status.st_gid)
    os.chmod(folder, status.st_mode & 0o7777)


def copy_tree(source: int, target: int) -> None:
    """Copy what is in a folder (files, folders, links) into another; closes both descriptors."""
    for name in os.listdir(source):
        status = os.stat(name, dir_fd=source, follow_symlinks=False)
        if stat.S_ISLNK(status.st_mode):
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
            os.chown(name, status.st_uid, status.st_gid, dir_fd=target, follow_symlinks=False)
            continue
        if stat.S_ISDIR(status.st_mode):
            os.mkdir(name, dir_fd=target)
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            copy_tree(os.open(name, flags, dir_fd=source), os.open(name, flags, dir_fd=target))
        elif stat.S_ISREG(status.st_mode):
            old = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source)
            new = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=target)
            while os.sendfile(new, old, None, 1 << 20):
                pass
            os.close(old)
            os.close(new)
        else:
            os.mknod(name, status.st_mode, status.st_rdev, dir_fd=target)
        os.chown(name, status.st_uid, status.st_gid, dir_fd=target, follow_symlinks=False)
        os.chmod(name, status.st_mode & 0o7777, dir_fd=target)
    os.close(source)
    os.close(target)


class MountCgroups(Operation):
    """Show the container its cgroups. `hierarchies`: v1, (name of the folder, words of mount data, folder); v2: empty."""

    destination: str
    options: MountOptions
    hierarchies: tuple[tuple[str, str, str], ...]
    links: tuple[tuple[str, str], ...]
    unified: str
    """folder of the container's v2 cgroup; empty on v1"""
    own_namespace: bool

    @property
    def title(self) -> str:
        return f"mount cgroups on {self.destination}"

    def perform(self, stage: Stage) -> None:
        flags = self.options.flags & ~_MOUNT_ONLY
        target = rootfs.make_folder(stage.root, self.destination)
        if self.unified:
            if self.own_namespace:
                sys.mount("cgroup", rootfs.magic(target), "cgroup2", flags, self.options.data or None)
            else:
                self._bind(self.unified, target)
            os.close(target)
            return
        sys.mount("tmpfs", rootfs.magic(target), "tmpfs", flags & ~sys.MS_RDONLY, "mode=755")
        os.close(target)
        top = rootfs.find(stage.root, self.destination, os.O_PATH | os.O_DIRECTORY)
        for name, data, folder in self.hierarchies:
            os.mkdir(name, 0o755, dir_fd=top)
            place = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
            if self.own_namespace:
                sys.mount("cgroup", rootfs.magic(place), "cgroup", flags, data)
            else:
                self._bind(folder, place)
            os.close(place)
        for name, to in self.links:
            os.symlink(to, name, dir_fd=top)
        if flags & sys.MS_RDONLY:
            set_attributes(top, Attributes(sys.MOUNT_ATTR_RDONLY))
        os.close(top)

    def _bind(self, folder: str, target: int) -> None:
        tree = sys.open_tree(sys.AT_FDCWD, folder, sys.OPEN_TREE_CLONE)
        set_attributes(tree, self.options.attributes)
        sys.move_mount(tree, "", target, "", _ATTACH)
        os.close(tree)


class Remount(Operation):
    """Change attributes of what is mounted at a path."""

    path: str
    attributes: Attributes

    @property
    def title(self) -> str:
        return f"remount {self.path}"

    def perform(self, stage: Stage) -> None:
        fd = rootfs.find(stage.root, self.path)
        set_attributes(fd, self.attributes)
        os.close(fd)


class MakeDevice(Operation):
    """Make a device node, or bind the machine's one where nodes cannot be made (in a user namespace)."""

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
        if self.bind:
            target = rootfs.make_file(stage.root, self.path)
            tree = sys.open_tree(sys.AT_FDCWD, self.path, sys.OPEN_TREE_CLONE)
            sys.move_mount(tree, "", target, "", _ATTACH)
            os.close(tree)
            os.close(target)
            return
        parent, name = rootfs.make_parent(stage.root, self.path)
        try:
            os.mknod(name, self.mode, os.makedev(self.major, self.minor), dir_fd=parent)
            os.chown(name, self.uid, self.gid, dir_fd=parent, follow_symlinks=False)
        except FileExistsError:
            found = os.stat(name, dir_fd=parent, follow_symlinks=False)
            same = stat.S_IFMT(found.st_mode) == stat.S_IFMT(self.mode)
            if not same or found.st_rdev != os.makedev(self.major, self.minor):
                raise
        finally:
            os.close(parent)


class MakeLinks(Operation):
    """Make symbolic links; one that is there already stays."""

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
                continue
        for fd in parents.values():
            os.close(fd)


class MakeFolder(Operation):
    """Make a folder, with its parents, where it is missing."""

    path: str

    @property
    def title(self) -> str:
        return f"make the folder {self.path}"

    def perform(self, stage: Stage) -> None:
        os.close(rootfs.make_folder(stage.root, self.path))


class MaskPaths(Operation):
    """Hide paths: a folder below an empty read-only tmpfs, a file below /dev/null. What is not there needs no hiding."""

    paths: tuple[str, ...]

    @property
    def title(self) -> str:
        return "mask paths"

    def perform(self, stage: Stage) -> None:
        null = -1
        for path in self.paths:
            try:
                fd = rootfs.find(stage.root, path)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ENOTDIR):
                    continue
                raise
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                sys.mount("tmpfs", rootfs.magic(fd), "tmpfs", sys.MS_RDONLY, "nr_blocks=1,nr_inodes=1")
            else:
                if null < 0:
                    null = os.open("/dev/null", os.O_PATH | os.O_CLOEXEC)
                    if os.fstat(null).st_rdev != os.makedev(1, 3):
                        raise OSError(errno.ENODEV, "is not the null device", "/dev/null")
                tree = clone_tree(null)
                sys.move_mount(tree, "", fd, "", _ATTACH)
                os.close(tree)
            os.close(fd)


class ReadonlyPaths(Operation):
    """Make paths read-only; what is not there is left alone."""

    paths: tuple[str, ...]

    @property
    def title(self) -> str:
        return "make paths read-only"

    def perform(self, stage: Stage) -> None:
        for path in self.paths:
            try:
                fd = rootfs.find(stage.root, path)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ENOTDIR):
                    continue
                raise
            tree = clone_tree(fd, recursive=True)
            set_attributes(tree, Attributes(sys.MOUNT_ATTR_RDONLY))
            sys.move_mount(tree, "", fd, "", _ATTACH)
            os.close(tree)
            os.close(fd)


class ReadonlyRoot(Operation):
    """Make the root mount itself read-only."""

    @property
    def title(self) -> str:
        return "make the root read-only"

    def perform(self, stage: Stage) -> None:
        set_attributes(stage.root, Attributes(sys.MOUNT_ATTR_RDONLY))


class ChangeRoot(Operation):
    """Make `Stage.root` the root: by pivot_root, or by moving the mount and chroot (a root on the initial ramfs)."""

    pivot: bool = True
    propagation: int = 0

    @property
    def title(self) -> str:
        return "change the root"

    def perform(self, stage: Stage) -> None:
        if self.pivot:
            old = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            os.fchdir(stage.root)
            sys.pivot_root(".", ".")
            # The old root lies on top of the new one; unmounting it shall not reach the machine.
            os.fchdir(old)
            sys.mount(None, ".", None, sys.MS_SLAVE | sys.MS_REC)
            sys.umount2(".", sys.MNT_DETACH)
            os.close(old)
        else:
            os.fchdir(stage.root)
            sys.mount(".", "/", None, sys.MS_MOVE)
            os.chroot(".")
        os.chdir("/")
        if self.propagation:
            sys.mount(None, "/", None, self.propagation)


class Chroot(Operation):
    """The root of a container that shares the machine's mount namespace."""

    path: str

    @property
    def title(self) -> str:
        return f"chroot to {self.path}"

    def perform(self, stage: Stage) -> None:
        os.chroot(self.path)
        os.chdir("/")
