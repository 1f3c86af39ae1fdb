"""A client of minirt's streams: SPDY/3.1 on a socket, for the tests of minirt alone."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar
from urllib.parse import urlsplit

from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Pong,
    RejectConnection,
    Request,
)

from harness.minirt.streaming.frames import Data, GoAway, Ping, Reader, Reset, SynReply, Writer

ALL_PROTOCOLS = ("v5.channel.k8s.io", "v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io")
TIMEOUT_S = 20.0


def connect(url: str) -> tuple[socket.socket, str]:
    """A connection to the server of a URL, and the path on it."""
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname or "", parts.port or 80), timeout=TIMEOUT_S), parts.path


def ask(
    connection: socket.socket, path: str, headers: Mapping[str, str], method: str = "POST"
) -> tuple[int, str, bytes]:
    """Status, head and what follows it, of a request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: x", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    connection.sendall("\r\n".join(lines).encode())
    answer = b""
    while b"\r\n\r\n" not in answer:
        part = connection.recv(4096)
        assert part, f"the server hung up after {answer!r}"
        answer += part
    head, _, rest = answer.partition(b"\r\n\r\n")
    return int(head.split(b" ", 2)[1]), head.decode(), rest


class SpdyClient:
    """One upgraded connection, with a stream for each channel."""

    def __init__(self, url: str, channels: tuple[str, ...], offered: tuple[str, ...] = ALL_PROTOCOLS) -> None:
        self.socket, path = connect(url)
        headers = {"Connection": "Upgrade", "Upgrade": "SPDY/3.1", "X-Stream-Protocol-Version": ", ".join(offered)}
        status, self.head, rest = ask(self.socket, path, headers)
        assert status == 101, self.head
        self.reader, self.writer = Reader(), Writer()
        self.received: dict[str, bytearray] = {}
        self.ended: set[str] = set()
        self.streams: dict[str, int] = {}
        self.names: dict[int, str] = {}
        self.resets: dict[int, int] = {}
        self.accepted: set[int] = set()
        self.pings: list[int] = []
        self.said_goodbye = False
        self._next = 1
        for channel in channels:
            self.open(channel, {"streamType": channel})
        self._take(rest)

    def __enter__(self) -> SpdyClient:
        return self

    def __exit__(self, *error: object) -> None:
        self.socket.close()

    def open(self, name: str, headers: Mapping[str, str]) -> int:
        """Open a stream, to be known by `name`; its number."""
        number, self._next = self._next, self._next + 2
        self.streams[name], self.names[number] = number, name
        self.received[name] = bytearray()
        self.socket.sendall(self.writer.syn_stream(number, headers))
        return number

    def send(self, name: str, data: bytes, fin: bool = False) -> None:
        self.socket.sendall(self.writer.data(self.streams[name], data, fin))

    def end(self, name: str) -> None:
        self.send(name, b"", fin=True)

    def resize(self, columns: int, rows: int) -> None:
        self.send("resize", json.dumps({"Width": columns, "Height": rows}).encode() + b"\n")

    def _take(self, data: bytes) -> None:
        for frame in self.reader.feed(data):
            match frame:
                case Data(stream, data, fin):
                    self.received[self.names[stream]] += data
                    if fin:
                        self.ended.add(self.names[stream])
                case SynReply(stream):
                    self.accepted.add(stream)
                case Reset(stream, status):
                    self.resets[stream] = status
                case Ping(id):
                    self.pings.append(id)
                case GoAway():
                    self.said_goodbye = True

    def read_until(self, done: Callable[[], bool]) -> None:
        """Receive until `done`."""
        until = time.monotonic() + TIMEOUT_S
        while not done():
            self.socket.settimeout(max(until - time.monotonic(), 0.01))
            data = self.socket.recv(1 << 16)
            assert data, f"the server hung up; so far {self.received}"
            self._take(data)

    def read_for(self, seconds: float) -> None:
        """Receive once, if something comes in `seconds`."""
        self.socket.settimeout(seconds)
        with contextlib.suppress(TimeoutError):
            self._take(self.socket.recv(1 << 16))

    def read_to_end(self) -> dict[str, Any]:
        """Receive until the server hangs up; the status that it said before."""
        self.socket.settimeout(TIMEOUT_S)
        while data := self.socket.recv(1 << 16):
            self._take(data)
        return json.loads(self.received["error"]) if self.received["error"] else {}

    def text(self, name: str = "stdout") -> str:
        return self.received[name].decode()


class WebSocketClient:
    """One WebSocket, with the channels of a command, or with whatever messages there are."""

    NUMBERS: ClassVar[dict[str, int]] = {"stdin": 0, "stdout": 1, "stderr": 2, "error": 3, "resize": 4}

    def __init__(self, url: str, offered: tuple[str, ...] = ("v5.channel.k8s.io",)) -> None:
        self.socket, path = connect(url)
        self._protocol = WSConnection(ConnectionType.CLIENT)
        self.socket.sendall(self._protocol.send(Request(host="x", target=path, subprotocols=list(offered))))
        self.received = {name: bytearray() for name in self.NUMBERS}
        self.messages: list[bytes] = []
        self.pongs: list[bytes] = []
        self.closed: int | None = None
        self.subprotocol: str | None = None
        self._part = bytearray()
        self.read_until(lambda: self.subprotocol is not None)

    def __enter__(self) -> WebSocketClient:
        return self

    def __exit__(self, *error: object) -> None:
        self.socket.close()

    def send(self, name: str, data: bytes) -> None:
        self.send_message(bytes([self.NUMBERS[name]]) + data)

    def send_message(self, data: bytes) -> None:
        self.socket.sendall(self._protocol.send(BytesMessage(data=data)))

    def send_event(self, event: Event) -> None:
        self.socket.sendall(self._protocol.send(event))

    def end(self, name: str) -> None:
        self.send_message(bytes([255, self.NUMBERS[name]]))

    def _take(self, data: bytes) -> None:
        self._protocol.receive_data(data)
        for event in self._protocol.events():
            match event:
                case AcceptConnection(subprotocol=subprotocol):
                    self.subprotocol = subprotocol or ""
                case RejectConnection(status_code=status):
                    raise AssertionError(f"the server refused: {status}")
                case BytesMessage(data=piece, message_finished=last):
                    self._part += piece
                    if last:
                        message, self._part = bytes(self._part), bytearray()
                        self.messages.append(message)
                        names = [name for name, number in self.NUMBERS.items() if message[:1] == bytes([number])]
                        for name in names:
                            self.received[name] += message[1:]
                case Pong(payload=payload):
                    self.pongs.append(bytes(payload))
                case CloseConnection(code=code):
                    self.closed = code

    def read_until(self, done: Callable[[], bool]) -> None:
        """Receive until `done`."""
        self.socket.settimeout(TIMEOUT_S)
        while not done():
            data = self.socket.recv(1 << 16)
            assert data, f"the server hung up; so far {self.received}"
            self._take(data)

    def read_to_end(self) -> dict[str, Any]:
        """Receive until the server has closed the WebSocket; the status that it said before."""
        self.read_until(lambda: self.closed is not None)
        return json.loads(self.received["error"]) if self.received["error"] else {}

    def text(self, name: str = "stdout") -> str:
        return self.received[name].decode()


def exit_code(status: Mapping[str, Any]) -> int:
    """What a command ended with, by the last word on it."""
    if status["status"] == "Success":
        return 0
    assert status["reason"] == "NonZeroExitCode", status
    (cause,) = status["details"]["causes"]
    assert cause["reason"] == "ExitCode"
    return int(cause["message"])
