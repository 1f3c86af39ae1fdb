"""linux.sysctl: which kernel parameters belong to a namespace of the container's own, and may therefore be set.

Imported only where a config has some. Names are written with dots or with slashes, as sysctl(8) takes them: whichever comes
first is what divides the name, and the other one is then a letter of it (``net/ipv4/conf/eth0.5/mtu``).
"""

from __future__ import annotations

import os

from harness.minirt.errors import SpecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from harness.minirt.container.reader import Reader
    from harness.minirt.container.spec import Namespace

_IPC = frozenset(
    f"kernel/{name}" for name in ("msgmax", "msgmnb", "msgmni", "sem", "shm_rmid_forced", "shmall", "shmmax", "shmmni")
)


def path_of(name: str) -> str:
    """Where a parameter is below ``/proc/sys``."""
    first = min((at for at in (name.find("."), name.find("/")) if at >= 0), default=-1)
    return name if first < 0 or name[first] == "/" else name.translate({0x2E: "/", 0x2F: "."})


def parse_sysctl(linux: Reader, namespaces: tuple[Namespace, ...]) -> dict[str, str]:
    """Path below ``/proc/sys`` → value. Raises `SpecError` for what would change the machine."""
    by_kind = {entry.kind: entry for entry in namespaces}
    found = {}
    for name, value in linux.pairs("sysctl").items():
        path = path_of(name)
        where = f"{linux.at('sysctl')}[{name!r}]"
        if not all(word not in ("", ".", "..") for word in path.split("/")):
            raise SpecError(where, "is not a sysctl's name")
        kind = _kind_of(path)
        if not kind:
            why = (
                "is set by the field hostname" if path == "kernel/hostname" else "is not in a separate kernel namespace"
            )
            raise SpecError(where, why)
        entry = by_kind.get(kind)
        if entry is None or (entry.path and _is_ours(entry)):
            raise SpecError(where, f"needs a {kind} namespace of the container's own")
        found[path] = value
    return found


def _kind_of(path: str) -> str:
    """Of the namespace that a parameter belongs to; empty: to none."""
    if path.startswith("net/"):
        return "net"
    if path.startswith("fs/mqueue/") or path in _IPC:
        return "ipc"
    if path == "kernel/domainname":
        return "uts"
    return "user" if path.startswith("user/") else ""


def _is_ours(entry: Namespace) -> bool:
    """Whether a namespace that is given by its path is the one that the runtime itself is in."""
    try:
        there, here = os.stat(entry.path), os.stat(f"/proc/self/ns/{entry.kind}")
    except OSError:
        return False  # whether there is one at all is looked at by the plan
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)
