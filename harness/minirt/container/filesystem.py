"""A fresh filesystem as a detached mount: it is put where it belongs by descriptor, and found again by descriptor.

With mount(2) alone a path has to be looked up once more to get at what was mounted, and by then it may lead elsewhere.
"""

from __future__ import annotations

from harness.linux import lean as os
from harness.linux import syscalls as sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

DETACHABLE = frozenset(("proc", "sysfs", "tmpfs", "devpts", "mqueue"))
"""Those whose options fsconfig(2) takes as mount(2) does. (Those of an overlay may be longer than it allows.)"""

_FLAGS = (
    (sys.MS_RDONLY, "ro"),
    (sys.MS_SYNCHRONOUS, "sync"),
    (sys.MS_DIRSYNC, "dirsync"),
    (sys.MS_MANDLOCK, "mand"),
    (sys.MS_LAZYTIME, "lazytime"),
)


def make_filesystem(type: str, source: str, flags: int, attributes: int, data: str) -> int:
    """Make a filesystem; the descriptor of its detached mount. `flags`: MS_*, of which those of the filesystem itself count.

    `attributes`: MOUNT_ATTR_*, of the mount. `data`: the options of the filesystem, as mount(2) takes them.
    """
    context = sys.fsopen(type)
    try:
        sys.fsconfig(context, sys.FSCONFIG_SET_STRING, "source", source or type)
        for bit, word in _FLAGS:
            if flags & bit:
                sys.fsconfig(context, sys.FSCONFIG_SET_FLAG, word)
        for option in split_data(data):
            key, equals, value = option.partition("=")
            if equals:
                sys.fsconfig(context, sys.FSCONFIG_SET_STRING, key, value)
            else:
                sys.fsconfig(context, sys.FSCONFIG_SET_FLAG, key)
        sys.fsconfig(context, sys.FSCONFIG_CMD_CREATE)
        return sys.fsmount(context, attributes)
    finally:
        os.close(context)


def split_data(data: str) -> Iterator[str]:
    """The single options. Commas between quotes (of SELinux labels) belong to the option; the quotes do not."""
    option = ""
    for part in data.split(","):
        option = f"{option},{part}" if option else part
        if option.count('"') % 2 == 0:
            if option:
                yield option.replace('"', "")
            option = ""
    if option:
        yield option
