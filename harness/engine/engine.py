"""What every engine has: a row of data, and a way to start it in an arena."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from harness.arena import Arena
from harness.model.subject import Subject


@dataclass(frozen=True, slots=True)
class RunningEngine:
    """An engine that answers. Its paths are the same inside and outside of its arena."""

    name: str
    version: str
    socket: Path | None
    """of the API that clients use: CRI, Docker, or containerd's own; None where there is no engine"""
    pids: tuple[int, ...]
    """the daemon; empty where there is none"""
    log: Path
    native: Mapping[str, tuple[str, ...]]
    """argv (without the container's id) of the engine's own tool for ``pause`` and ``resume``; empty where it has none"""
    handler: str
    """name of the handler for CRI and Docker clients, program for ``ctr`` and ``oci``; "" for the engine's only one"""
    cgroup_parent: str
    """cgroup below which containers are put; "" where the engine decides"""
    cgroup: str
    """cgroup on whose account the engine is"""
    command: tuple[str, ...] = ()
    """argv, up to its verb, of the engine's own command line, for the client that is it; empty for all others"""
    environment: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """of `command`"""
    notes: tuple[str, ...] = ()
    """what a reader of the figures has to know"""


@dataclass(frozen=True, slots=True)
class Need:
    """Something an engine cannot do without."""

    program: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Row:
    """An engine as data."""

    name: str
    needs: tuple[Need, ...] = ()
    """programs that must be there"""
    options: frozenset[str] = field(default_factory=frozenset)
    """names of engine options that a ``seatrial.toml`` may set"""
    handlers: bool = True
    """whether an OCI runtime of one's choice can be put below it"""
    versioned: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """name in ``run.json`` → program whose version stands there"""


class Engine(Protocol):
    """One kind of engine."""

    row: Row

    def __init__(self, subject: Subject, arena: Arena, registry: str) -> None:
        """`registry`: ``host:port`` from which the engine gets its pause image."""
        ...

    def start(self) -> contextlib.AbstractContextManager[RunningEngine]:
        """The engine, ready to answer; stopped with the context. Raises `EngineError` with the end of its log."""
        ...

    @classmethod
    def obstacle(cls, subject: Subject) -> str:
        """Why it cannot run here, beyond missing programs; "" where it can."""
        ...
