"""`start_engine`, and what can be said of an engine without starting it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from harness import __version__
from harness.arena import Arena
from harness.engine.attached import Attached, version_behind
from harness.engine.containerd import Containerd
from harness.engine.docker import Docker
from harness.engine.engine import Engine, RunningEngine
from harness.engine.handlers import find_handler, missing
from harness.engine.minirt import Minirt
from harness.engine.null import NoEngine
from harness.engine.podman import Podman
from harness.engine.programs import find_program, version_of
from harness.errors import ArenaError, UsageError
from harness.model.subject import Subject

ENGINES: Mapping[str, type[Engine]] = MappingProxyType(
    {kind.row.name: kind for kind in (Minirt, Containerd, Docker, Podman, NoEngine, Attached)}
)
"""By `Subject.engine`; a subject with a socket is `Attached`, whatever engine it names."""

CLIENT_PROGRAMS: Mapping[str, str] = MappingProxyType({"crictl": "crictl", "ctr": "ctr", "cli": "podman"})
"""Clients that are programs; the others are libraries of ours."""


@contextlib.contextmanager
def start_engine(subject: Subject, arena: Arena, registry: str) -> Iterator[RunningEngine]:
    """The engine of `subject`, running in `arena` and ready; stopped with the context.

    `registry` is ``host:port`` of the registry of test images as the engine reaches it. Raises `EngineError`,
    `MachineError` for a program that is missing, `ArenaError` for a private engine in an attached arena, `UsageError` for
    an unknown engine or engine option.
    """
    kind = _kind(subject)
    if arena.attached and kind is not Attached:
        raise ArenaError(f"{subject.name}: an engine of our own does not belong in the host's namespaces")
    for option in subject.options if kind is not Attached else ():
        if option not in kind.row.options:
            known = ", ".join(sorted(kind.row.options)) or "none"
            raise UsageError(f"{subject.name}: {kind.row.name} has no option {option!r}; it has: {known}")
    with kind(subject, arena, registry).start() as engine:
        yield engine


def availability(subject: Subject) -> str:
    """Why `subject` cannot run on this machine, with what would mend that; "" where it can."""
    kind = _kind(subject)
    if os.geteuid() != 0:
        return "needs root: run it with sudo"
    for need in kind.row.needs:
        if find_program(need.program) is None:
            return f"{need.program} is not on PATH: {need.remedy}"
    if kind.row.handlers and find_handler(subject) is None:
        return missing(subject.handler)
    client = CLIENT_PROGRAMS.get(subject.client, "")
    if client and find_program(client) is None:
        return f"{client} is not on PATH: seatrial setup {'containerd' if client == 'ctr' else client}"
    return kind.obstacle(subject)


def versions(subject: Subject) -> dict[str, str]:
    """Version of the engine, the client and the OCI runtime of `subject`, by name; what tells none is left out."""
    kind = _kind(subject)
    programs = dict(kind.row.versioned)
    if subject.client in CLIENT_PROGRAMS:
        programs[CLIENT_PROGRAMS[subject.client]] = CLIENT_PROGRAMS[subject.client]
    if kind.row.handlers:
        programs[subject.handler] = subject.handler
    if kind is Attached:
        return version_behind(Path(subject.socket))
    found = {name: version_of(path) for name, program in programs.items() if (path := find_program(program))}
    if "minirt" in (subject.engine, subject.handler):
        found["minirt"] = __version__
    return {name: version for name, version in found.items() if version}


def _kind(subject: Subject) -> type[Engine]:
    if subject.socket:
        return Attached
    try:
        return ENGINES[subject.engine]
    except KeyError:
        raise UsageError(
            f"{subject.name}: no engine is called {subject.engine!r}; there are {', '.join(ENGINES)}"
        ) from None
