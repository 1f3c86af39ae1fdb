"""Run a command, or start a process: the only importer of `subprocess`.

`Runner` is the interface; `HostRunner` starts processes as children of the harness, `harness.arena` has one that starts
them inside an arena. Every command has a timeout, an argv list, and an end: terminate, wait, kill.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from harness.errors import CommandError, CommandTimeout, MachineError


class Group(StrEnum):
    """The cgroup of an arena into which a process is put, hence on whose account its cost goes."""

    ENGINE = "engine"
    CLIENT = "client"
    HARNESS = "harness"
    """the harness' own servants (the registry): on nobody's account"""


@dataclass(frozen=True, slots=True)
class Completed:
    """A command that ended. `status`: exit status, or minus the signal that ended it."""

    argv: tuple[str, ...]
    status: int
    stdout: bytes
    stderr: bytes

    def check(self) -> Completed:
        """Itself, where the status is 0; else raises `CommandError`."""
        if self.status:
            raise CommandError(self.argv, self.status, self.stderr.decode(errors="replace"))
        return self

    @property
    def text(self) -> str:
        return self.stdout.decode(errors="replace")


class Process(Protocol):
    """A process that goes on after the call that started it. Whoever started it owns its end."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None:
        """Its exit status (minus the signal that ended it), or None while it runs."""
        ...

    def wait(self, timeout_s: float) -> int:
        """Its exit status; raises `CommandTimeout` when it still runs after `timeout_s`."""
        ...

    def signal(self, number: int) -> None:
        """Send a signal; nothing happens where the process has ended."""
        ...

    def stop(self, grace_s: float = 5.0) -> int:
        """SIGTERM, wait `grace_s`, SIGKILL; its exit status."""
        ...


class Runner(Protocol):
    """Starts commands somewhere: on the host, or inside an arena."""

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float,
        group: Group = Group.CLIENT,
        input: bytes = b"",
        env: Mapping[str, str] | None = None,
        stdout_fd: int | None = None,
        stderr_fd: int | None = None,
    ) -> Completed:
        """Run `argv` to its end. `env` replaces the environment; the two descriptors, where given, become the command's
        own stdout and stderr (nothing is captured there), so that children which outlive it can inherit them.

        Raises `CommandTimeout` after killing it, and `MachineError` where there is no such program.
        """
        ...

    def start(
        self,
        argv: Sequence[str],
        *,
        group: Group = Group.ENGINE,
        env: Mapping[str, str] | None = None,
        stdout_fd: int,
        stderr_fd: int,
    ) -> Process:
        """Start `argv` and return at once; the caller keeps its own descriptors."""
        ...


class HostProcess:
    """A child of the harness."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self._child = child
        self.argv = tuple(str(word) for word in child.args)  # type: ignore[union-attr]

    @property
    def pid(self) -> int:
        return self._child.pid

    def poll(self) -> int | None:
        return self._child.poll()

    def wait(self, timeout_s: float) -> int:
        try:
            return self._child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise CommandTimeout(self.argv, timeout_s) from None

    def signal(self, number: int) -> None:
        self._child.send_signal(number)

    def stop(self, grace_s: float = 5.0) -> int:
        self.signal(signal.SIGTERM)
        with contextlib.suppress(CommandTimeout):
            return self.wait(grace_s)
        self.signal(signal.SIGKILL)
        return self.wait(10.0)


class HostRunner:
    """Runs commands as children of the harness, in its own namespaces and cgroups; `group` means nothing here."""

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float,
        group: Group = Group.CLIENT,
        input: bytes = b"",
        env: Mapping[str, str] | None = None,
        stdout_fd: int | None = None,
        stderr_fd: int | None = None,
    ) -> Completed:
        with _popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if stdout_fd is None else stdout_fd,
            stderr=subprocess.PIPE if stderr_fd is None else stderr_fd,
            env=env,
        ) as child:
            try:
                out, err = child.communicate(input, timeout_s)
            except BaseException as error:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                child.wait()
                if isinstance(error, subprocess.TimeoutExpired):
                    raise CommandTimeout(argv, timeout_s, (error.stderr or b"").decode(errors="replace")) from None
                raise
        return Completed(tuple(argv), child.returncode, out or b"", err or b"")

    def start(
        self,
        argv: Sequence[str],
        *,
        group: Group = Group.ENGINE,
        env: Mapping[str, str] | None = None,
        stdout_fd: int,
        stderr_fd: int,
        pass_fds: Collection[int] = (),
    ) -> HostProcess:
        """As `Runner.start`; `pass_fds` are inherited under their own numbers."""
        child = _popen(argv, stdin=subprocess.DEVNULL, stdout=stdout_fd, stderr=stderr_fd, env=env, pass_fds=pass_fds)
        return HostProcess(child)


def _popen(argv: Sequence[str], **how: Any) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(list(argv), start_new_session=True, **how)
    except (FileNotFoundError, PermissionError) as error:
        raise MachineError(f"cannot run {argv[0]}: {error.strerror}") from error


__all__ = ["CommandError", "CommandTimeout", "Completed", "Group", "HostProcess", "HostRunner", "Process", "Runner"]
