"""What is let go of before the files and the processes of a container are met: nothing there can be trusted."""

from __future__ import annotations

import sys
from _frozen_importlib import BuiltinImporter, FrozenImporter  # type: ignore[import-not-found,unused-ignore]

from harness.linux import lean as os
from harness.linux import syscalls
from harness.minirt.errors import UsageError


def guard_descriptors(preserved: int) -> None:
    """Have standard input, output and error lead somewhere, and everything beyond the `preserved` end with an exec.

    For a command to call before it opens anything. Raises `UsageError` where one that is to be preserved is not open.
    """
    for fd in range(3 + preserved):
        try:
            os.fstat(fd)
        except OSError as error:
            if fd > 2:
                reason = os.strerror(error.errno or 0).lower()
                raise UsageError(f"unable to stat preserved-fd {fd - 3} (of {preserved}): {reason}") from None
            os.open("/dev/null", os.O_RDWR)
    syscalls.close_range(3 + preserved, flags=syscalls.CLOSE_RANGE_CLOEXEC)


def seal_imports() -> None:
    """From now on no module is looked for in files: by the names of the machine's folders they would be the container's.

    What is loaded stays, and what is part of the interpreter can still be had. Cannot be undone, so a child's to call.
    """
    sys.meta_path[:] = [BuiltinImporter, FrozenImporter]
    sys.path.clear()
