"""Run a long command and hear each line of what it says while it says it."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from harness.clock import wait_until
from harness.command import Completed, HostRunner, Process
from harness.errors import CommandError, CommandTimeout, Recalled, WaitTimeout

Say = Callable[[str], None]
"""Told what is being done, one line each time."""


class Starter(Protocol):
    """Starts commands: the machine, or the private place of a hypervisor."""

    def start(
        self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, stdout_fd: int, stderr_fd: int
    ) -> Process: ...


class Recall:
    """Whether the user has asked for the end: set by the main thread, asked by those that do the work."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def ask(self) -> None:
        self._event.set()

    @property
    def asked(self) -> bool:
        return self._event.is_set()

    def check(self) -> None:
        """Raises `Recalled` where it was asked."""
        if self.asked:
            raise Recalled("interrupted")


NEVER = Recall()


def follow(
    starter: Starter,
    argv: Sequence[str],
    say: Say,
    *,
    timeout_s: float,
    env: Mapping[str, str] | None = None,
    recall: Recall = NEVER,
) -> None:
    """Run `argv` to its end; `say` gets each line of both its outputs.

    It is ended when `timeout_s` are over, when the user asks for the end, or when anything is raised meanwhile. Raises
    `CommandTimeout`, `CommandError` with the last lines that it wrote, and `Recalled`.
    """
    heard: deque[str] = deque(maxlen=40)
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    try:
        process = starter.start(argv, env=env, stdout_fd=write_fd, stderr_fd=write_fd)
    except BaseException:
        os.close(read_fd)
        raise
    finally:
        os.close(write_fd)

    def listen() -> None:
        with open(read_fd, errors="replace") as lines:
            for line in lines:
                heard.append(line.rstrip())
                if heard[-1]:
                    say(heard[-1])

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        status = _await_end(process, timeout_s, recall)
    except WaitTimeout:
        raise CommandTimeout(argv, timeout_s, "\n".join(heard)) from None
    finally:
        # A child that outlives the command may hold the pipe: what it says later is nobody's business.
        with contextlib.suppress(RuntimeError):
            listener.join(2.0)
    if status:
        raise CommandError(argv, status, "\n".join(heard))


def run(argv: Sequence[str], *, timeout_s: float, recall: Recall) -> Completed:
    """As `HostRunner.run`, but ended when the user asks for the end. Raises `Recalled` then, `CommandTimeout` as that does."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = HostRunner().start(argv, stdout_fd=out.fileno(), stderr_fd=err.fileno())
        try:
            status = _await_end(process, timeout_s, recall)
        except WaitTimeout:
            raise CommandTimeout(argv, timeout_s) from None
        out.seek(0)
        err.seek(0)
        return Completed(tuple(argv), status, out.read(), err.read())


def _await_end(process: Process, timeout_s: float, recall: Recall) -> int:
    """The status of `process`, which is stopped where it does not end by itself. Raises `WaitTimeout`, `Recalled`."""
    try:
        wait_until(lambda: recall.asked or process.poll() is not None, timeout_s, "the command to end")
        recall.check()
        return process.wait(1.0)
    except BaseException:
        process.stop()
        raise
