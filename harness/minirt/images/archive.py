"""A tar stream, read once from front to back: headers through `tarfile`, contents straight from the stream's buffers."""

from __future__ import annotations

import struct
import tarfile
from collections.abc import Iterator
from typing import IO, cast

from harness.minirt.errors import InvalidArgument
from harness.minirt.images.compression import Source

BROKEN = (tarfile.TarError, ValueError, EOFError, ArithmeticError, LookupError, TypeError, RecursionError, struct.error)
"""what `tarfile` raises where headers are garbage"""
_CHUNK = 1 << 20
_LARGEST_HEADER_BYTES = 1 << 20
_LARGEST_HEADERS_BYTES = 4 << 20
"""of all before one entry: extended headers are read into memory, and may come one after the other without end"""


class Archive:
    """The entries of the tar stream `source`, one after the other; `copy` is for the content of the last one."""

    def __init__(self, source: Source) -> None:
        self._stream = _Forward(source)

    def __iter__(self) -> Iterator[tarfile.TarInfo]:
        """Raises those of `BROKEN`, and `InvalidArgument`."""
        if self._stream.ended():
            return
        # The constructor reads the first header already, and raises where it is none.
        with tarfile.TarFile(fileobj=cast("IO[bytes]", self._stream), mode="r") as tar:
            member = tar.next()
            while member is not None:
                yield member
                self._stream.headers = 0
                self._stream.seek(tar.offset)
                if self._stream.ended():
                    return  # without the two empty blocks that end an archive: many tools do not write them
                try:
                    member = tarfile.TarInfo.fromtarfile(tar)
                except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
                    return

    def content(self, size: int) -> Iterator[memoryview]:
        """The next `size` bytes. Raises `InvalidArgument` where there are fewer."""
        return self._stream.pieces(size)

    def drain(self) -> None:
        """Read to the end: what stands behind the archive still belongs to its digest."""
        self._stream.drain()


class _Forward:
    """As much of a file as `tarfile` needs: `read`, `tell`, and `seek` forward."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._chunk = memoryview(b"")
        self._at = 0
        self.headers = 0

    def tell(self) -> int:
        return self._at

    def ended(self) -> bool:
        """Whether there is nothing more."""
        return not self._chunk and not self._fill()

    def _fill(self) -> bool:
        self._chunk = memoryview(self._source.read(_CHUNK))
        return bool(self._chunk)

    def _take(self, size: int) -> memoryview:
        """1 to `size` bytes; none at the end."""
        if not self._chunk:
            self._fill()
        part = self._chunk[:size]
        self._chunk = self._chunk[size:]
        self._at += len(part)
        return part

    def read(self, size: int = -1) -> bytes:
        """Headers only, hence few bytes."""
        self.headers += size
        if not 0 <= size <= _LARGEST_HEADER_BYTES or self.headers > _LARGEST_HEADERS_BYTES:
            raise InvalidArgument(f"the layer holds an entry with a header of {max(size, self.headers)} bytes")
        part = bytes(self._take(size))
        while len(part) < size and (more := self._take(size - len(part))):
            part += more
        return part

    def seek(self, position: int, whence: int = 0) -> int:
        if whence or position < self._at:
            raise InvalidArgument("the layer holds an entry that begins before the end of the one before it")
        for _ in self.pieces(position - self._at):
            pass
        return self._at

    def pieces(self, size: int) -> Iterator[memoryview]:
        while size > 0:
            part = self._take(size)
            if not part:
                raise InvalidArgument("the layer is cut off in the middle of an entry")
            size -= len(part)
            yield part

    def drain(self) -> None:
        while self._take(_CHUNK):
            pass
