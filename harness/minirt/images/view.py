"""Stacked layers as one tree that only we see: behind a descriptor, of a mount that no mount namespace has.

It goes with its last descriptor, however the process ends.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence

from harness.linux import syscalls
from harness.minirt.errors import InvalidArgument

_PLAIN = "index=off,metacopy=off"
"""Layers are stacked upon others later on: nothing in them may point to the layers they were made on."""


@contextlib.contextmanager
def stacked(base: str, lower: Sequence[str], upper: str = "", work: str = "") -> Iterator[int]:
    """The layers `lower`, topmost first, below the writable folder `upper`, if any. All names are relative to `base`.

    Raises `OSError`, and `InvalidArgument` where there are more layers than one mount can stack.
    """
    if lower and (upper or len(lower) > 1):
        root = _mounted(base, lower, upper, work)
    else:  # of which overlayfs makes nothing
        root = os.open(os.path.join(base, *lower, upper), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield root
    finally:
        os.close(root)


def _mounted(base: str, lower: Sequence[str], upper: str, work: str) -> int:
    # A thread may have a mount namespace and a working directory of its own, and these end with it.
    options = f"lowerdir={':'.join(lower)},{_PLAIN}"
    if upper:
        options += f",upperdir={upper},workdir={work},volatile"
    if len(options) >= os.sysconf("SC_PAGE_SIZE"):  # of which mount(2) would silently take the beginning
        raise InvalidArgument(f"an image of {len(lower)} layers is more than one mount can stack")
    found: list[int] = []
    failed: list[OSError] = []

    def mount() -> None:
        try:
            syscalls.unshare(syscalls.CLONE_NEWNS)
            syscalls.mount(None, "/", None, syscalls.MS_SLAVE | syscalls.MS_REC)
            os.chdir(base)
            syscalls.mount("overlay", base, "overlay", 0 if upper else syscalls.MS_RDONLY, options)
            found.append(os.open(base, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
            syscalls.umount2(base, syscalls.MNT_DETACH)
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=mount, name="mount")
    thread.start()
    thread.join()
    for error in failed:
        for fd in found:
            os.close(fd)
        raise error
    return found[0]
