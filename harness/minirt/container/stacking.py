"""Overlays of many layers: mount(2) takes one page of options, and full names of a hundred layers do not fit in there."""

from __future__ import annotations

import errno

from harness.linux import lean as os
from harness.linux import syscalls as sys

_LONGEST_DATA = os.sysconf("SC_PAGE_SIZE") - 1


def mount_overlay(source: str, target: str, flags: int, data: str) -> None:
    """Mount an overlay on `target`, an absolute path. What is too long is told from the folder that all layers are in.

    Raises `OSError`: E2BIG where that does not help, for mount(2) would silently take the beginning alone.
    """
    short, base = _shorten(data) if len(data) > _LONGEST_DATA else (data, "")
    if len(short) > _LONGEST_DATA:
        raise OSError(errno.E2BIG, "has more layers than one mount can stack", target)
    if not base:
        sys.mount(source, target, "overlay", flags, short)
        return
    here = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.chdir(base)
        sys.mount(source, target, "overlay", flags, short)
    finally:
        os.fchdir(here)
        os.close(here)


def _shorten(data: str) -> tuple[str, str]:
    """The same options with relative names of lower layers, and the folder that these are relative to, if there is one."""
    words = data.split(",")
    for index, word in enumerate(words):
        names = word.removeprefix("lowerdir=").split(":")
        # A backslash quotes a colon.
        if names[0] != word and "\\" not in word and all(name.startswith("/") for name in names):
            from os.path import commonpath, relpath

            base = commonpath([os.path.dirname(name) for name in names])
            words[index] = "lowerdir=" + ":".join(relpath(name, base) for name in names)
            return ",".join(words), base
    return data, ""
