"""The stdio of a container that is about to be started: pipes, or a terminal of its own."""

from __future__ import annotations

import os
from _socket import AF_UNIX, CMSG_SPACE, MSG_CMSG_CLOEXEC, SCM_RIGHTS, SOCK_CLOEXEC, SOCK_STREAM, SOL_SOCKET, socketpair
from _socket import socket as Socket
from sys import byteorder

from harness.minirt.errors import StepError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.minirt.container.launch import Launched

_INT_BYTES = 4


class Stdio:
    """Our ends, once `give_to` has handed the others over: `feed` to write to, `terminal`, `outputs` to read from."""

    def __init__(self, terminal: bool, stdin: bool) -> None:
        """`stdin`: whether something can be written to it; if not it reads nothing."""
        self.feed = -1
        self.terminal = -1
        self.outputs: dict[int, str] = {}
        """descriptor → the name of its stream"""
        self._has_terminal = terminal
        self._has_stdin = stdin

    def give_to(self, start: Callable[[list[int], int], Launched]) -> Launched:
        """`start` a process with the other ends: its three descriptors, and the socket for its terminal or -1."""
        if self._has_terminal:
            return self._give_terminal(start)
        theirs: list[int] = []
        try:
            if self._has_stdin:
                end, self.feed = os.pipe2(os.O_CLOEXEC)
                os.set_blocking(self.feed, False)
            else:
                end = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
            theirs.append(end)
            for name in ("stdout", "stderr"):
                reading, end = os.pipe2(os.O_CLOEXEC)
                theirs.append(end)
                self.outputs[reading] = name
            return start(theirs, -1)
        finally:
            for fd in theirs:
                os.close(fd)

    def _give_terminal(self, start: Callable[[list[int], int], Launched]) -> Launched:
        ours, theirs = socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        try:
            launched = start([null, null, null], theirs.fileno())
            theirs.close()
            # It was sent before the program was executed: there is nothing to wait for.
            self.terminal = receive_descriptor(ours)
            self.outputs[self.terminal] = "stdout"
            return launched
        finally:
            os.close(null)
            theirs.close()
            ours.close()

    def close(self) -> None:
        """Close our ends."""
        for fd in (self.feed, *self.outputs):
            if fd >= 0:
                os.close(fd)


def receive_descriptor(end: Socket) -> int:
    """The descriptor that comes over a socket. Raises `StepError` where none does."""
    _, ancillary, _, _ = end.recvmsg(4096, CMSG_SPACE(_INT_BYTES), MSG_CMSG_CLOEXEC)
    for level, kind, packed in ancillary:
        if (level, kind) == (SOL_SOCKET, SCM_RIGHTS) and len(packed) >= _INT_BYTES:
            return int.from_bytes(packed[:_INT_BYTES], byteorder)
    raise StepError("open a terminal", 0, "it was not sent")


def send_descriptor(end: int, fd: int) -> None:
    """Send a descriptor over a socket, which stays open. Raises `OSError`."""
    connection = Socket(AF_UNIX, SOCK_STREAM, 0, os.dup(end))
    try:
        connection.sendmsg([b"\0"], [(SOL_SOCKET, SCM_RIGHTS, fd.to_bytes(_INT_BYTES, byteorder))])
    finally:
        connection.close()
