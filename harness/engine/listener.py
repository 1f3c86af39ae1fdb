"""Who listens at a Unix socket: the process that answers there, also where another one made the socket for it."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterable
from pathlib import Path

PROC = Path("/proc")
ACCEPTS = 0x10000
"""__SO_ACCEPTCON, among the flags of /proc/net/unix: the socket listens."""
INIT = 1


def find_listener(path: Path, proc: Path = PROC) -> int:
    """The process that listens at the socket `path`; 0 where it is of another pid namespace.

    With socket activation (systemd.socket(5)) init made the socket and holds it too: then it is the other holder, or init
    as long as there is none. Raises `OSError` where nobody listens.
    """
    made_by = peer(path)
    if made_by != INIT:
        return made_by
    others = holders(inodes(path, (proc / "net/unix").read_text(errors="surrogateescape")), proc) - {INIT}
    return min(others, key=lambda pid: _started(pid, proc), default=INIT)


def peer(path: Path) -> int:
    """Who made the socket `path` listen (unix(7), SO_PEERCRED); 0 where it is of another pid namespace. Raises `OSError`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
        link.settimeout(5)
        link.connect(os.fspath(path))
        credentials = link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid: int = struct.unpack("3i", credentials)[0]
    return pid


def inodes(path: Path, table: str) -> set[str]:
    """The inodes of the sockets that listen at `path`, by the text of ``/proc/net/unix``.

    It has the path by which a socket was bound: often /var/run/x for what is at /run/x.
    """
    real = os.path.realpath(path)
    found = set()
    for line in table.splitlines()[1:]:
        words = line.split(None, 7)
        if len(words) == 8 and int(words[3], 16) & ACCEPTS and os.path.realpath(words[7]) == real:
            found.add(words[6])
    return found


def holders(sockets: Iterable[str], proc: Path = PROC) -> set[int]:
    """The processes that have one of `sockets` (inodes) open."""
    wanted = {f"socket:[{inode}]" for inode in sockets}
    found = set()
    for entry in proc.iterdir():
        if entry.name.isdigit():
            # A process, or one of its files, may go while it is looked at.
            with contextlib.suppress(OSError):
                if any(str(fd.readlink()) in wanted for fd in (entry / "fd").iterdir()):
                    found.add(int(entry.name))
    return found


def _started(pid: int, proc: Path) -> tuple[int, int]:
    """The time at which a process began (proc_pid_stat(5), field 22): a holder's children inherit from it."""
    with contextlib.suppress(OSError):
        return int((proc / str(pid) / "stat").read_text().rpartition(")")[2].split()[19]), pid
    return 2**63, pid
