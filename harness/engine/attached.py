"""An engine that runs already and is somebody else's: only its socket is known. It is neither started nor stopped."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType

from harness.arena import Arena
from harness.engine.containerd import native
from harness.engine.engine import Row, RunningEngine
from harness.engine.handlers import require_handler
from harness.engine.programs import version_of
from harness.errors import EngineError
from harness.linux.cgroups import cgroup_of
from harness.model.subject import Subject


class Attached:
    """`harness.engine.Engine` behind a socket. Its pods go where it puts them, and are not on an account of ours."""

    row = Row("attached", handlers=False)

    def __init__(self, subject: Subject, arena: Arena, registry: str) -> None:
        self._subject, self._arena = subject, arena

    @classmethod
    def obstacle(cls, subject: Subject) -> str:
        if subject.handler.startswith("/"):
            return f"{subject.handler} cannot be put below an engine that runs already: name a handler of its own"
        path = Path(subject.socket)
        if not path.exists():
            return f"there is no socket {path}: start the engine"
        return "" if path.is_socket() else f"{path} is not a socket"

    @contextlib.contextmanager
    def start(self) -> Iterator[RunningEngine]:
        path = Path(self._subject.socket)
        try:
            pid = peer(path)
        except OSError as error:
            raise EngineError("attached", f"{path}: {error.strerror}") from error
        name, version, cgroup = _identify(self._arena, pid)
        shared = [] if cgroup.strip("/") else ["the engine is in the root cgroup: its cost cannot be told from others'"]
        yield RunningEngine(
            name=name or "attached",
            version=version,
            socket=path,
            pids=(pid,) if pid else (),
            log=Path(os.devnull),
            native=native(path) if name == "containerd" else MappingProxyType({}),
            handler=_handler(self._subject),
            cgroup_parent="",
            cgroup=cgroup if cgroup.strip("/") else "",
            notes=tuple(shared),
        )


def _handler(subject: Subject) -> str:
    """The engine has its handlers configured already: one is chosen by name (by program, for ``ctr``)."""
    if subject.handler == "builtin":
        return ""
    return str(require_handler(subject).program) if subject.client == "ctr" else subject.handler


def peer(path: Path) -> int:
    """The process that listens at a Unix socket (unix(7), SO_PEERCRED); 0 where it is of another pid namespace.

    With socket activation that is who made the socket. Raises `OSError`.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
        link.settimeout(5)
        link.connect(os.fspath(path))
        credentials = link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid: int = struct.unpack("3i", credentials)[0]
    return pid


def _identify(arena: Arena, pid: int) -> tuple[str, str, str]:
    """Name, version and cgroup of a process; "" for what is hidden from us."""
    if not pid:
        return "", "", ""
    try:
        cgroup = cgroup_of(arena.cgroups.layout, "memory", pid)
        program = Path(f"/proc/{pid}/exe").readlink()
    except (OSError, KeyError):
        return "", "", ""
    return program.name, version_of(program), cgroup
