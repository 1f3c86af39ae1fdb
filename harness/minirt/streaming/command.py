"""The streams of a process: between a client's channels and the process's descriptors, in the thread that asked for it.

Nothing is lost and nothing piles up: a client that does not read has the process wait, a process that does not read has
the client wait.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import select
import socket
import struct
import time
from collections.abc import Iterable, Set
from typing import Any, Final

from harness.minirt.streaming import status
from harness.minirt.streaming.channels import ERROR, STDERR, STDOUT, Arrived, Channels, Ended, Event
from harness.minirt.streaming.frames import ProtocolError
from harness.minirt.streaming.process import Process

HIGH_BYTES: Final = 256 << 10
"""that wait to go one way, before what makes more of them is not read any more"""
_READ_BYTES: Final = 64 << 10
_MOST_ROUNDS: Final = 16
_MOST_RESIZE_BYTES: Final = 4096
_LINGER_S: Final = 30.0
_LOST = select.POLLHUP | select.POLLERR
_TIOCOUTQ: Final = 0x5411


class Client:
    """The client's side: a connected socket, and the channels that it carries. The socket stays its owner's."""

    def __init__(self, connection: socket.socket, channels: Channels, first: bytes) -> None:
        """`first` is what came with the request already."""
        connection.setblocking(False)
        self.socket = connection
        self.channels = channels
        self.stdin = bytearray()
        """what has come and waits for the process"""
        self.stdin_ended = False
        self.size: tuple[int, int] | None = None
        """rows and columns of the terminal that were asked for last"""
        self._sizes = b""
        self._take(self.channels.receive(first))

    def events(self) -> int:
        """What to wait for on the socket."""
        reading = select.POLLIN if len(self.stdin) < HIGH_BYTES else 0
        return reading | (select.POLLOUT if self.channels.outgoing else 0)

    def work(self, ready: int) -> None:
        """Receive and send what is possible. Raises `ConnectionError` once it has gone, `ProtocolError`."""
        if ready & (select.POLLIN | _LOST):
            try:
                data = self.socket.recv(_READ_BYTES)
            except BlockingIOError:
                pass
            else:
                if not data:
                    raise ConnectionAbortedError("the client has hung up")
                self._take(self.channels.receive(data))
        if self.channels.outgoing:
            self.flush()

    def flush(self) -> None:
        """Send what can be sent at once."""
        outgoing = self.channels.outgoing
        try:
            while outgoing:
                del outgoing[: self.socket.send(outgoing)]
        except BlockingIOError:
            pass

    def _take(self, events: Iterable[Event]) -> None:
        for event in events:
            match event:
                case Arrived("stdin", data):
                    self.stdin += data
                case Ended("stdin"):
                    self.stdin_ended = True
                case Arrived("resize", data):
                    self._sizes += data
                    self._read_sizes()

    def _read_sizes(self) -> None:
        *whole, self._sizes = self._sizes.split(b"}")
        if len(self._sizes) > _MOST_RESIZE_BYTES:
            raise ProtocolError("the size of a terminal is too long")
        for text in whole:
            try:
                size = json.loads(text + b"}")
                rows, columns = int(size["Height"]), int(size["Width"])
            except (ValueError, KeyError, TypeError) as error:
                raise ProtocolError(f"{text!r} is not the size of a terminal") from error
            if 0 < rows < 1 << 16 and 0 < columns < 1 << 16:
                self.size = rows, columns

    def wait_for(self, wanted: Set[str], timeout_s: float) -> bool:
        """Wait until the client has opened all of its channels; whether it has."""
        until = time.monotonic() + timeout_s
        while not wanted <= self.channels.opened:
            left = until - time.monotonic()
            if left <= 0:
                return False
            waiting = select.poll()
            waiting.register(self.socket, self.events())
            for _, ready in waiting.poll(int(left * 1000) + 1):
                self.work(ready)
        return True

    def finish(self, protocol: str, verdict: dict[str, Any]) -> None:
        """Say how it ended, and wait until the client has heard all of it."""
        for channel in (STDOUT, STDERR):
            self.channels.end(channel)
        self.channels.send(ERROR, status.render(verdict, protocol))
        self.channels.end(ERROR)
        self.channels.close()
        self.part()

    def part(self) -> None:
        """Send what is left, then wait for the client to hang up: to close before would throw away what it has not read."""
        self.socket.settimeout(None)
        self.socket.sendall(self.channels.outgoing)
        self.channels.outgoing.clear()
        self.socket.shutdown(socket.SHUT_WR)
        self.socket.settimeout(_LINGER_S)
        while True:
            try:
                if not self.socket.recv(_READ_BYTES):
                    return
            except TimeoutError:
                (unread,) = struct.unpack("i", fcntl.ioctl(self.socket, _TIOCOUTQ, b"\0\0\0\0"))
                if not unread:
                    return


def carry(client: Client, process: Process) -> dict[str, Any]:
    """Carry the streams until the process has ended; the supervisor's word on it.

    Raises what the process could not be started for, `ConnectionError` where the client has gone, and `ProtocolError`.
    """
    result: dict[str, Any] | None = None
    answer = process.answer.socket.fileno()
    shown: tuple[int, int] | None = None
    until = math.inf
    while True:
        if client.size != shown and (shown := client.size) is not None:
            process.resize(*shown)
        if process.stdin < 0:
            client.stdin.clear()
        elif client.stdin_ended and not client.stdin:
            process.end_stdin()
        pause_ms = None if until == math.inf else max(until - time.monotonic(), 0) * 1000
        ready = dict(_wanted(client, process, answer if result is None else -1).poll(pause_ms))
        if events := ready.get(client.socket.fileno()):
            client.work(events)
        for fd in [fd for fd in process.outputs if ready.get(fd, 0) & (select.POLLIN | _LOST)]:
            _pump(client, process, fd)
        if process.stdin >= 0 and client.stdin and ready.get(process.stdin, 0):
            _feed(client, process)
        if answer in ready and result is None:
            result = process.answer.answer()
            until = time.monotonic() + process.drain_s
        if result is not None and (not process.outputs or time.monotonic() >= until):
            _drain(client, process)
            return result


def _wanted(client: Client, process: Process, answer: int) -> select.poll:
    events = {client.socket.fileno(): client.events()}
    if answer >= 0:
        events[answer] = select.POLLIN
    if len(client.channels.outgoing) < HIGH_BYTES:
        events |= dict.fromkeys(process.outputs, select.POLLIN)
    if client.stdin and process.stdin >= 0:
        events[process.stdin] = events.get(process.stdin, 0) | select.POLLOUT
    waiting = select.poll()
    for fd, wanted in events.items():
        waiting.register(fd, wanted)
    return waiting


def _pump(client: Client, process: Process, fd: int) -> bool:
    """Move what is there from the process to the client; False where nothing was."""
    try:
        data = os.read(fd, _READ_BYTES)
    except BlockingIOError:
        return False
    except OSError:  # EIO: the last process let go of a terminal
        data = b""
    channel = process.outputs[fd]
    if data:
        client.channels.send(channel, data)
        client.flush()
        return True
    del process.outputs[fd]
    return False


def _feed(client: Client, process: Process) -> None:
    """Move what has come from the client to the process."""
    try:
        del client.stdin[: os.write(process.stdin, client.stdin[:_READ_BYTES])]
    except BlockingIOError:
        pass
    except OSError:  # EPIPE, EIO: nobody reads it any more
        client.stdin.clear()
        process.end_stdin()


def _drain(client: Client, process: Process) -> None:
    """All that the process itself wrote is there now; whom it has left behind has had its time."""
    for fd in list(process.outputs):
        for _ in range(_MOST_ROUNDS):
            if not _pump(client, process, fd):
                break
