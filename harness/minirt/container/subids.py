"""Mapping ids as a normal user: oneself, or with ``newuidmap`` and ``newgidmap`` what /etc/subuid and /etc/subgid grant.

The kernel lets a user map nobody but themselves, and their group only once setgroups(2) is given up (user_namespaces(7)).
"""

from __future__ import annotations

import os

from harness.minirt.container.files import write_file
from harness.minirt.errors import Unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.minirt.container.spec import IdMap

_DEFAULT_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
_LONGEST_TEXT = 4096


def write_maps_as_user(pid: int, uid_maps: Sequence[IdMap], gid_maps: Sequence[IdMap]) -> None:
    """Map the ids of a process's new user namespace. Raises `OSError`, and `Unsupported` for what we may not map."""
    if _is_own(uid_maps, os.geteuid()):
        write_file(f"/proc/{pid}/uid_map", _text(uid_maps))
    else:
        _run("newuidmap", pid, uid_maps)
    if _is_own(gid_maps, os.getegid()):
        write_file(f"/proc/{pid}/setgroups", "deny")
        write_file(f"/proc/{pid}/gid_map", _text(gid_maps))
    else:
        _run("newgidmap", pid, gid_maps)


def _is_own(maps: Sequence[IdMap], id: int) -> bool:
    return len(maps) == 1 and maps[0].size == 1 and maps[0].outside == id


def _text(maps: Sequence[IdMap]) -> str:
    return "".join(f"{item.inside} {item.outside} {item.size}\n" for item in maps)


def _run(name: str, pid: int, maps: Sequence[IdMap]) -> None:
    """Have a program do it that has the right to. Its reason, if it refuses, is the error's."""
    path = _find(name)
    words = [name, str(pid), *_text(maps).split()]
    reading, writing = os.pipe2(os.O_CLOEXEC)
    try:
        actions = [(os.POSIX_SPAWN_DUP2, writing, 1), (os.POSIX_SPAWN_DUP2, writing, 2)]
        child = os.posix_spawn(path, words, os.environ, file_actions=actions)
        os.close(writing)
        writing = -1
        said = b""
        while part := os.read(reading, _LONGEST_TEXT):
            said = (said + part)[-_LONGEST_TEXT:]
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finally:
        for fd in (reading, writing):
            if fd >= 0:
                os.close(fd)
    if status:
        raise Unsupported(f"map ids: {said.decode(errors='replace').strip() or f'{name} failed'}")


def _find(name: str) -> str:
    for folder in os.environ.get("PATH", _DEFAULT_PATH).split(":"):
        path = f"{folder}/{name}"
        if folder and os.access(path, os.X_OK):
            return path
    raise Unsupported(
        f"map ids: {name} is not installed (package uidmap), without which a user can map one id, their own: "
        f"{os.geteuid()}:{os.getegid()}"
    )
