"""The same channels over a WebSocket (RFC 6455): one byte for the channel, then what is sent on it (v4, v5 of the protocol)."""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus
from typing import Final

from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, Pong, TextMessage
from wsproto.utilities import generate_accept_token

from harness.minirt.streaming.channels import ERROR, RESIZE, STDERR, STDIN, STDOUT, Arrived, Ended, Event
from harness.minirt.streaming.frames import ProtocolError
from harness.minirt.streaming.upgrade import Refusal, Upgrade

PROTOCOLS: Final = ("v5.channel.k8s.io", "v4.channel.k8s.io")
"""of commands, the best first; with the first one a client can say that a channel ends"""
PROTOCOL_HEADER: Final = "sec-websocket-protocol"
LARGEST_MESSAGE_BYTES: Final = 32 << 10
"""that we send"""
_NUMBERS: Final = {STDIN: 0, STDOUT: 1, STDERR: 2, ERROR: 3, RESIZE: 4}
_NAMES: Final = {number: name for name, number in _NUMBERS.items()}
_END: Final = 255
_VERSION: Final = "13"


def accept(upgrade: Upgrade, protocol: str) -> bytes:
    """Say that the protocol is switched; what has come in the new one already. Raises `Refusal`."""
    if upgrade.method != "GET":
        raise Refusal(HTTPStatus.METHOD_NOT_ALLOWED, "a WebSocket begins with GET", [("allow", "GET")])
    if upgrade.values("sec-websocket-version") != [_VERSION]:
        text = f"only version {_VERSION} of WebSockets is spoken here"
        raise Refusal(HTTPStatus.UPGRADE_REQUIRED, text, [("sec-websocket-version", _VERSION)])
    keys = upgrade.values("sec-websocket-key")
    if len(keys) != 1:
        raise Refusal(HTTPStatus.BAD_REQUEST, "a WebSocket needs a key")
    answer = generate_accept_token(keys[0].encode("latin-1")).decode("ascii")
    headers = [("connection", "Upgrade"), ("upgrade", "websocket"), ("sec-websocket-accept", answer)]
    return upgrade.switch([*headers, (PROTOCOL_HEADER, protocol)])


class Messages:
    """Binary messages of a WebSocket, in the pieces in which they come: memory is bounded. `outgoing` goes to the client."""

    def __init__(self) -> None:
        self.outgoing = bytearray()
        self._connection = Connection(ConnectionType.SERVER)

    def receive(self, data: bytes) -> Iterator[tuple[bytes, bool]]:
        """Each piece, and whether its message ends with it.

        Raises `ProtocolError`, and `ConnectionAbortedError` once the client has closed the WebSocket.
        """
        if self._connection.state is ConnectionState.CLOSED:
            return
        self._connection.receive_data(data)
        for event in self._connection.events():
            match event:
                case BytesMessage(data=piece, message_finished=last):
                    yield bytes(piece), last
                case TextMessage():
                    raise ProtocolError("a text came, where only binary messages may")
                case Ping():
                    self.outgoing += self._connection.send(event.response())
                case Pong():
                    pass
                case CloseConnection(code=code, reason=reason):
                    raise ConnectionAbortedError(f"the client has closed the WebSocket: {code} {reason or ''}")

    def send(self, data: bytes) -> None:
        """Send one message."""
        if self._connection.state is ConnectionState.OPEN:
            self.outgoing += self._connection.send(BytesMessage(data=data))

    def close(self) -> None:
        """Say that nothing more comes."""
        if self._connection.state is ConnectionState.OPEN:
            self.outgoing += self._connection.send(CloseConnection(code=1000))


class WebSocketChannels:
    """`harness.minirt.streaming.channels.Channels` of a command; all of them are there from the start."""

    def __init__(self, wanted: frozenset[str]) -> None:
        self._messages = Messages()
        self._wanted = wanted
        self._channel: int | None = None
        """of the message that is under way"""

    @property
    def outgoing(self) -> bytearray:
        return self._messages.outgoing

    @property
    def opened(self) -> frozenset[str]:
        return self._wanted

    def receive(self, data: bytes) -> Iterator[Event]:
        for piece, last in self._messages.receive(data):
            rest = piece
            if self._channel is None and piece:
                self._channel, rest = piece[0], piece[1:]
            if self._channel == _END:
                for number in rest:
                    if (name := _NAMES.get(number)) in self._wanted:
                        yield Ended(name or "")
            elif rest and (name := _NAMES.get(-1 if self._channel is None else self._channel)) in self._wanted:
                yield Arrived(name or "", rest)
            if last:
                self._channel = None

    def send(self, channel: str, data: bytes) -> None:
        if channel in self._wanted:
            head = bytes([_NUMBERS[channel]])
            for at in range(0, len(data), LARGEST_MESSAGE_BYTES):
                self._messages.send(head + data[at : at + LARGEST_MESSAGE_BYTES])

    def end(self, channel: str) -> None:
        """Not told: the end of the WebSocket is the end of all channels to the client."""

    def close(self) -> None:
        self._messages.close()
