"""The way to an OCI runtime for a conformance test: bundles as they are, and any command line.

The command line is the one of runtime-tools' ``docs/command-line-interface.md``, as runc extends it. Nothing is added to
what a test asks for but the runtime's folder of states.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from harness.client.oci import flags_of
from harness.command import CommandTimeout, Completed, Group, Runner
from harness.errors import CallTimeout

CALL_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Command:
    """One command line of a runtime: `globals`, `verb`, `words`."""

    verb: str
    words: tuple[str, ...] = ()
    globals: tuple[str, ...] = ()
    """flags before the verb, besides ``--root``"""
    under: tuple[str, ...] = ()
    """the argv of a program that runs the runtime: what follows it is the runtime's own argv"""
    input: bytes = b""
    env: Mapping[str, str] | None = None
    """the runtime's environment; None: the harness' own"""
    stdout_fd: int | None = None
    stderr_fd: int | None = None
    timeout_s: float = CALL_TIMEOUT_S


class OciDoor(Protocol):
    """Where a test's bundles and commands go through; a proof puts a broken one in its place."""

    def write(self, path: Path, document: Any) -> None:
        """Write a bundle's ``config.json`` (or what a flag such as ``--process`` names). A string is written as it is."""
        ...

    def call(self, command: Command) -> Completed:
        """Run a command to its end, whatever its status. Raises `CallTimeout`."""
        ...


class OciCommandLine:
    """`OciDoor` to the program of a runtime."""

    def __init__(self, runner: Runner, program: str, root: Path) -> None:
        self._runner, self._program, self._root = runner, program, root

    def write(self, path: Path, document: Any) -> None:
        path.write_text(document if isinstance(document, str) else json.dumps(document))

    def call(self, command: Command) -> Completed:
        try:
            return self._runner.run(
                self.argv(command),
                timeout_s=command.timeout_s,
                group=Group.ENGINE,
                input=command.input,
                env=command.env,
                stdout_fd=command.stdout_fd,
                stderr_fd=command.stderr_fd,
            )
        except CommandTimeout as error:
            raise CallTimeout(str(error), "timeout") from error

    def argv(self, command: Command) -> Sequence[str]:
        own = (self._program, *flags_of(self._program), "--root", str(self._root), *command.globals)
        return (*command.under, *own, *([command.verb] if command.verb else ()), *command.words)
