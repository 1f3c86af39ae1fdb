"""The server's side of a SPDY/3.1 connection: streams that the client opens, with no input or output of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from harness.minirt.streaming.channels import Arrived, Ended, Event
from harness.minirt.streaming.frames import (
    Data,
    Frame,
    GoAway,
    Headers,
    Ping,
    ProtocolError,
    Reader,
    Reset,
    SynReply,
    SynStream,
    Writer,
)

PROTOCOL_ERROR: Final = 1
INVALID_STREAM: Final = 2
REFUSED_STREAM: Final = 3
CANCEL: Final = 5
MOST_STREAMS: Final = 512
"""that are open at a time; further ones are refused"""
_HERE, _THERE = 1, 2


@dataclass(frozen=True, slots=True)
class Opened:
    """The client has opened a stream; it is accepted already."""

    stream: int
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Piece:
    """What the client sent on a stream."""

    stream: int
    data: bytes


@dataclass(frozen=True, slots=True)
class HalfClosed:
    """The client sends nothing more on a stream."""

    stream: int


@dataclass(frozen=True, slots=True)
class Broken:
    """The client wants nothing more of a stream; nothing can be sent on it either."""

    stream: int


StreamEvent = Opened | Piece | HalfClosed | Broken


class Connection:
    """Answers pings, accepts streams, and keeps account of which half of which stream is open.

    What is to go to the client gathers in `outgoing`; whoever owns the connection takes it from there.
    """

    def __init__(self) -> None:
        self.outgoing = bytearray()
        self._reader = Reader()
        self._writer = Writer()
        self._open: dict[int, int] = {}
        """stream → which halves are open"""
        self._last = 0

    def receive(self, data: bytes) -> Iterator[StreamEvent]:
        """What the client did. Raises `ProtocolError`."""
        for frame in self._reader.feed(data):
            yield from self._take(frame)

    def _take(self, frame: Frame) -> Iterator[StreamEvent]:
        match frame:
            case SynStream(stream, headers, fin):
                yield from self._accept(stream, headers, fin)
            case Data(stream, data, fin):
                if not self._open.get(stream, 0) & _THERE:
                    # One that was reset a moment ago, whose rest was under way; anything else is a mistake.
                    if stream > self._last or not stream:
                        raise ProtocolError(f"data for stream {stream}, which was never opened")
                    return
                if data:
                    yield Piece(stream, data)
                if fin:
                    yield from self._half_closed(stream)
            case Headers(stream, _, fin):
                if fin:
                    yield from self._half_closed(stream)
            case Reset(stream, _):
                if self._open.pop(stream, 0):
                    yield Broken(stream)
            case Ping(id):
                if id % 2:  # the client's own; an even one would answer ours
                    self.outgoing += self._writer.ping(id)
            case GoAway() | SynReply():
                pass

    def _accept(self, stream: int, headers: Mapping[str, str], fin: bool) -> Iterator[StreamEvent]:
        if not stream % 2 or stream <= self._last:
            raise ProtocolError(f"a client cannot open stream {stream} after {self._last}")
        self._last = stream
        if len(self._open) >= MOST_STREAMS:
            self.outgoing += self._writer.reset(stream, REFUSED_STREAM)
            return
        self._open[stream] = _HERE | _THERE
        self.outgoing += self._writer.syn_reply(stream, {})
        yield Opened(stream, headers)
        if fin:
            yield from self._half_closed(stream)

    def _half_closed(self, stream: int) -> Iterator[StreamEvent]:
        if self._open.get(stream, 0) & _THERE:
            self._shut(stream, _THERE)
            yield HalfClosed(stream)

    def _shut(self, stream: int, half: int) -> None:
        self._open[stream] &= ~half
        if not self._open[stream]:
            del self._open[stream]

    def send(self, stream: int, data: bytes) -> None:
        """Send; nothing happens where the stream is not open any more."""
        if self._open.get(stream, 0) & _HERE:
            self.outgoing += self._writer.data(stream, data)

    def end(self, stream: int) -> None:
        """Say that nothing more comes on a stream."""
        if self._open.get(stream, 0) & _HERE:
            self.outgoing += self._writer.data(stream, b"", fin=True)
            self._shut(stream, _HERE)

    def reset(self, stream: int, status: int = CANCEL) -> None:
        """End a stream both ways."""
        if self._open.pop(stream, 0):
            self.outgoing += self._writer.reset(stream, status)

    def close(self) -> None:
        """Say that no more streams are taken."""
        self.outgoing += self._writer.go_away(self._last)


class SpdyChannels:
    """`harness.minirt.streaming.channels.Channels`: each stream's ``streamType`` header names its channel."""

    def __init__(self, accepted: Callable[[str], bool]) -> None:
        """`accepted` says which channels are wanted; others are reset."""
        self._connection = Connection()
        self._accepted = accepted
        self._streams: dict[str, int] = {}
        self._names: dict[int, str] = {}

    @property
    def outgoing(self) -> bytearray:
        return self._connection.outgoing

    @property
    def opened(self) -> frozenset[str]:
        return frozenset(self._streams)

    def receive(self, data: bytes) -> Iterator[Event]:
        for event in self._connection.receive(data):
            match event:
                case Opened(stream, headers):
                    name = headers.get("streamtype", "")
                    if name in self._streams or not self._accepted(name):
                        self._connection.reset(stream, REFUSED_STREAM)
                    else:
                        self._streams[name], self._names[stream] = stream, name
                case Piece(stream, data):
                    if stream in self._names:
                        yield Arrived(self._names[stream], data)
                case HalfClosed(stream) | Broken(stream):
                    if stream in self._names:
                        yield Ended(self._names[stream])

    def send(self, channel: str, data: bytes) -> None:
        if channel in self._streams:
            self._connection.send(self._streams[channel], data)

    def end(self, channel: str) -> None:
        if channel in self._streams:
            self._connection.end(self._streams[channel])

    def close(self) -> None:
        self._connection.close()
