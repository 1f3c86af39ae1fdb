"""Mount options: the words of config.json (and of fstab) as mount flags, mount attributes, propagation and data."""

from __future__ import annotations

from harness.linux import syscalls as sys
from harness.minirt.container.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

FLAGS: dict[str, tuple[bool, int]] = {
    "async": (True, sys.MS_SYNCHRONOUS),
    "atime": (True, sys.MS_NOATIME),
    "bind": (False, sys.MS_BIND),
    "defaults": (False, 0),
    "dev": (True, sys.MS_NODEV),
    "diratime": (True, sys.MS_NODIRATIME),
    "dirsync": (False, sys.MS_DIRSYNC),
    "exec": (True, sys.MS_NOEXEC),
    "iversion": (False, sys.MS_I_VERSION),
    "lazytime": (False, sys.MS_LAZYTIME),
    "loud": (True, sys.MS_SILENT),
    "mand": (False, sys.MS_MANDLOCK),
    "noatime": (False, sys.MS_NOATIME),
    "nodev": (False, sys.MS_NODEV),
    "nodiratime": (False, sys.MS_NODIRATIME),
    "noexec": (False, sys.MS_NOEXEC),
    "noiversion": (True, sys.MS_I_VERSION),
    "nolazytime": (True, sys.MS_LAZYTIME),
    "nomand": (True, sys.MS_MANDLOCK),
    "norelatime": (True, sys.MS_RELATIME),
    "nostrictatime": (True, sys.MS_STRICTATIME),
    "nosuid": (False, sys.MS_NOSUID),
    "nosymfollow": (False, sys.MS_NOSYMFOLLOW),
    "rbind": (False, sys.MS_BIND | sys.MS_REC),
    "relatime": (False, sys.MS_RELATIME),
    "remount": (False, sys.MS_REMOUNT),
    "ro": (False, sys.MS_RDONLY),
    "rw": (True, sys.MS_RDONLY),
    "silent": (False, sys.MS_SILENT),
    "strictatime": (False, sys.MS_STRICTATIME),
    "suid": (True, sys.MS_NOSUID),
    "symfollow": (True, sys.MS_NOSYMFOLLOW),
    "sync": (False, sys.MS_SYNCHRONOUS),
}
"""Word → (whether it clears, flag)."""

PROPAGATION: dict[str, int] = {
    "private": sys.MS_PRIVATE,
    "rprivate": sys.MS_PRIVATE | sys.MS_REC,
    "rshared": sys.MS_SHARED | sys.MS_REC,
    "rslave": sys.MS_SLAVE | sys.MS_REC,
    "runbindable": sys.MS_UNBINDABLE | sys.MS_REC,
    "shared": sys.MS_SHARED,
    "slave": sys.MS_SLAVE,
    "unbindable": sys.MS_UNBINDABLE,
}

ATTRIBUTES: dict[str, tuple[bool, int]] = {
    "atime": (True, sys.MOUNT_ATTR_NOATIME),
    "dev": (True, sys.MOUNT_ATTR_NODEV),
    "diratime": (True, sys.MOUNT_ATTR_NODIRATIME),
    "exec": (True, sys.MOUNT_ATTR_NOEXEC),
    "noatime": (False, sys.MOUNT_ATTR_NOATIME),
    "nodev": (False, sys.MOUNT_ATTR_NODEV),
    "nodiratime": (False, sys.MOUNT_ATTR_NODIRATIME),
    "noexec": (False, sys.MOUNT_ATTR_NOEXEC),
    "norelatime": (True, sys.MOUNT_ATTR_RELATIME),
    "nostrictatime": (True, sys.MOUNT_ATTR_STRICTATIME),
    "nosuid": (False, sys.MOUNT_ATTR_NOSUID),
    "nosymfollow": (False, sys.MOUNT_ATTR_NOSYMFOLLOW),
    "relatime": (False, sys.MOUNT_ATTR_RELATIME),
    "ro": (False, sys.MOUNT_ATTR_RDONLY),
    "rw": (True, sys.MOUNT_ATTR_RDONLY),
    "strictatime": (False, sys.MOUNT_ATTR_STRICTATIME),
    "suid": (True, sys.MOUNT_ATTR_NOSUID),
    "symfollow": (True, sys.MOUNT_ATTR_NOSYMFOLLOW),
}
"""The same for mount_setattr(2); with an ``r`` before it, a word reaches every mount below too."""

EXTENSIONS = ("tmpcopyup", "idmap", "ridmap")
"""Words that are neither flags nor for the file system."""

_SUBFOLDER = "X-mount.subdir="
_REMARKS = ("x-", "X-mount.mkdir", "comment=")
_REMARKED = frozenset(("_netdev", "auto", "noauto"))
"""words of fstab that mount(8) keeps to itself, and what others begin with"""
_ATIME = sys.MS_NOATIME | sys.MS_RELATIME | sys.MS_STRICTATIME
_ATIME_WORDS = frozenset(("atime", "noatime", "relatime", "norelatime", "strictatime", "nostrictatime"))


class Attributes(Record):
    """What mount_setattr(2) is asked for."""

    set: int = 0
    clear: int = 0

    def __bool__(self) -> bool:
        return bool(self.set or self.clear)


class MountOptions(Record):
    """The options of one mount, sorted by what they are for."""

    flags: int = 0
    """MS_* set, for mount(2)"""
    cleared: int = 0
    """MS_* that a word clears, and no later one sets"""
    attributes: Attributes = Attributes()
    """the same for mount_setattr(2), and what is cleared"""
    recursive: Attributes = Attributes()
    propagation: tuple[int, ...] = ()
    data: str = ""
    """what only the filesystem knows"""
    copy_up: bool = False
    """``tmpcopyup``: the tmpfs, or the empty folder that is bound, begins with what it hides"""
    idmap: str = ""
    """``idmap`` or ``ridmap``"""
    subfolder: str = ""
    """``X-mount.subdir=``: only this folder of what is mounted, as mount(8) has it"""

    @property
    def bind(self) -> bool:
        return bool(self.flags & sys.MS_BIND)

    @property
    def remount(self) -> bool:
        return bool(self.flags & sys.MS_REMOUNT)

    @property
    def read_only(self) -> bool:
        return bool(self.flags & sys.MS_RDONLY)


def _with(attributes: Attributes, word: str) -> Attributes:
    clears, bits = ATTRIBUTES[word]
    atime = sys.MOUNT_ATTR__ATIME if word in _ATIME_WORDS else 0
    if clears:
        return Attributes(attributes.set & ~(bits | atime), attributes.clear | bits | atime)
    return Attributes(attributes.set & ~atime | bits, attributes.clear & ~bits | atime)


def parse_options(words: Sequence[str]) -> MountOptions:
    """Sort the words; a later one overrides an earlier one. What nobody knows goes to the filesystem."""
    key = tuple(words)
    found = _parsed.get(key)
    if found is None:
        if len(_parsed) >= _MOST_PARSED:
            _parsed.clear()
        found = _parsed[key] = _parse(key)
    return found


_parsed: dict[tuple[str, ...], MountOptions] = {}
"""Containers are mostly mounted alike, and this is a good part of reading their config"""
_MOST_PARSED = 64


def _parse(words: tuple[str, ...]) -> MountOptions:
    flags, cleared, propagation, data, copy_up, idmap, subfolder = 0, 0, [], [], False, "", ""
    own = recursive = Attributes()
    for word in words:
        if word in FLAGS:
            clears, bits = FLAGS[word]
            if bits & _ATIME and not clears:
                flags &= ~_ATIME  # of several the kernel would take the one that it likes
            flags = flags & ~bits if clears else flags | bits
            cleared = cleared | bits if clears else cleared & ~bits
            if word in ATTRIBUTES:
                own = _with(own, word)
        elif word in PROPAGATION:
            propagation.append(PROPAGATION[word])
        elif word[:1] == "r" and word[1:] in ATTRIBUTES:
            recursive = _with(recursive, word[1:])
        elif word == "tmpcopyup":
            copy_up = True
        elif word in ("idmap", "ridmap"):
            idmap = word
        elif word.startswith(_SUBFOLDER):
            subfolder = word[len(_SUBFOLDER) :]
        elif word and word not in _REMARKED and not word.startswith(_REMARKS):
            data.append(word)
    return MountOptions(flags, cleared, own, recursive, tuple(propagation), ",".join(data), copy_up, idmap, subfolder)
