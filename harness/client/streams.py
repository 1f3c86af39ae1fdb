"""The client's side of the CRI's streaming server: channels of a command or a port, over SPDY/3.1 or over a WebSocket.

Only what these two protocols need of their carriers. Nothing of it is shared with a runtime that is tried.
"""

from __future__ import annotations

import json
import socket
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import SplitResult

from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, RejectConnection, Request, TextMessage

from harness.clock import SYSTEM_CLOCK
from harness.errors import CallTimeout, Refused

REPLY_S = 15.0
COMMAND_PROTOCOLS = ("v5.channel.k8s.io", "v4.channel.k8s.io")
PORT_PROTOCOL = "portforward.k8s.io"
TUNNEL_PROTOCOL = "SPDY/3.1+portforward.k8s.io"
_NUMBERS = {"stdin": 0, "stdout": 1, "stderr": 2, "error": 3, "resize": 4}
_CLOSE = 255
_PIECE_BYTES = 32 << 10
_SYN_STREAM, _RST_STREAM, _PING, _GOAWAY = 1, 3, 6, 7


class Carrier(Protocol):
    """Carries named channels over one connection."""

    @property
    def protocol(self) -> str:
        """What both sides agreed on."""
        ...

    def send(self, channel: str, data: bytes) -> bytes:
        """The bytes that put `data` on a channel."""
        ...

    def end(self, channel: str) -> bytes:
        """The bytes that say that nothing more comes on a channel. Raises `Refused` where the protocol cannot."""
        ...

    def take(self, data: bytes, streams: Streams) -> bytes:
        """Sort what came into `streams`; what is to be answered."""
        ...


class Streams:
    """A connection to a streaming server, and what has come on each of its channels. A context manager."""

    def __init__(self, connection: socket.socket, carrier: Carrier, first: bytes = b"") -> None:
        self.carrier = carrier
        self.received: dict[str, bytearray] = {}
        self.ended: set[str] = set()
        self.reset: set[str] = set()
        self.closed = False
        self.patience_s = REPLY_S
        self._socket = connection
        self._take(first)

    def __enter__(self) -> Streams:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def send(self, data: bytes, channel: str = "stdin") -> None:
        self._socket.sendall(self.carrier.send(channel, data))

    def end(self, channel: str = "stdin") -> None:
        """Say that nothing more comes; the other direction stays open."""
        self._socket.sendall(self.carrier.end(channel))

    def resize(self, columns: int, rows: int) -> None:
        self.send(json.dumps({"Width": columns, "Height": rows}).encode(), "resize")

    def output(self, channel: str = "stdout") -> bytes:
        return bytes(self.received.get(channel, b""))

    def until(self, done: Callable[[], bool], what: str, timeout_s: float | None = None) -> None:
        """Take what comes until `done`. Raises `CallTimeout`, also where the server hangs up before."""
        timeout_s = timeout_s or self.patience_s
        last_ns = SYSTEM_CLOCK.monotonic_ns() + round(timeout_s * 1e9)
        while not done():
            left_s = (last_ns - SYSTEM_CLOCK.monotonic_ns()) / 1e9
            if self.closed or left_s <= 0:
                how = "the server hung up" if self.closed else f"nothing came for {timeout_s:g} s"
                got = {name: bytes(data[-200:]) for name, data in self.received.items()}
                raise CallTimeout(f"waiting for {what}: {how}; so far {got}", "stream")
            self._receive(left_s)

    def read(self, word: bytes, channel: str = "stdout", timeout_s: float | None = None) -> None:
        """Wait for `word` on a channel."""
        self.until(lambda: word in self.output(channel), f"{word!r} on {channel}", timeout_s)

    def finish(self, timeout_s: float | None = None) -> dict[str, Any]:
        """Wait until the server is done; the status that it left on the error channel, {} for none."""
        self.until(lambda: self.closed, "the end of the connection", timeout_s)
        said = self.output("error")
        return json.loads(said) if said.strip() else {}

    def _receive(self, timeout_s: float) -> None:
        self._socket.settimeout(timeout_s)
        try:
            data = self._socket.recv(1 << 16)
        except TimeoutError:
            return
        except ConnectionError:
            data = b""
        if not data:
            self.closed = True
        self._take(data)

    def _take(self, data: bytes) -> None:
        answer = self.carrier.take(data, self) if data else b""
        if answer:
            self._socket.settimeout(REPLY_S)
            self._socket.sendall(answer)

    def arrived(self, channel: str, data: bytes) -> None:
        self.received.setdefault(channel, bytearray()).extend(data)


def exit_code(status: Mapping[str, Any]) -> int | None:
    """What a command ended with, by the ``Status`` on the error channel; None where it does not say."""
    if status.get("status") == "Success":
        return 0
    for cause in status.get("details", {}).get("causes", []):
        if cause.get("reason") == "ExitCode":
            return int(cause["message"])
    return None


@dataclass(frozen=True, slots=True)
class Head:
    """The head of an HTTP answer."""

    status: int
    headers: Mapping[str, str]


def open_command(
    connection: socket.socket, url: SplitResult, channels: Sequence[str], transport: str = "spdy"
) -> Streams:
    """The channels of a command or an attachment; ``error`` is always among them.

    Raises `Refused` with the HTTP status as its code, where the server does not agree.
    """
    names = ("error", *channels)
    if transport == "websocket":
        return _open_websocket(connection, url, COMMAND_PROTOCOLS)
    carrier, first = _open_spdy(connection, url, COMMAND_PROTOCOLS)
    connection.sendall(b"".join(carrier.open(name, {"streamtype": name}) for name in names))
    return Streams(connection, carrier, first)


def open_port(connection: socket.socket, url: SplitResult, port: int, transport: str = "spdy") -> Streams:
    """The channels ``data`` and ``error`` of a port. Raises `Refused` where the server does not agree.

    Over a WebSocket either the tunnel that carries SPDY, or the older protocol with two bare channels for each port.
    """
    opening = {"port": str(port), "requestid": "0"}
    if transport == "websocket":
        streams = _open_websocket(connection, url, (TUNNEL_PROTOCOL, "v4.channel.k8s.io"))
        websocket = streams.carrier
        assert isinstance(websocket, _WebSocket)
        if websocket.protocol == TUNNEL_PROTOCOL:
            websocket.tunnel = _Spdy(PORT_PROTOCOL)
            for name in ("error", "data"):
                connection.sendall(websocket.wrap(websocket.tunnel.open(name, {"streamtype": name, **opening})))
        else:
            websocket.numbers = {"data": 0, "error": 1}
            # Each channel begins with the number of its port.
            streams.until(
                lambda: len(streams.output("data")) >= 2 and len(streams.output("error")) >= 2, "the port's number"
            )
            for name in ("data", "error"):
                del streams.received[name][:2]
        return streams
    carrier, first = _open_spdy(connection, url, (PORT_PROTOCOL,))
    connection.sendall(b"".join(carrier.open(name, {"streamtype": name, **opening}) for name in ("error", "data")))
    return Streams(connection, carrier, first)


def _open_spdy(connection: socket.socket, url: SplitResult, protocols: Sequence[str]) -> tuple[_Spdy, bytes]:
    lines = [
        f"POST {_target(url)} HTTP/1.1",
        f"Host: {url.netloc}",
        "Connection: Upgrade",
        "Upgrade: SPDY/3.1",
        *(f"X-Stream-Protocol-Version: {protocol}" for protocol in protocols),
        "Content-Length: 0",
        "",
        "",
    ]
    connection.sendall("\r\n".join(lines).encode())
    head, rest = read_head(connection)
    if head.status != 101:
        raise Refused(f"the streaming server answers {head.status} to an upgrade", str(head.status))
    return _Spdy(head.headers.get("x-stream-protocol-version", "")), rest


def read_head(connection: socket.socket) -> tuple[Head, bytes]:
    """The head of an HTTP answer, and what followed it so far. Raises `CallTimeout`."""
    said = b""
    connection.settimeout(REPLY_S)
    while b"\r\n\r\n" not in said:
        try:
            part = connection.recv(4096)
        except TimeoutError:
            part = b""
        if not part:
            raise CallTimeout(f"no answer to a request, only {said[:200]!r}", "http")
        said += part
    head, _, rest = said.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    fields = (line.partition(":") for line in lines)
    return Head(int(first.split()[1]), {name.strip().lower(): value.strip() for name, _, value in fields}), rest


def _target(url: SplitResult) -> str:
    return url.path + (f"?{url.query}" if url.query else "")


class _Spdy:
    """SPDY/3.1 frames (sections 2.2 and 2.6 of its specification), as far as a client needs them."""

    def __init__(self, protocol: str) -> None:
        self.protocol = protocol
        self._numbers: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._data = bytearray()
        self._deflate = zlib.compressobj(wbits=11)

    def open(self, name: str, headers: Mapping[str, str]) -> bytes:
        number = 2 * len(self._numbers) + 1
        self._numbers[name], self._names[number] = number, name
        block = struct.pack(">I", len(headers)) + b"".join(
            struct.pack(">I", len(word)) + word for pair in headers.items() for word in map(str.encode, pair)
        )
        packed = self._deflate.compress(block) + self._deflate.flush(zlib.Z_SYNC_FLUSH)
        return _control(_SYN_STREAM, struct.pack(">IIH", number, 0, 0) + packed)

    def send(self, channel: str, data: bytes) -> bytes:
        pieces = (data[at : at + _PIECE_BYTES] for at in range(0, len(data), _PIECE_BYTES))
        return b"".join(struct.pack(">II", self._numbers[channel], len(piece)) + piece for piece in pieces)

    def end(self, channel: str) -> bytes:
        return struct.pack(">II", self._numbers[channel], 1 << 24)

    def take(self, data: bytes, streams: Streams) -> bytes:
        """The headers of a reply say nothing that matters here, and are not even unpacked."""
        self._data += data
        answer = b""
        while len(self._data) >= 8:
            first, second = struct.unpack_from(">II", self._data)
            flags, length = second >> 24, second & 0xFFFFFF
            if len(self._data) < 8 + length:
                break
            body = bytes(self._data[8 : 8 + length])
            del self._data[: 8 + length]
            name = ""
            if not first >> 31:
                name = self._names.get(first, "")
                streams.arrived(name, body)
            elif (kind := first & 0xFFFF) == _PING:
                answer += _control(_PING, body)
            elif kind == _RST_STREAM:
                streams.reset.add(self._names.get(struct.unpack_from(">I", body)[0], ""))
            elif kind == _GOAWAY:
                continue
            if flags & 1 and name:
                streams.ended.add(name)
        return answer


def _control(kind: int, body: bytes) -> bytes:
    return struct.pack(">HHI", 0x8003, kind, len(body)) + body


class _WebSocket:
    """Messages of which the first byte is the channel; or, with a tunnel, pieces of SPDY."""

    def __init__(self, protocol: str, connection: WSConnection) -> None:
        self.protocol = protocol
        self.numbers: Mapping[str, int] = _NUMBERS
        self.tunnel: _Spdy | None = None
        self._connection = connection
        self._part = bytearray()

    def wrap(self, data: bytes) -> bytes:
        return self._connection.send(BytesMessage(data=data))

    def send(self, channel: str, data: bytes) -> bytes:
        if self.tunnel:
            return self.wrap(self.tunnel.send(channel, data))
        pieces = [data[at : at + _PIECE_BYTES] for at in range(0, len(data), _PIECE_BYTES)]
        return b"".join(self.wrap(bytes([self.numbers[channel]]) + piece) for piece in pieces)

    def end(self, channel: str) -> bytes:
        if self.tunnel:
            return self.wrap(self.tunnel.end(channel))
        if not self.protocol.startswith("v5."):
            raise Refused(f"{self.protocol} has no way to end one channel")
        return self.wrap(bytes([_CLOSE, self.numbers[channel]]))

    def take(self, data: bytes, streams: Streams) -> bytes:
        self._connection.receive_data(data)
        answer = b""
        for event in self._connection.events():
            if isinstance(event, BytesMessage | TextMessage):
                piece = event.data.encode() if isinstance(event, TextMessage) else event.data
                self._part += piece
                if event.message_finished:
                    message, self._part = bytes(self._part), bytearray()
                    answer += self._message(message, streams)
            elif isinstance(event, CloseConnection):
                streams.closed = True
        return answer

    def _message(self, message: bytes, streams: Streams) -> bytes:
        if self.tunnel:
            answer = self.tunnel.take(message, streams)
            return self.wrap(answer) if answer else b""
        names = {number: name for name, number in self.numbers.items()}
        if message:
            streams.arrived(names.get(message[0], ""), message[1:])
        return b""


def _open_websocket(connection: socket.socket, url: SplitResult, protocols: Sequence[str]) -> Streams:
    protocol = WSConnection(ConnectionType.CLIENT)
    request = Request(host=url.netloc, target=_target(url), subprotocols=list(protocols))
    connection.sendall(protocol.send(request))
    connection.settimeout(REPLY_S)
    while True:
        try:
            data = connection.recv(1)
        except (TimeoutError, ConnectionError):
            data = b""
        if not data:
            raise CallTimeout("the streaming server does not answer to an upgrade", "http")
        protocol.receive_data(data)
        for event in protocol.events():
            if isinstance(event, AcceptConnection):
                return Streams(connection, _WebSocket(event.subprotocol or "", protocol))
            if isinstance(event, RejectConnection):
                code = str(event.status_code)
                raise Refused(f"the streaming server answers {code} to an upgrade", code)
