"""The stdio of a container that is about to be started: named pipes, or a terminal of its own.

Output goes through named pipes, which the container itself holds open both ways: when the supervisor is killed nothing of
what is in them is lost, a container that goes on writing waits instead of being told that nobody reads, and the next
supervisor finds them by their names (`find_outputs`). A terminal ends with who holds its other side.
"""

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
_FOLDER = "io"
_OUTPUTS = ("stdout", "stderr")


class Stdio:
    """Our ends, once `give_to` has handed the others over: `feed` to write to, `terminal`, `outputs` to read from."""

    def __init__(self, folder: str, terminal: bool, stdin: bool) -> None:
        """`folder`: the container's. `stdin`: whether something can be written to it; if not it reads nothing."""
        self._folder = f"{folder}/{_FOLDER}"
        self.feed = -1
        self.terminal = -1
        self.outputs: dict[int, str] = {}
        """descriptor → the name of its stream"""
        self._has_terminal = terminal
        self._has_stdin = stdin

    def give_to(self, start: Callable[[list[int], int], Launched]) -> Launched:
        """`start` a process with the other ends: its three descriptors, and the socket for its terminal or -1."""
        _make_empty(self._folder)
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
            for name in _OUTPUTS:
                path = f"{self._folder}/{name}"
                os.mkfifo(path)
                # Whoever the container becomes may open its /dev/stdout once more. The way here is shut to others.
                os.chmod(path, 0o622)
                theirs.append(os.open(path, os.O_RDWR | os.O_CLOEXEC))
                self.outputs[os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)] = name
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


def find_outputs(folder: str) -> dict[int, str]:
    """The output of a container that another supervisor has started; nothing where it has a terminal, which is lost."""
    found: dict[int, str] = {}
    for name in _OUTPUTS:
        try:
            found[os.open(f"{folder}/{_FOLDER}/{name}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)] = name
        except FileNotFoundError:
            continue
    return found


def _make_empty(folder: str) -> None:
    """A new folder; one that a start which was cut short has left is emptied."""
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        for name in os.listdir(folder):
            os.unlink(f"{folder}/{name}")


def keep_log(folder: str, path: str) -> None:
    """Remember where the log of a container is, for the next supervisor."""
    os.symlink(path, f"{folder}/{_FOLDER}/log")


def find_log(folder: str) -> str:
    """What `keep_log` was told; "" where it was told nothing."""
    try:
        return os.readlink(f"{folder}/{_FOLDER}/log")
    except OSError:
        return ""


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
