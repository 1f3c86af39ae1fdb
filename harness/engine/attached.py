"""An engine that runs already and is somebody else's: only its socket is known. It is neither started nor stopped."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType

from harness.arena import Arena
from harness.clock import wait_until
from harness.engine.containerd import native
from harness.engine.daemon import START_S
from harness.engine.engine import Row, RunningEngine
from harness.engine.handlers import require_handler
from harness.engine.listener import INIT, find_listener
from harness.engine.pause_image import pause_image
from harness.engine.programs import version_of
from harness.errors import EngineError, WaitTimeout
from harness.keeper.ladder import descendants
from harness.linux.cgroups import cgroup_of
from harness.model.capability import Capability
from harness.model.subject import Subject


class Attached:
    """`harness.engine.Engine` behind a socket. Its pods go where it puts them, and are not on an account of ours."""

    row = Row("attached", handlers=False)

    def __init__(self, subject: Subject, arena: Arena, registry: str) -> None:
        self._subject, self._arena, self._registry = subject, arena, registry

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
            # A socket of systemd's takes connections before its engine is there: the first of them has it started.
            wait_until(lambda: not _is_waiting(find_listener(path)), START_S, "the engine")
            pid = find_listener(path)
        except OSError as error:
            raise EngineError("attached", f"{path}: {error.strerror}") from error
        except WaitTimeout as error:
            raise EngineError("attached", f"{path}: systemd holds the socket, and started no engine for it") from error
        name, version, cgroup = _identify(self._arena, pid)
        with contextlib.ExitStack() as stack:
            notes = _notes(name, pid, cgroup)
            if name == "containerd" and Capability.CRI in self._subject.capabilities:
                notes += stack.enter_context(pause_image(self._arena, pid, path, self._registry))
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
                notes=notes,
            )


def version_behind(path: Path) -> dict[str, str]:
    """Version of the engine that listens at a socket, under a name that tells it from one of our own; empty where it is hidden."""
    with contextlib.suppress(OSError):
        program = _program(find_listener(path))
        version = version_of(program)
        return {f"{program.name} at {path}": version} if version else {}
    return {}


def _handler(subject: Subject) -> str:
    """The engine has its handlers configured already: one is chosen by name (by program, for ``ctr``)."""
    if subject.handler == "builtin":
        return ""
    return str(require_handler(subject).program) if subject.client == "ctr" else subject.handler


def _is_waiting(pid: int) -> bool:
    """Whether a socket has nobody but systemd yet."""
    return pid == INIT and _name(pid) == "systemd"


def _identify(arena: Arena, pid: int) -> tuple[str, str, str]:
    """Name, version and cgroup of a process; "" for what is hidden from us."""
    if not pid:
        return "", "", ""
    try:
        cgroup = cgroup_of(arena.cgroups.layout, "memory", pid)
        program = _program(pid)
    except (OSError, KeyError):
        return "", "", ""
    return program.name, version_of(program), cgroup


def _program(pid: int) -> Path:
    return Path(f"/proc/{pid}/exe").readlink()


def _notes(name: str, pid: int, cgroup: str) -> tuple[str, ...]:
    notes = ["no cost of containers: they are where the engine puts them, on no account of ours"]
    if not cgroup.strip("/"):
        notes.append("the engine is in the root cgroup: its cost cannot be told from others'")
    elif name == "dockerd" and "containerd" not in map(_name, descendants(pid)):
        notes.append("its containerd is a service by itself: neither that nor its shims are part of the engine's cost")
    return tuple(notes)


def _name(pid: int) -> str:
    with contextlib.suppress(OSError):
        return _program(pid).name
    return ""
