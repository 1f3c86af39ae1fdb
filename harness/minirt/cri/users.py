"""Who a container's process runs as: what CRI and the image say, looked up in the image's own passwd and group files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from harness.linux import syscalls
from harness.minirt.errors import InvalidArgument

_HIGHEST_ID = 2**31 - 1
_LARGEST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Identity:
    """A resolved user. `home` is empty where passwd does not know it."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


@dataclass(frozen=True, slots=True)
class Accounts:
    """The texts of an image's /etc/passwd and /etc/group; empty where it has none."""

    passwd: str = ""
    group: str = ""

    def users(self) -> list[tuple[str, int, int, str]]:
        """``(name, uid, gid, home)`` of every well-formed line."""
        rows = []
        for line in self.passwd.splitlines():
            words = line.strip().split(":")
            if len(words) >= 6 and words[2].isdigit() and words[3].isdigit():
                rows.append((words[0], int(words[2]), int(words[3]), words[5]))
        return rows

    def groups(self) -> list[tuple[str, int, list[str]]]:
        """``(name, gid, members)`` of every well-formed line."""
        rows = []
        for line in self.group.splitlines():
            words = line.strip().split(":")
            if len(words) >= 4 and words[2].isdigit():
                rows.append((words[0], int(words[2]), [name for name in words[3].split(",") if name]))
        return rows


def resolve_user(
    accounts: Accounts, user: str, group: str = "", supplemental: Sequence[int] = (), *, merge: bool = True
) -> Identity:
    """Look up `user` (a name or a number, with an optional ``:group``); `group` overrides; `merge` adds the image's groups.

    Raises `InvalidArgument` for a name that the image does not know. A number needs no entry.
    """
    name, _, named_group = user.partition(":")
    group = group or named_group
    users = accounts.users()
    match = next((row for row in users if row[0] == name), None)
    if match is None and _is_id(name or "0"):
        uid = int(name or "0")
        match = next((row for row in users if row[1] == uid), ("", uid, 0, ""))
    if match is None:
        raise InvalidArgument(f"user {name!r} is not in the image's /etc/passwd")
    login, uid, gid, home = match
    groups = accounts.groups()
    if group:
        found = next((row[1] for row in groups if row[0] == group), None)
        if found is None and not _is_id(group):
            raise InvalidArgument(f"group {group!r} is not in the image's /etc/group")
        gid = int(group) if found is None else found
    # The group that is called like the user is its own, which was told by passwd already.
    member_of = [row[1] for row in groups if login and login != row[0] and login in row[2]] if merge else []
    return Identity(uid, gid, tuple(sorted({gid, *supplemental, *member_of})), home)


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text) <= _HIGHEST_ID


def read_accounts(layers: Sequence[str]) -> Accounts:
    """The accounts in a stack of layers (folders, the topmost first)."""
    return Accounts(_find_text(layers, "etc/passwd"), _find_text(layers, "etc/group"))


def _find_text(layers: Sequence[str], path: str) -> str:
    """A small file's text out of a stack of layers, topmost first; "" where there is none."""
    for layer in layers:
        root = os.open(layer, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY
            resolve = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS
            with open(syscalls.openat2(root, path, flags, resolve), "rb") as file:
                return file.read(_LARGEST_BYTES).decode(errors="surrogateescape")
        except OSError as error:
            if error.errno in (6, 19):  # ENXIO, ENODEV: a whiteout
                return ""
        finally:
            os.close(root)
    return ""
