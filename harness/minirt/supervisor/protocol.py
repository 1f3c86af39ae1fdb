"""What daemon and supervisor say to each other: JSON objects, each behind its length, with descriptors where needed.

A frame is four bytes of length (big endian) and that many bytes of UTF-8 JSON. Descriptors travel with the frame's first
byte (SCM_RIGHTS), and the object's ``fds`` tells how many are its. A request has ``op`` and its arguments; its answer
has ``result`` or ``error`` (the name of an exception of `harness.minirt.errors`, and a text). A connection has one
request under way at a time; after ``subscribe`` it carries events instead.
"""

from __future__ import annotations

import os
import sys
from _socket import CMSG_SPACE, MSG_CMSG_CLOEXEC, SCM_RIGHTS, SOL_SOCKET

from harness.minirt.container import document

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from typing import Any

VERSION = 1
LARGEST_FRAME_BYTES = 16 << 20
_MOST_FDS = 8
_INT_BYTES = 4
_READ_BYTES = 1 << 16
_ORDER = sys.byteorder


class ProtocolError(Exception):
    """The other side does not keep to the protocol; the connection is of no use any more."""


def frame(message: dict[str, Any]) -> bytes:
    """The bytes of a message. Raises `ProtocolError` for one that is too long."""
    raw = document.render(message).encode()
    if len(raw) > LARGEST_FRAME_BYTES:
        raise ProtocolError(f"a message of {len(raw)} bytes is too long")
    return len(raw).to_bytes(4, "big") + raw


def send(connection: socket, message: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
    """Send one message on a blocking connection; the caller keeps its own copies of `fds`."""
    raw = frame({**message, "fds": len(fds)} if fds else message)
    sent = 0
    if fds:
        packed = b"".join(fd.to_bytes(_INT_BYTES, _ORDER) for fd in fds)
        sent = connection.sendmsg([raw], [(SOL_SOCKET, SCM_RIGHTS, packed)])
    connection.sendall(raw[sent:])


class Inbox:
    """Puts together what arrives on a connection; owns the descriptors that no message has claimed yet."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._fds: list[int] = []

    def receive(self, connection: socket) -> bool:
        """Read once; False at the end of the connection. Raises `OSError` (`BlockingIOError` where nothing is there)."""
        space = CMSG_SPACE(_MOST_FDS * _INT_BYTES)
        data, ancillary, _, _ = connection.recvmsg(_READ_BYTES, space, MSG_CMSG_CLOEXEC)
        for level, kind, packed in ancillary:
            if (level, kind) == (SOL_SOCKET, SCM_RIGHTS):
                words = range(0, len(packed) - len(packed) % _INT_BYTES, _INT_BYTES)
                self._fds += [int.from_bytes(packed[at : at + _INT_BYTES], _ORDER) for at in words]
        self._data += data
        return bool(data)

    def take(self) -> tuple[dict[str, Any], list[int]] | None:
        """The next whole message with its descriptors, which are the caller's now; None where there is none yet.

        Raises `ProtocolError`.
        """
        if len(self._data) < 4:
            return None
        length = int.from_bytes(self._data[:4], "big")
        if length > LARGEST_FRAME_BYTES:
            raise ProtocolError(f"a message of {length} bytes is announced, which is too long")
        if len(self._data) < 4 + length:
            return None
        try:
            message = document.parse(self._data[4 : 4 + length].decode())
        except ValueError as error:
            raise ProtocolError(f"a message is not JSON: {error}") from error
        del self._data[: 4 + length]
        if not isinstance(message, dict):
            raise ProtocolError("a message is not an object")
        count = message.pop("fds", 0)
        if not isinstance(count, int) or not 0 <= count <= len(self._fds):
            raise ProtocolError(f"{count!r} descriptors are announced, {len(self._fds)} have come")
        fds, self._fds = self._fds[:count], self._fds[count:]
        return message, fds

    def close(self) -> None:
        """Close what nobody claimed."""
        for fd in self._fds:
            os.close(fd)
        self._fds = []
