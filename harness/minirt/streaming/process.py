"""What is at the other end of a stream: a process in a container, by way of the supervisor."""

from __future__ import annotations

import array
import contextlib
import math
import os
import select
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from harness.minirt.container.terminal import resize
from harness.minirt.errors import MinirtError, Unavailable
from harness.minirt.streaming.channels import STDERR, STDOUT
from harness.minirt.supervisor.client import Connection, Supervisor

DRAIN_S: Final = 1.0
"""for a command whose outputs are held by somebody whom it has left behind"""


@dataclass(frozen=True, slots=True)
class Streams:
    """Which streams a client has asked for. With a terminal there is no stderr."""

    stdin: bool
    stdout: bool
    stderr: bool
    tty: bool


class Process:
    """Descriptors of one process, all non-blocking; `answer` becomes readable when it has ended, or could not begin."""

    def __init__(self, answer: Connection, drain_s: float) -> None:
        self.answer = answer
        self.drain_s = drain_s
        """for how long outputs that have not ended are read on when the process has"""
        self.outputs: dict[int, str] = {}
        """what can be read → its channel"""
        self.stdin = -1
        self.terminal = -1
        self.when_stdin_ends: Callable[[], None] = lambda: None
        self._owned: list[int] = []

    def own(self, fd: int) -> int:
        """Have `fd` closed at the end; also makes it non-blocking."""
        os.set_blocking(fd, False)
        self._owned.append(fd)
        return fd

    def end_stdin(self) -> None:
        """The client sends nothing more. A terminal has no end that could be told."""
        if self.stdin != self.terminal:
            self._owned.remove(self.stdin)
            os.close(self.stdin)
        self.stdin = -1
        self.when_stdin_ends()

    def resize(self, rows: int, columns: int) -> None:
        """Set the terminal's size; nothing happens where there is none."""
        if self.terminal >= 0:
            with contextlib.suppress(OSError):  # it has just been hung up
                resize(self.terminal, rows, columns)

    def close(self) -> None:
        for fd in self._owned:
            os.close(fd)
        self._owned.clear()


@contextlib.contextmanager
def executing(
    supervisor: Supervisor, container_id: str, process: Mapping[str, Any], streams: Streams
) -> Iterator[Process]:
    """Start `process` (as config.json has it) in a container.

    Leaving before it has ended hangs it up, no more: a terminal tells by SIGHUP, pipes are at their end.
    """
    with contextlib.ExitStack() as theirs, contextlib.ExitStack() as stack:
        null = _lend(theirs, os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC))
        ends = [null, null, null]
        ours: dict[int, str] = {}
        feed, console = -1, None
        if streams.tty:
            console, far = socket.socketpair()
            stack.callback(console.close)
            ends.append(_lend(theirs, far.detach()))
        else:
            if streams.stdin:
                ends[0], feed = os.pipe2(os.O_CLOEXEC)
                _lend(theirs, ends[0])
                stack.callback(lambda: os.close(feed) if feed >= 0 else None)
            for at, wanted, name in ((1, streams.stdout, STDOUT), (2, streams.stderr, STDERR)):
                if wanted:
                    reading, ends[at] = os.pipe2(os.O_CLOEXEC)
                    _lend(theirs, ends[at])
                    ours[reading] = name
                    stack.callback(_close_if, ours, reading)
        request = supervisor.begin(
            "exec", ends, id=container_id, process={**process, "terminal": streams.tty}, timeout_s=0, lingers=True
        )
        connection: Connection = stack.enter_context(request)
        theirs.close()
        running = Process(connection, DRAIN_S)
        stack.callback(running.close)
        for reading, name in list(ours.items()):
            running.outputs[running.own(reading)] = name
            del ours[reading]
        if feed >= 0:
            running.stdin, feed = running.own(feed), -1
        if console is not None and (master := _fetch_terminal(console, connection)) >= 0:
            running.terminal = running.own(master)
            running.stdin = running.terminal if streams.stdin else -1
            running.outputs[running.terminal] = STDOUT
        yield running


@contextlib.contextmanager
def attached(
    supervisor: Supervisor, container_id: str, streams: Streams, *, takes_input: bool, once: bool
) -> Iterator[Process]:
    """Follow a container's own streams. `once`: its stdin ends when the first who wrote to it does."""
    with contextlib.ExitStack() as theirs, contextlib.ExitStack() as stack:
        entrance, far = socket.socketpair()
        stack.callback(entrance.close)
        ends = [_lend(theirs, far.detach())]
        ours: dict[int, str] = {}
        for wanted, name in ((streams.stdout, STDOUT), (streams.stderr and not streams.tty, STDERR)):
            if wanted:
                reading, writing = os.pipe2(os.O_CLOEXEC)
                ends.append(_lend(theirs, writing))
                ours[reading] = name
                stack.callback(_close_if, ours, reading)
        request = supervisor.begin("attach", ends, id=container_id, outputs=list(ours.values()))
        connection: Connection = stack.enter_context(request)
        theirs.close()
        if once and takes_input and streams.stdin:
            stack.callback(_close_stdin, supervisor, container_id)
        running = Process(connection, math.inf)
        stack.callback(running.close)
        for reading, name in list(ours.items()):
            running.outputs[running.own(reading)] = name
            del ours[reading]
        if (found := receive_descriptor(entrance)) >= 0:
            running.own(found)
            running.terminal = found if streams.tty else -1
            running.stdin = found if takes_input and streams.stdin else -1
            if once:
                running.when_stdin_ends = lambda: _close_stdin(supervisor, container_id)
        yield running


def _close_stdin(supervisor: Supervisor, container_id: str) -> None:
    with contextlib.suppress(MinirtError):  # it has ended, or been removed
        supervisor.call("close stdin", id=container_id)


def _lend(stack: contextlib.ExitStack, fd: int) -> int:
    stack.callback(os.close, fd)
    return fd


def _close_if(owned: dict[int, str], fd: int) -> None:
    if fd in owned:
        os.close(fd)


def _fetch_terminal(console: socket.socket, connection: Connection) -> int:
    """The terminal that the process's start sends; -1 where it failed, of which the answer tells."""
    waiting = select.poll()
    waiting.register(console, select.POLLIN)
    waiting.register(connection.socket, select.POLLIN)
    while True:
        if console.fileno() in (ready := {fd for fd, _ in waiting.poll()}):
            return receive_descriptor(console)
        if ready:
            return -1


def receive_descriptor(connection: socket.socket) -> int:
    """The descriptor that comes over a socket; -1 where it ends without one."""
    numbers = array.array("i")
    data, ancillary, _, _ = connection.recvmsg(4096, socket.CMSG_SPACE(numbers.itemsize), socket.MSG_CMSG_CLOEXEC)
    for level, kind, packed in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            numbers.frombytes(packed[: len(packed) - len(packed) % numbers.itemsize])
    if data and not numbers:
        raise Unavailable("a terminal was to be sent, and was not")
    return numbers[0] if numbers else -1
