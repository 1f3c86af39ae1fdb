"""The daemon's side of the protocol. Safe for threads: each call under way has a connection of its own."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from harness.minirt import errors
from harness.minirt.errors import MinirtError, TimedOut, Unavailable
from harness.minirt.supervisor.protocol import Inbox, ProtocolError, send

_MOST_IDLE = 16


class Connection:
    """One connection, for one request at a time."""

    def __init__(self, path: Path, timeout_s: float | None = None) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self.socket.settimeout(timeout_s)
        self._inbox = Inbox()
        self.waiting = False
        """whether a request has been sent whose answer has not come"""
        try:
            self.socket.connect(str(path))
        except OSError as error:
            self.socket.close()
            raise Unavailable(f"the supervisor at {path} does not answer: {error}") from error

    def close(self) -> None:
        self._inbox.close()
        self.socket.close()

    def send(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        self.waiting = True
        try:
            send(self.socket, message, tuple(fds))
        except OSError as error:
            raise Unavailable(f"the supervisor has gone: {error}") from error

    def receive(self) -> dict[str, Any]:
        """Wait for the next message."""
        try:
            while (taken := self._inbox.take()) is None:
                if not self._inbox.receive(self.socket):
                    raise Unavailable("the supervisor has gone")
        except TimeoutError:
            raise TimedOut(f"the supervisor did not answer within {self.socket.gettimeout():g} s") from None
        except (OSError, ProtocolError) as error:
            raise Unavailable(f"the supervisor has gone: {error}") from error
        message, fds = taken
        for fd in fds:
            os.close(fd)
        return message

    def answer(self) -> dict[str, Any]:
        """The result of the request that was sent; raises the error that it ended with."""
        message = self.receive()
        self.waiting = False
        if "error" in message:
            kind = getattr(errors, message["error"], MinirtError)
            # The class matters to callers; its own constructor may want facts that only the supervisor had.
            error = kind.__new__(kind, message["text"])
            MinirtError.__init__(error, message["text"])
            raise error
        result: dict[str, Any] = message["result"]
        return result


class Supervisor:
    """Calls to the supervisor behind a socket. Raises `Unavailable` where it is gone, and what it refuses with.

    `timeout_s`: for whoever cannot wait for ever, who gets `TimedOut`.
    """

    def __init__(self, path: Path, timeout_s: float | None = None) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._idle: list[Connection] = []
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close what is not in use; calls may be made again."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    @contextlib.contextmanager
    def _connection(self) -> Any:
        with self._lock:
            connection = self._idle.pop() if self._idle else None
        connection = connection or Connection(self._path, self._timeout_s)
        try:
            yield connection
        finally:
            with self._lock:
                kept = not connection.waiting and len(self._idle) < _MOST_IDLE
                if kept:
                    self._idle.append(connection)
            if not kept:
                connection.close()

    def call(self, op: str, **arguments: Any) -> dict[str, Any]:
        """One request, and its answer."""
        with self._connection() as connection:
            connection.send({"op": op, **arguments})
            result: dict[str, Any] = connection.answer()
            return result

    @contextlib.contextmanager
    def begin(self, op: str, fds: Sequence[int] = (), **arguments: Any) -> Any:
        """Send a request and yield its connection: whoever waits for other things too asks it for `answer` when readable.

        Leaving before the answer came ends the request.
        """
        with self._connection() as connection:
            connection.send({"op": op, **arguments}, fds)
            yield connection

    def follow(self, welcome: Callable[[dict[str, Any]], None], event: Callable[[dict[str, Any]], None]) -> None:
        """Subscribe: `welcome` gets the supervisor's facts first, `event` every event; returns when the supervisor has gone."""
        connection = Connection(self._path)
        try:
            connection.send({"op": "subscribe"})
            welcome(connection.answer())
            while True:
                event(connection.receive())
        except Unavailable:
            return
        finally:
            connection.close()
