"""Port forwarding: for each connection of a client, a pair of streams, and a connection in the pod's network namespace.

One thread serves all of a client's connections: a loop over their sockets. A pod that does not read has the client wait,
a client that does not read has its pods wait.
"""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Iterator, Mapping
from typing import Final, Protocol

from harness.linux import syscalls
from harness.minirt.streaming.frames import ProtocolError
from harness.minirt.streaming.spdy import (
    PROTOCOL_ERROR,
    Broken,
    Connection,
    HalfClosed,
    Opened,
    Piece,
    StreamEvent,
)
from harness.minirt.streaming.websocket import Messages

PROTOCOL: Final = "portforward.k8s.io"
HIGH_BYTES: Final = 256 << 10
_READ_BYTES: Final = 64 << 10
_LOST = select.POLLHUP | select.POLLERR
_ADDRESSES: Final = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))


class Wire(Protocol):
    """What carries the bytes of a SPDY connection."""

    @property
    def outgoing(self) -> bytearray:
        """What is to go to the client; whoever sends it takes it away."""
        ...

    def receive(self, data: bytes) -> Iterator[bytes]:
        """The bytes of the SPDY connection in what came."""
        ...

    def wrap(self, data: bytearray) -> None:
        """Take bytes of the SPDY connection, which are to go to the client."""
        ...


class PlainWire:
    """The connection itself."""

    def __init__(self) -> None:
        self.outgoing = bytearray()

    def receive(self, data: bytes) -> Iterator[bytes]:
        yield data

    def wrap(self, data: bytearray) -> None:
        self.outgoing += data
        data.clear()


class Tunnel:
    """A WebSocket whose binary messages hold the bytes."""

    def __init__(self) -> None:
        self._messages = Messages()

    @property
    def outgoing(self) -> bytearray:
        return self._messages.outgoing

    def receive(self, data: bytes) -> Iterator[bytes]:
        for piece, _ in self._messages.receive(data):
            yield piece

    def wrap(self, data: bytearray) -> None:
        if data:
            self._messages.send(bytes(data))
            data.clear()


class Pair:
    """The two streams of one forwarded connection (0: has not been opened), and the socket to the pod."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.streams: dict[str, int] = {}
        self.socket: socket.socket | None = None
        self.connecting = False
        self.backlog = bytearray()
        """what has come from the client and waits for the pod"""
        self.client_ended = False
        self.pod_ended = False
        self.families = list(_ADDRESSES)


def open_socket(netns: str, family: socket.AddressFamily) -> socket.socket:
    """A TCP socket in a network namespace; the calling thread visits it for a moment. "": the machine's own."""
    if not netns:
        return socket.socket(family, socket.SOCK_STREAM)
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        there = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
        try:
            syscalls.setns(there, syscalls.CLONE_NEWNET)
        finally:
            os.close(there)
        try:
            return socket.socket(family, socket.SOCK_STREAM)
        finally:
            syscalls.setns(home, syscalls.CLONE_NEWNET)
    finally:
        os.close(home)


class Forwarder:
    """All connections of one client."""

    def __init__(self, client: socket.socket, wire: Wire, netns: str) -> None:
        client.setblocking(False)
        self._client = client
        self._wire = wire
        self._netns = netns
        self._spdy = Connection()
        self._requests: dict[str, Pair] = {}
        """those of which only one stream has been opened"""
        self._pairs: dict[int, Pair] = {}
        """by their streams"""

    def run(self, first: bytes) -> None:
        """Serve until the client hangs up. `first` is what came with the request. Raises `ProtocolError`, `OSError`."""
        try:
            self._receive(first)
            while True:
                self._flush()
                waiting, polled = self._wanted()
                ready = dict(waiting.poll())
                if ready.get(self._client.fileno(), 0) & (select.POLLIN | _LOST):
                    data = self._client.recv(_READ_BYTES)
                    if not data:
                        return
                    self._receive(data)
                for fd, (pair, polled_socket) in polled.items():
                    # What came from the client may have closed it, and another may have its number now.
                    if pair.socket is polled_socket and fd in ready:
                        self._work(pair, ready[fd])
        finally:
            for pair in set(self._pairs.values()):
                if pair.socket is not None:
                    pair.socket.close()

    def _wanted(self) -> tuple[select.poll, dict[int, tuple[Pair, socket.socket]]]:
        """What to wait for, and the pairs that are among it, by their descriptors."""
        waiting = select.poll()
        pairs = [pair for pair in set(self._pairs.values()) if pair.socket is not None]
        too_much = any(len(pair.backlog) >= HIGH_BYTES for pair in pairs)
        full = len(self._wire.outgoing) >= HIGH_BYTES
        waiting.register(
            self._client, (0 if too_much else select.POLLIN) | (select.POLLOUT if self._wire.outgoing else 0)
        )
        polled: dict[int, tuple[Pair, socket.socket]] = {}
        for pair in pairs:
            events = select.POLLOUT if pair.connecting or pair.backlog else 0
            if not (pair.connecting or pair.pod_ended or full):
                events |= select.POLLIN
            if events and pair.socket is not None:
                waiting.register(pair.socket, events)
                polled[pair.socket.fileno()] = pair, pair.socket
        return waiting, polled

    def _flush(self) -> None:
        self._wire.wrap(self._spdy.outgoing)
        outgoing = self._wire.outgoing
        try:
            while outgoing:
                del outgoing[: self._client.send(outgoing)]
        except BlockingIOError:
            pass

    def _receive(self, data: bytes) -> None:
        for part in self._wire.receive(data):
            for event in self._spdy.receive(part):
                self._take(event)

    def _take(self, event: StreamEvent) -> None:
        if isinstance(event, Opened):
            self._opened(event.stream, event.headers)
            return
        pair = self._pairs.get(event.stream)
        if pair is None or event.stream != pair.streams.get("data"):
            return
        match event:
            case Piece(_, data):
                pair.backlog += data
                if pair.socket is None and len(pair.backlog) > HIGH_BYTES:
                    raise ProtocolError("data came without an error stream for it")
            case HalfClosed():
                pair.client_ended = True
            case Broken():
                self._finish(pair)
                return
        if pair.socket is not None and not pair.connecting:
            self._feed(pair)

    def _opened(self, stream: int, headers: Mapping[str, str]) -> None:
        kind, port = headers.get("streamtype", ""), headers.get("port", "")
        if kind not in ("data", "error") or not (port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16):
            self._spdy.reset(stream, PROTOCOL_ERROR)
            return
        # Who gives no id opens the data stream right after the error stream.
        request = headers.get("requestid") or f"stream {stream if kind == 'error' else stream - 2}"
        pair = self._requests.setdefault(request, Pair(int(port)))
        if kind in pair.streams:
            self._spdy.reset(stream, PROTOCOL_ERROR)
            return
        pair.streams[kind] = stream
        self._pairs[stream] = pair
        if len(pair.streams) == 2:
            del self._requests[request]
            self._connect(pair)

    def _connect(self, pair: Pair) -> None:
        """Try the next address of the pod's localhost."""
        problem: OSError | None = None
        while pair.families:
            family, address = pair.families.pop(0)
            try:
                pair.socket = open_socket(self._netns, family)
                pair.socket.setblocking(False)
                number = pair.socket.connect_ex((address, pair.port))
            except OSError as error:
                number, problem = error.errno or errno.EIO, error
            pair.connecting = number == errno.EINPROGRESS
            if number in (0, errno.EINPROGRESS):
                return
            problem = problem or OSError(number, os.strerror(number))
            if pair.socket is not None:
                pair.socket.close()
                pair.socket = None
        self._fail(pair, problem or OSError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED)))

    def _fail(self, pair: Pair, problem: OSError) -> None:
        text = f"error forwarding port {pair.port} to the pod: {problem.strerror or problem}"
        self._spdy.send(pair.streams["error"], text.encode())
        self._spdy.end(pair.streams["error"])
        self._spdy.reset(pair.streams["data"])
        self._finish(pair)

    def _work(self, pair: Pair, events: int) -> None:
        assert pair.socket is not None
        if pair.connecting:
            number = pair.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            pair.connecting = False
            if number:
                pair.socket.close()
                pair.socket = None
                self._connect(pair)
                return
        if events & (select.POLLIN | _LOST) and not pair.pod_ended:
            try:
                data = pair.socket.recv(_READ_BYTES)
            except BlockingIOError:
                pass
            except OSError as error:  # the pod's side was reset
                self._fail(pair, error)
                return
            else:
                if data:
                    self._spdy.send(pair.streams["data"], data)
                else:
                    pair.pod_ended = True
                    # Some clients hang up only when they know that there was no error.
                    for stream in pair.streams.values():
                        self._spdy.end(stream)
        self._feed(pair)

    def _feed(self, pair: Pair) -> None:
        """Move what has come from the client to the pod, and then the end of it."""
        assert pair.socket is not None
        try:
            while pair.backlog:
                del pair.backlog[: pair.socket.send(pair.backlog)]
            if pair.client_ended:
                pair.socket.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            return
        except OSError:  # the pod reads no more; what it still says is waited for
            pair.backlog.clear()
        if pair.client_ended and pair.pod_ended:
            self._finish(pair)

    def _finish(self, pair: Pair) -> None:
        """Let go of a connection."""
        for stream in pair.streams.values():
            self._spdy.end(stream)
            self._pairs.pop(stream, None)
        for request in [request for request, other in self._requests.items() if other is pair]:
            del self._requests[request]
        if pair.socket is not None:
            pair.socket.close()
            pair.socket = None
