"""SPDY/3.1 frames (sections 2.2 and 2.6 of its specification), with no input or output of their own.

Memory is bounded whatever the other side sends: control frames and header blocks have a limit, data is handed on in the
pieces in which it comes.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from harness.minirt.streaming.dictionary import DICTIONARY

VERSION: Final = 3
LARGEST_CONTROL_BYTES: Final = 64 << 10
"""of a control frame, and of the headers that one unpacks to"""
LARGEST_DATA_BYTES: Final = 32 << 10
"""of a data frame that we write; longer data goes out in several"""
_HEAD_BYTES: Final = 8
_SYN_STREAM, _SYN_REPLY, _RST_STREAM, _PING, _GOAWAY, _HEADERS = 1, 2, 3, 6, 7, 8
_FIN: Final = 1
_STREAM_MASK: Final = 0x7FFFFFFF
_WINDOW_BITS: Final = 11
_MEMORY_LEVEL: Final = 1


class ProtocolError(Exception):
    """The other side does not keep to the protocol; the connection is of no use any more."""


@dataclass(frozen=True, slots=True)
class SynStream:
    """The other side opens a stream. `fin`: it will send nothing on it."""

    stream: int
    headers: Mapping[str, str]
    fin: bool = False


@dataclass(frozen=True, slots=True)
class SynReply:
    """The other side takes a stream that we opened."""

    stream: int
    headers: Mapping[str, str]
    fin: bool = False


@dataclass(frozen=True, slots=True)
class Headers:
    """More headers of a stream."""

    stream: int
    headers: Mapping[str, str]
    fin: bool = False


@dataclass(frozen=True, slots=True)
class Data:
    """A piece of a stream; `fin`: the last one. It need not be a whole frame."""

    stream: int
    data: bytes
    fin: bool = False


@dataclass(frozen=True, slots=True)
class Reset:
    """A stream is over at once, both ways."""

    stream: int
    status: int


@dataclass(frozen=True, slots=True)
class Ping:
    """To be sent back as it is."""

    id: int


@dataclass(frozen=True, slots=True)
class GoAway:
    """The other side takes no more streams."""

    last_stream: int
    status: int


Frame = SynStream | SynReply | Headers | Data | Reset | Ping | GoAway


class Reader:
    """Frames out of bytes as they come."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._inflate = zlib.decompressobj(zdict=DICTIONARY)
        self._stream = 0
        self._left = 0
        """of the data frame that is under way"""
        self._fin = False

    @property
    def buffered_bytes(self) -> int:
        return len(self._data)

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that `data` completes. Raises `ProtocolError`."""
        self._data += data
        while True:
            if self._left:
                if not self._data:
                    return
                piece = bytes(self._data[: self._left])
                del self._data[: len(piece)]
                self._left -= len(piece)
                yield Data(self._stream, piece, self._fin and not self._left)
                continue
            if len(self._data) < _HEAD_BYTES:
                return
            first, second = struct.unpack_from(">II", self._data)
            flags, length = second >> 24, second & 0xFFFFFF
            if not first >> 31:
                del self._data[:_HEAD_BYTES]
                self._stream, self._left, self._fin = first, length, bool(flags & _FIN)
                if not length:
                    yield Data(first, b"", self._fin)
                continue
            if length > LARGEST_CONTROL_BYTES:
                raise ProtocolError(f"a control frame of {length} bytes is announced, which is too long")
            if len(self._data) < _HEAD_BYTES + length:
                return
            body = bytes(self._data[_HEAD_BYTES : _HEAD_BYTES + length])
            del self._data[: _HEAD_BYTES + length]
            if (version := first >> 16 & 0x7FFF) != VERSION:
                raise ProtocolError(f"a frame of SPDY/{version}")
            frame = self._control(first & 0xFFFF, bool(flags & _FIN), body)
            if frame is not None:
                yield frame

    def _control(self, kind: int, fin: bool, body: bytes) -> Frame | None:
        """The frame; None for a kind that asks nothing of us: settings, windows, credentials."""
        try:
            if kind == _SYN_STREAM:
                return SynStream(_stream_of(body), self._headers(body, 10), fin)
            if kind == _SYN_REPLY:
                return SynReply(_stream_of(body), self._headers(body, 4), fin)
            if kind == _HEADERS:
                return Headers(_stream_of(body), self._headers(body, 4), fin)
            if kind == _RST_STREAM:
                return Reset(_stream_of(body), struct.unpack_from(">I", body, 4)[0])
            if kind == _PING:
                return Ping(struct.unpack_from(">I", body)[0])
            if kind == _GOAWAY:
                return GoAway(_stream_of(body), struct.unpack_from(">I", body, 4)[0])
        except struct.error as error:
            raise ProtocolError(f"a control frame of type {kind} is too short") from error
        return None

    def _headers(self, body: bytes, at: int) -> dict[str, str]:
        if len(body) < at:
            raise ProtocolError("a header block is missing")
        try:
            block = self._inflate.decompress(body[at:], LARGEST_CONTROL_BYTES + 1)
        except zlib.error as error:
            raise ProtocolError(f"headers cannot be unpacked: {error}") from error
        if len(block) > LARGEST_CONTROL_BYTES or self._inflate.unconsumed_tail or self._inflate.eof:
            raise ProtocolError("headers are too long, or their compression ends early")
        return parse_headers(block)


def _stream_of(body: bytes) -> int:
    number: int = struct.unpack_from(">I", body)[0] & _STREAM_MASK
    return number


def parse_headers(block: bytes) -> dict[str, str]:
    """Names, in lower case, and values of an unpacked header block (section 2.6.10). Raises `ProtocolError`."""
    view, at = memoryview(block), 0

    def number() -> int:
        nonlocal at
        if at + 4 > len(view):
            raise ProtocolError("a header block ends early")
        at += 4
        return int.from_bytes(view[at - 4 : at], "big")

    def text() -> str:
        nonlocal at
        length = number()
        if at + length > len(view):
            raise ProtocolError("a header block ends early")
        at += length
        return bytes(view[at - length : at]).decode("latin-1")

    headers: dict[str, str] = {}
    for _ in range(number()):
        name = text().lower()
        if not name or name in headers:
            raise ProtocolError(f"the header {name!r} is empty or there twice")
        headers[name] = text()
    if at != len(view):
        raise ProtocolError("a header block has more than it says")
    return headers


class Writer:
    """Bytes of frames. In the order in which they are asked for they go onto the connection: compression has a memory."""

    def __init__(self) -> None:
        self._deflate = zlib.compressobj(
            zlib.Z_BEST_SPEED, zlib.DEFLATED, _WINDOW_BITS, _MEMORY_LEVEL, zlib.Z_DEFAULT_STRATEGY, DICTIONARY
        )

    def syn_stream(self, stream: int, headers: Mapping[str, str], fin: bool = False) -> bytes:
        return _control(_SYN_STREAM, fin, struct.pack(">IIH", stream, 0, 0) + self._pack(headers))

    def syn_reply(self, stream: int, headers: Mapping[str, str], fin: bool = False) -> bytes:
        return _control(_SYN_REPLY, fin, struct.pack(">I", stream) + self._pack(headers))

    def headers(self, stream: int, headers: Mapping[str, str], fin: bool = False) -> bytes:
        return _control(_HEADERS, fin, struct.pack(">I", stream) + self._pack(headers))

    def data(self, stream: int, data: bytes, fin: bool = False) -> bytes:
        """One frame or several; nothing for no data without `fin`."""
        pieces = [data[at : at + LARGEST_DATA_BYTES] for at in range(0, len(data), LARGEST_DATA_BYTES)]
        if fin and not pieces:
            pieces = [b""]
        last = len(pieces) - 1
        return b"".join(
            struct.pack(">II", stream, (_FIN << 24 if fin and at == last else 0) | len(piece)) + piece
            for at, piece in enumerate(pieces)
        )

    def reset(self, stream: int, status: int) -> bytes:
        return _control(_RST_STREAM, False, struct.pack(">II", stream, status))

    def ping(self, id: int) -> bytes:
        return _control(_PING, False, struct.pack(">I", id))

    def go_away(self, last_stream: int, status: int = 0) -> bytes:
        return _control(_GOAWAY, False, struct.pack(">II", last_stream, status))

    def _pack(self, headers: Mapping[str, str]) -> bytes:
        block = bytearray(struct.pack(">I", len(headers)))
        for name, value in headers.items():
            for text in (name.lower().encode("latin-1"), value.encode("latin-1")):
                block += struct.pack(">I", len(text)) + text
        return self._deflate.compress(bytes(block)) + self._deflate.flush(zlib.Z_SYNC_FLUSH)


def _control(kind: int, fin: bool, body: bytes) -> bytes:
    return struct.pack(">HHI", 0x8000 | VERSION, kind, (_FIN << 24 if fin else 0) | len(body)) + body
