"""The flags of a bind mount: what config.json says of them, and what its source has (config.md, "Mounts").

"Runtimes SHOULD use the mount(8) behaviour", which is told of in two ways there. Callers know runc's: a mount of which nothing
is said keeps its source's flags; where anything is said, it has the flags that are said and no others, save for those of the
access times, which stay unless one of them is set. In a user namespace the kernel has locked what the machine has set: that
stays, and to have it cleared is an error.
"""

from __future__ import annotations

import errno

from harness.linux import lean as os
from harness.linux import syscalls as sys
from harness.minirt.container.options import FLAGS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from harness.minirt.container.options import MountOptions

_ATTRIBUTES = {
    sys.MS_RDONLY: sys.MOUNT_ATTR_RDONLY,
    sys.MS_NOSUID: sys.MOUNT_ATTR_NOSUID,
    sys.MS_NODEV: sys.MOUNT_ATTR_NODEV,
    sys.MS_NOEXEC: sys.MOUNT_ATTR_NOEXEC,
    sys.MS_NOSYMFOLLOW: sys.MOUNT_ATTR_NOSYMFOLLOW,
    sys.MS_NODIRATIME: sys.MOUNT_ATTR_NODIRATIME,
}
_ATIME = sys.MS_NOATIME | sys.MS_RELATIME | sys.MS_STRICTATIME | sys.MS_NODIRATIME
_LOCKABLE = sys.MS_RDONLY | sys.MS_NOSUID | sys.MS_NODEV | sys.MS_NOEXEC | _ATIME
_OTHERS = sys.MS_BIND | sys.MS_REC | sys.MS_REMOUNT
_ST_RELATIME = 4096  # of statvfs(3), whose other flags are those of mount(2)


def set_flags(tree: int, options: MountOptions, source: str, locked: bool) -> None:
    """Give a detached bind mount the flags that its options ask for. `locked`: its source's are not the container's to clear.

    Raises `OSError`.
    """
    if not options.flags & ~_OTHERS and not options.cleared:
        return
    present, absent = _split(options.flags & ~_ATIME, _ATTRIBUTES)
    absent &= ~sys.MOUNT_ATTR_NODIRATIME
    atime = options.flags & _ATIME
    if not locked:
        times, no_times = _times(atime) if atime else (0, 0)
        try:
            sys.mount_setattr(tree, "", sys.AT_EMPTY_PATH, attr_set=present | times, attr_clr=absent | no_times)
        except PermissionError:
            pass
        else:
            return
    found = _flags_of(tree)
    if refused := found & options.cleared & _LOCKABLE:
        raise _not_permitted(f"cannot clear locked flags {_words(refused)}", source)
    if atime and atime != found & _ATIME:
        raise _not_permitted(f"cannot change locked atime flags {_words(found & _ATIME)}", source)
    kept, _ = _split(found & _LOCKABLE & ~_ATIME, _ATTRIBUTES)
    present |= kept
    sys.mount_setattr(tree, "", sys.AT_EMPTY_PATH, attr_set=present, attr_clr=absent & ~present)


def _split(flags: int, table: dict[int, int]) -> tuple[int, int]:
    """The attributes of flags that are set, and of those that are not."""
    present = absent = 0
    for flag, attribute in table.items():
        if flags & flag:
            present |= attribute
        else:
            absent |= attribute
    return present, absent


def _times(flags: int) -> tuple[int, int]:
    """The attributes for access times to set and to clear; as with mount(2) they are relative where no other kind is said."""
    kind = sys.MOUNT_ATTR_RELATIME
    if flags & sys.MS_STRICTATIME:
        kind = sys.MOUNT_ATTR_STRICTATIME
    elif flags & sys.MS_NOATIME:
        kind = sys.MOUNT_ATTR_NOATIME
    if flags & sys.MS_NODIRATIME:
        return kind | sys.MOUNT_ATTR_NODIRATIME, sys.MOUNT_ATTR__ATIME
    return kind, sys.MOUNT_ATTR__ATIME | sys.MOUNT_ATTR_NODIRATIME


def _flags_of(tree: int) -> int:
    """The flags of a mount, as mount(2) has them."""
    found = os.fstatvfs(tree).f_flag
    flags = found & (sys.MS_RDONLY | sys.MS_NOSUID | sys.MS_NODEV | sys.MS_NOEXEC | sys.MS_NOATIME | sys.MS_NODIRATIME)
    if found & _ST_RELATIME:
        flags |= sys.MS_RELATIME
    elif not flags & sys.MS_NOATIME:
        flags |= sys.MS_STRICTATIME
    return flags


def _words(flags: int) -> str:
    return ",".join([word for word, (clears, bits) in FLAGS.items() if bits and not clears and flags & bits == bits])


def _not_permitted(what: str, source: str) -> OSError:
    return PermissionError(errno.EPERM, f"{os.strerror(errno.EPERM).lower()}: {what}", source)
