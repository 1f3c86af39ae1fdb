"""The plain bytes of a compressed layer: gzip, zstd, or none at all, told by the first bytes and not by what a manifest says.

A stream may have several gzip members or zstd frames, one behind the other: so write the tools that compress in parallel.
"""

from __future__ import annotations

import sys
import zlib
from typing import Any, Protocol

from harness.minirt.errors import InvalidArgument

GZIP = b"\x1f\x8b"
ZSTD = b"\x28\xb5\x2f\xfd"
_SKIPPABLE = (b"\x2a\x4d\x18", 0x50)
"""zstd: frames of 0x184D2A50 to 0x184D2A5F hold no content (RFC 8878, section 3.1.2)"""
_PIECE = 1 << 18
LARGEST_UNCHECKED_BYTES = 1 << 30
LARGEST_RATIO = 200
"""A layer that unpacks to more than a gigabyte may not unpack to more than so many times its size: it is a bomb."""


class Source(Protocol):
    """What bytes are read from: up to `size`, b"" at the end."""

    def read(self, size: int, /) -> bytes: ...


class Inflater:
    """The plain bytes of `source`. Memory stays bounded whatever the stream holds.

    Reading raises `InvalidArgument` where the stream is damaged, cut off, or grows beyond reason.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        first = b""
        while len(first) < 4 and (part := source.read(4 - len(first))):
            first += part
        self._kind = _kind(first)
        self._pending = first
        self._errors: tuple[type[Exception], ...] = (zlib.error,)
        if self._kind == "zstd":
            self._errors = (_zstd().ZstdError,)
        self._decoder: Any = self._start() if self._kind else None
        self.packed = len(first)
        self.plain = 0

    def _start(self) -> Any:
        return zlib.decompressobj(31) if self._kind == "gzip" else _zstd().ZstdDecompressor()

    def read(self, size: int, /) -> bytes:
        """1 to `size` bytes; b"" at the end."""
        if self._decoder is None:
            part = self._pending[:size] or self._source.read(size)
            self._pending = self._pending[size:]
            return part
        part = self._inflate(size)
        self.plain += len(part)
        if self.plain > LARGEST_UNCHECKED_BYTES and self.plain > LARGEST_RATIO * self.packed:
            raise InvalidArgument(
                f"the layer is a {self._kind} bomb: {self.packed} bytes have grown to {self.plain} and more"
            )
        return part

    def _inflate(self, size: int) -> bytes:
        while True:
            if self._decoder.eof:
                self._next()
                if self._decoder is None:
                    return b""
            if not self._pending and self._needs_input() and not self._feed():
                raise InvalidArgument(f"the layer's {self._kind} stream ends too early")
            part: bytes
            try:
                part = self._decoder.decompress(self._pending, size)
            except self._errors as error:
                raise InvalidArgument(f"the layer's {self._kind} stream is damaged: {error}") from error
            # zlib gives back what it has not consumed; zstd keeps it, and says whether it wants more.
            self._pending = self._decoder.unconsumed_tail if self._kind == "gzip" else b""
            if part:
                return part

    def _needs_input(self) -> bool:
        return self._kind == "gzip" or bool(self._decoder.needs_input)

    def _feed(self) -> bool:
        self._pending = self._source.read(_PIECE)
        self.packed += len(self._pending)
        return bool(self._pending)

    def _next(self) -> None:
        """Go on with the next member or frame; `_decoder` is None after the last."""
        rest = self._decoder.unused_data
        while True:
            rest = rest.lstrip(b"\0")  # padding behind the last member
            if rest:
                break
            if not self._feed():
                self._decoder, self._pending = None, b""
                self._kind = ""
                return
            rest = self._pending
        self._pending = rest
        self._decoder = self._start()


def _kind(first: bytes) -> str:
    if first[:2] == GZIP:
        return "gzip"
    if first == ZSTD or (first[1:] == _SKIPPABLE[0] and first[:1] and first[0] & 0xF0 == _SKIPPABLE[1]):
        return "zstd"
    return ""


def _zstd() -> Any:
    """The library, which only who meets such a layer loads."""
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd
