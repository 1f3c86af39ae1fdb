"""Mounts, as ``/proc/<pid>/mountinfo`` tells of them (proc_pid_mountinfo(5))."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo. `options` are the mount's own, `super_options` the filesystem's."""

    id: int
    parent: int
    device: str
    """``major:minor``"""
    root: str
    """the path inside its filesystem that is mounted: not ``/`` for a bind mount of a folder"""
    target: str
    options: tuple[str, ...]
    propagation: tuple[str, ...]
    """``shared:N``, ``master:N``, ``propagate_from:N``, ``unbindable``; empty: private"""
    fstype: str
    source: str
    super_options: tuple[str, ...]

    @property
    def read_only(self) -> bool:
        return "ro" in self.options


def unescape(text: str) -> str:
    r"""Undo the kernel's octal escapes (``\040`` for a blank); bytes that are not UTF-8 come as surrogates."""
    if "\\" not in text:
        return text
    raw = text.encode(errors="surrogateescape")
    out = bytearray()
    position = 0
    while position < len(raw):
        digits = raw[position + 1 : position + 4]
        if raw[position] == 0x5C and len(digits) == 3 and all(0x30 <= digit <= 0x37 for digit in digits):
            out.append(int(digits, 8) & 0xFF)
            position += 4
        else:
            out.append(raw[position])
            position += 1
    return out.decode(errors="surrogateescape")


def parse_mountinfo(text: str) -> list[Mount]:
    """Mounts in the order of the file. Raises `ValueError`, with the line, for one that is not mountinfo."""
    mounts = []
    for line in text.split("\n"):
        if not line:
            continue
        words = line.split(" ")
        try:
            dash = words.index("-", 6)
            identity, parent, device, root, target, options = words[:6]
            fstype, source, *rest = words[dash + 1 :]
            mounts.append(
                Mount(
                    id=int(identity),
                    parent=int(parent),
                    device=device,
                    root=unescape(root),
                    target=unescape(target),
                    options=tuple(options.split(",")),
                    propagation=tuple(words[6:dash]),
                    fstype=fstype,
                    source=unescape(source),
                    super_options=tuple(rest[0].split(",")) if rest else (),
                )
            )
        except ValueError as error:
            raise ValueError(f"not a line of mountinfo: {line!r}") from error
    return mounts


def read_mounts(pid: int | str = "self") -> list[Mount]:
    """The mounts of a process's mount namespace, as seen from its root."""
    raw = Path(f"/proc/{pid}/mountinfo").read_bytes()
    return parse_mountinfo(raw.decode(errors="surrogateescape"))


def mounts_below(mounts: list[Mount], folder: str) -> list[Mount]:
    """Those at or below `folder`, the last mounted first: the order to unmount them in."""
    inside = folder.rstrip("/") + "/"
    return [mount for mount in reversed(mounts) if mount.target == folder or mount.target.startswith(inside)]
