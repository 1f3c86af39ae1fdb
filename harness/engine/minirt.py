"""The bundled runtime's CRI daemon, driven as any other engine: by its command line alone."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Iterator
from types import MappingProxyType

from harness import __version__
from harness.arena import Arena
from harness.command import Group
from harness.engine.daemon import START_S, daemon, environment, listens
from harness.engine.engine import Row, RunningEngine
from harness.engine.network import write_network
from harness.engine.programs import find_program
from harness.model.subject import Subject

PAUSE = "seatrial/pause:1"


class Minirt:
    """`harness.engine.Engine` for ``minirt serve``."""

    row = Row("minirt", options=frozenset({"args", "log_level"}), handlers=False)

    def __init__(self, subject: Subject, arena: Arena, registry: str) -> None:
        self._subject, self._arena, self._registry = subject, arena, registry

    @classmethod
    def obstacle(cls, subject: Subject) -> str:
        return ""

    @contextlib.contextmanager
    def start(self) -> Iterator[RunningEngine]:
        arena, options = self._arena, self._subject.options
        state, socket = arena.state / "minirt", arena.state / "minirt.sock"
        plugins = write_network(arena, arena.state / "cni")
        where = (
            *("--listen", f"unix://{socket}", "--root", str(arena.root / "minirt"), "--state", str(state)),
            *("--cni-conf-dir", str(arena.state / "cni"), "--cni-bin-dir", str(plugins)),
            *("--hosts-dir", str(arena.state / "certs.d"), "--pause-image", f"{self._registry}/{PAUSE}"),
            *("--cgroup-parent", arena.cgroups.pods, "--log-level", options.get("log_level", "info")),
        )
        argv = [*command(), "serve", *where, *shlex.split(options.get("args", ""))]
        env = environment(arena) | _python()
        with daemon(arena, "minirt", argv, lambda: listens(socket), env) as (process, log):
            native = (*command(), "--root", str(state / "containers"))
            try:
                yield RunningEngine(
                    name="minirt",
                    version=__version__,
                    socket=socket,
                    pids=(process.pid,),
                    log=log,
                    native=MappingProxyType({"pause": (*native, "pause"), "resume": (*native, "resume")}),
                    handler="",
                    cgroup_parent=arena.cgroups.pods,
                    cgroup=arena.cgroups.engine,
                )
            finally:
                process.stop()
                # The supervisor outlives the daemon on purpose. Whatever it does not take down, the arena will.
                arena.run([*command(), "shutdown", *where], timeout_s=START_S, group=Group.HARNESS, env=env)


def command() -> tuple[str, ...]:
    """How minirt is called: the script beside this Python, or its module."""
    script = find_program("minirt")
    return (str(script),) if script else (sys.executable, "-m", "harness.minirt")


def _python() -> dict[str, str]:
    return {name: os.environ[name] for name in ("PYTHONPATH", "VIRTUAL_ENV") if name in os.environ}
