"""A daemon in an arena: started with a log, awaited, stopped."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from harness.arena import Arena
from harness.clock import wait_until
from harness.command import Process
from harness.engine.programs import search_path
from harness.errors import EngineError, WaitTimeout

START_S = 60.0
STOP_S = 15.0
TAIL_LINES = 12


def environment(arena: Arena) -> dict[str, str]:
    """A daemon's environment: no proxy, no setting of the user's, temporary files inside the arena."""
    scratch = arena.root / "tmp"
    scratch.mkdir(exist_ok=True)
    return {"PATH": search_path(), "HOME": str(arena.root), "TMPDIR": str(scratch), "LANG": "C.UTF-8"}


@contextlib.contextmanager
def daemon(
    arena: Arena, name: str, argv: Sequence[str], ready: Callable[[], bool], env: Mapping[str, str] | None = None
) -> Iterator[tuple[Process, Path]]:
    """Run `argv` as engine `name` until the context ends; the process, and its log. Containers left then are killed.

    Raises `EngineError` with the end of the log where it dies, or `ready` does not come true.
    """
    log = arena.logs / f"{name}.log"
    with log.open("ab") as sink:
        process = arena.start(argv, env=env or environment(arena), stdout_fd=sink.fileno(), stderr_fd=sink.fileno())

    def answering() -> bool:
        status = process.poll()
        if status is not None:
            how = f"exit status {status}" if status >= 0 else f"signal {-status}"
            raise EngineError(name, f"died while it started ({how})", tail(log))
        return ready()

    try:
        try:
            wait_until(answering, START_S, f"{name} to answer")
        except WaitTimeout as error:
            raise EngineError(name, f"did not answer within {START_S:g} s", tail(log)) from error
        yield process, log
    finally:
        arena.end_pods()
        process.stop(STOP_S)


def tail(log: Path, lines: int = TAIL_LINES) -> str:
    """The end of a log."""
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return ""


def listens(path: Path) -> bool:
    """Whether somebody accepts connections at a Unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(os.fspath(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
    return True
