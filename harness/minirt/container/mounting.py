"""The steps that make a container's root filesystem: mounts, device nodes, hidden and read-only paths, and going there.

All of it happens before the root is changed, through `Stage.root` (see `rootfs`), while ``/proc`` and ``/dev`` are still the
machine's own and can be trusted.
"""

from __future__ import annotations

import errno

from harness.linux import lean as os
from harness.linux import syscalls as sys
from harness.minirt.container import procfs, rootfs
from harness.minirt.container.binding import set_flags
from harness.minirt.container.boundary import seal_imports
from harness.minirt.container.filesystem import DETACHABLE, make_filesystem
from harness.minirt.container.idmap import Maps, map_ids
from harness.minirt.container.operations import Operation, Stage
from harness.minirt.container.options import Attributes, MountOptions
from harness.minirt.container.stacking import mount_overlay

_ATTACH = sys.MOVE_MOUNT_F_EMPTY_PATH | sys.MOVE_MOUNT_T_EMPTY_PATH
_UNLABELLED = ("proc", "sysfs", "mqueue")
_STAND_INS = {"sysfs": "/sys", "mqueue": "/dev/mqueue", "proc": "/proc"}
ANCHORS = ("/proc", "/sys")
"""where paths are hidden and made read-only: whoever can move these folders shall not get away with it"""
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


def open_bind(stage: Stage, source: str, options: MountOptions, maps: Maps | None = None, locked: bool = False) -> int:
    """A detached mount of a file or folder of the machine, with its attributes (see `set_flags`) and its mapping of ids."""
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
    set_flags(tree, options, source, locked)
    set_attributes(tree, options.recursive, recursive=True)
    return tree


def attach(stage: Stage, tree: int, target: int, destination: str, options: MountOptions, keep: bool = False) -> None:
    """Put a detached mount where it belongs, and close its descriptor, unless a later step needs it (`Stage.mounts`)."""
    sys.move_mount(tree, "", target, "", _ATTACH)
    set_propagation(tree, options.propagation)
    place = rootfs.plain(destination)
    if not keep and place not in ANCHORS:
        os.close(tree)
        return
    if place in stage.mounts:
        os.close(stage.mounts[place])
    stage.mounts[place] = tree


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
            sys.mount(None, _mount_point_of(stage, self.path), None, sys.MS_PRIVATE)
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
            sys.mount(None, _mount_point_of(stage, self.path), None, sys.MS_PRIVATE)
        # A container's root is never used again after its end: nothing in it has to reach the disk when it is unmounted.
        mount_overlay("overlay", self.path, 0, f"{self.options},volatile")
        stage.root = os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def _mount_point_of(stage: Stage, path: str) -> str:
    best = "/"
    path = os.path.realpath(path)
    for line in procfs.read_file(stage.proc, "self/mountinfo").splitlines():
        target = _unquote(line.split(" ", 5)[4])
        if len(target) >= len(best) and (path == target or path.startswith(target.rstrip("/") + "/")):
            best = target
    return best


def _unquote(path: str) -> str:
    return path.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")


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
        if stage.check_place(target, "bind", bind=True) == "/proc":
            _check_procfs(tree, self.destination)
        if self.options.copy_up:
            from harness.minirt.container.copying import fill

            fill(rootfs.magic(tree), target)
        attach(stage, tree, target, self.destination, self.options)
        os.close(target)


def _check_procfs(tree: int, path: str) -> None:
    if sys.filesystem_type(tree) != sys.PROC_SUPER_MAGIC:
        raise OSError(errno.EINVAL, "cannot be mounted because it is not of type proc", path)


class MountFilesystem(Operation):
    """Mount a new filesystem."""

    type: str
    source: str
    destination: str
    options: MountOptions
    label: str = ""
    """the SELinux context of its files"""

    @property
    def title(self) -> str:
        return f"mount {self.type} on {self.destination}"

    def perform(self, stage: Stage) -> None:
        covers = True
        try:
            target = rootfs.find(stage.root, self.destination, os.O_PATH | os.O_DIRECTORY)
        except FileNotFoundError:
            target, covers = rootfs.make_folder(stage.root, self.destination), False
        except NotADirectoryError:
            if self.type in ("proc", "sysfs"):
                raise self._no_folder() from None
            raise
        try:
            if self.type in ("proc", "sysfs"):
                # Behind a symbolic link they could end up where what has to be masked in them is not masked.
                plain = self.destination.lstrip("/") or "."
                found = sys.openat2(stage.root, plain, os.O_PATH | os.O_DIRECTORY, sys.RESOLVE_NO_SYMLINKS)
                os.close(target)
                target = found
            stage.check_place(target, self.type, bind=False)
            data = self.options.data
            # A folder that was made for the mount has no mode worth keeping.
            if self.type == "tmpfs" and covers and "mode=" not in data:
                data = f"{data},mode={os.fstat(target).st_mode & 0o7777:o}".lstrip(",")
            if self.label and self.type not in _UNLABELLED:
                data = f'{data},context="{self.label}"'.lstrip(",")
            if self.type in DETACHABLE and not self.options.subfolder:
                try:
                    tree = self._make(target, data)
                except PermissionError:
                    tree = self._stand_in()
                late = self.options.read_only and fills_later(self.type, self.destination)
                attach(stage, tree, target, self.destination, self.options, keep=late)
            else:
                self._mount(stage, target, data)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise self._no_folder() from None
            raise
        finally:
            os.close(target)

    def _no_folder(self) -> OSError:
        what = f'filesystem "{self.type}" must be mounted on ordinary directory'
        return OSError(errno.ELOOP, what, self.destination)

    def _make(self, target: int, data: str) -> int:
        options = self.options
        flags, attributes = options.flags, options.attributes.set
        if fills_later(self.type, self.destination):
            flags, attributes = flags & ~sys.MS_RDONLY, attributes & ~sys.MOUNT_ATTR_RDONLY
        tree = make_filesystem(self.type, self.source, flags, attributes, data)
        if options.copy_up:
            from harness.minirt.container.copying import copy_tree

            folder = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            copy_tree(os.open(".", folder, dir_fd=target), os.open(".", folder, dir_fd=tree))
        if self.label and self.type == "mqueue":  # knows no such option
            os.setxattr(rootfs.magic(tree), "security.selinux", self.label.encode())
        set_attributes(tree, options.recursive, recursive=True)
        return tree

    def _stand_in(self) -> int:
        """What the machine has of it: a user namespace may only mount what shows its own network, queues or processes."""
        place = _STAND_INS.get(self.type)
        if place is None or not procfs.in_user_namespace():
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM).lower())
        tree = sys.open_tree(sys.AT_FDCWD, place, sys.OPEN_TREE_CLONE | sys.AT_RECURSIVE)
        set_attributes(tree, Attributes(self.options.attributes.set), recursive=True)
        return tree

    def _mount(self, stage: Stage, target: int, data: str) -> None:
        options = self.options
        flags = options.flags & ~_MOUNT_ONLY
        if fills_later(self.type, self.destination):
            flags &= ~sys.MS_RDONLY
        if self.type == "overlay":
            mount_overlay(self.source or self.type, rootfs.magic(target), flags, data)
        else:
            sys.mount(self.source or self.type, rootfs.magic(target), self.type, flags, data or None)
        if options.propagation or options.recursive:
            fresh = rootfs.find(stage.root, self.destination)
            set_attributes(fresh, options.recursive, recursive=True)
            set_propagation(fresh, options.propagation)
            os.close(fresh)
        if options.subfolder:
            whole = rootfs.find(stage.root, self.destination)
            part = rootfs.find(whole, options.subfolder, os.O_PATH | os.O_DIRECTORY)
            tree = clone_tree(part)
            sys.move_mount(tree, "", whole, "", _ATTACH)
            for fd in (tree, part, whole):
                os.close(fd)


def fills_later(type: str, destination: str) -> bool:
    """Whether what follows may still have to make something in it: a read-only one becomes so at the end of the mounts."""
    return type == "tmpfs" or destination.rstrip("/") == "/dev"


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
        stage.check_place(target, "cgroup", bind=False)
        if self.unified:
            if self.own_namespace:
                # There may be the machine's on it (/sys as a bind): mount(2) puts no filesystem on itself, move_mount(2) does.
                tree = make_filesystem("cgroup2", "cgroup", flags, self.options.attributes.set, self.options.data)
                sys.move_mount(tree, "", target, "", _ATTACH)
                os.close(tree)
            else:
                self._bind(self.unified, target)
            os.close(target)
            return
        attributes = self.options.attributes.set & ~sys.MOUNT_ATTR_RDONLY
        top = make_filesystem("tmpfs", "tmpfs", flags & ~sys.MS_RDONLY, attributes, "mode=755")
        sys.move_mount(top, "", target, "", _ATTACH)
        os.close(target)
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
        kept = stage.mounts.get(rootfs.plain(self.path))
        fd = rootfs.find(stage.root, self.path) if kept is None else os.dup(kept)
        set_attributes(fd, self.attributes)
        os.close(fd)


class RemountFilesystem(Operation):
    """Change a file system that is mounted: its flags, and what only it knows (mount(2), MS_REMOUNT)."""

    source: str
    destination: str
    options: MountOptions

    @property
    def title(self) -> str:
        return f"remount {self.destination}"

    def perform(self, stage: Stage) -> None:
        target = rootfs.find(stage.root, self.destination)
        flags = self.options.flags & ~(sys.MS_BIND | sys.MS_REC)
        sys.mount(self.source or None, rootfs.magic(target), None, flags, self.options.data or None)
        set_attributes(target, self.options.recursive, recursive=True)
        set_propagation(target, self.options.propagation)
        os.close(target)


class MakeFolder(Operation):
    """Make a folder, with its parents, where it is missing."""

    path: str

    @property
    def title(self) -> str:
        return f"make the folder {self.path}"

    def perform(self, stage: Stage) -> None:
        os.close(rootfs.make_folder(stage.root, self.path))


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
        seal_imports()
        for fd in stage.mounts.values():
            os.close(fd)
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
            _hide_machine(stage)
            sys.mount(".", "/", None, sys.MS_MOVE)
            os.chroot(".")
        os.chdir("/")
        if self.propagation:
            sys.mount(None, "/", None, self.propagation)


def _hide_machine(stage: Stage) -> None:
    """Take the machine's procfs and sysfs out of a mount namespace whose root only moves: below it they stay within reach,
    and where there is a whole one the kernel would let a container mount another, with nothing hidden in it.
    """
    root = os.readlink(rootfs.magic(stage.root)).rstrip("/")
    for line in procfs.read_file(stage.proc, "self/mountinfo").splitlines():
        words = line.split(" ")
        place = _unquote(words[4])
        if words[3] != "/" or words[words.index("-") + 1] not in ("proc", "sysfs") or place.startswith(f"{root}/"):
            continue
        try:
            sys.mount(None, place, None, sys.MS_SLAVE | sys.MS_REC)
            sys.umount2(place, sys.MNT_DETACH)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.EPERM):
                sys.mount("tmpfs", place, "tmpfs", sys.MS_RDONLY)
            elif error.errno != errno.ENOENT:  # gone with the mount that it was in
                raise
