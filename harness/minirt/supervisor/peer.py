"""One connection of a daemon to the supervisor, which neither side has to wait for."""

from __future__ import annotations

from select import EPOLLIN, EPOLLOUT

from harness.minirt.errors import MinirtError
from harness.minirt.supervisor.protocol import Inbox, ProtocolError, frame

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket as Socket
    from collections.abc import Callable
    from typing import Any

    from harness.minirt.supervisor.loop import Loop

_LARGEST_BACKLOG_BYTES = 4 << 20
"""of what a daemon has not fetched; one that is stuck is cut off, and finds out by asking again"""


class Peer:
    """Who is at the other end. `dispatch` gets each request with its descriptors; `parted` is called when it has gone."""

    def __init__(
        self,
        loop: Loop,
        connection: Socket,
        dispatch: Callable[[Peer, dict[str, Any], list[int]], None],
        parted: Callable[[Peer], None],
    ) -> None:
        """The connection is the peer's from now on."""
        connection.setblocking(False)
        self.on_close: Callable[[], None] | None = None
        """what the request that is under way wants to be done when its asker goes"""
        self._loop = loop
        self._connection = connection
        self._dispatch = dispatch
        self._parted = parted
        self._inbox = Inbox()
        self._outbox = bytearray()
        self._waits_to_write = False
        self._open = True
        loop.add(connection.fileno(), self._serve)

    def say(self, message: dict[str, Any]) -> None:
        """Send a message, now or later; nothing happens where nobody is there any more."""
        if not self._open:
            return
        self._outbox += frame(message)
        try:
            self._flush()
        except OSError:
            self._hang_up()
        else:
            if len(self._outbox) > _LARGEST_BACKLOG_BYTES:
                self._hang_up()

    def refuse(self, error: MinirtError) -> None:
        """Answer with an error."""
        kind = next(c.__name__ for c in type(error).__mro__ if c.__module__ == MinirtError.__module__)
        self.say({"error": kind, "text": str(error)})

    def _serve(self) -> None:
        try:
            if self._outbox:
                self._flush()
            going_on = self._inbox.receive(self._connection)
            while taken := self._inbox.take():
                self._dispatch(self, *taken)
        except BlockingIOError:
            return
        except (OSError, ProtocolError):
            going_on = False
        if not going_on:
            self._hang_up()

    def _flush(self) -> None:
        while self._outbox:
            try:
                del self._outbox[: self._connection.send(self._outbox)]
            except BlockingIOError:
                break
        if bool(self._outbox) != self._waits_to_write:
            self._waits_to_write = bool(self._outbox)
            self._loop.change(self._connection.fileno(), EPOLLIN | EPOLLOUT if self._outbox else EPOLLIN)

    def _hang_up(self) -> None:
        if not self._open:
            return
        self._open = False
        self._loop.remove(self._connection.fileno())
        self._inbox.close()
        self._connection.close()
        self._parted(self)
        if self.on_close is not None:
            self.on_close()
