"""No engine at all: an OCI runtime is driven by itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import MappingProxyType

from harness.arena import Arena
from harness.engine.engine import Row, RunningEngine
from harness.engine.handlers import require_handler
from harness.engine.programs import version_of
from harness.model.subject import Subject


class NoEngine:
    """`harness.engine.Engine` that starts nothing; the runtime's own processes are on the engine's account."""

    row = Row("none")

    def __init__(self, subject: Subject, arena: Arena, registry: str) -> None:
        self._subject, self._arena = subject, arena

    @classmethod
    def obstacle(cls, subject: Subject) -> str:
        return ""

    @contextlib.contextmanager
    def start(self) -> Iterator[RunningEngine]:
        handler = require_handler(self._subject)
        yield RunningEngine(
            name="none",
            version=version_of(handler.program),
            socket=None,
            pids=(),
            log=self._arena.logs / "runtime.log",
            native=MappingProxyType({}),
            handler=str(handler.program),
            cgroup_parent=self._arena.cgroups.pods,
            cgroup=self._arena.cgroups.engine,
        )
