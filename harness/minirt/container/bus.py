"""A client of D-Bus, as small as talking to systemd needs: unix sockets, authentication by uid, calls, and signals.

The wire format is that of the D-Bus specification ("Message Protocol", "Authentication Protocol"), little-endian. Values are
plain ones of Python, told by a signature: numbers, texts, lists for arrays, tuples for structs; a variant is a pair of its own
signature and the value.
"""

from __future__ import annotations

import errno
import os
import struct
import time
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_STREAM, socket

from harness.minirt.errors import MinirtError, TimedOut, Unavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

_NUMBERS = {
    "y": ("B", 1),
    "n": ("h", 2),
    "q": ("H", 2),
    "i": ("i", 4),
    "u": ("I", 4),
    "x": ("q", 8),
    "t": ("Q", 8),
    "d": ("d", 8),
}
_ALIGNMENTS = {"b": 4, "s": 4, "o": 4, "g": 1, "a": 4, "(": 8, "{": 8, "v": 1}
_CALL, _RETURN, _ERROR, _SIGNAL = 1, 2, 3, 4
_PATH, _INTERFACE, _MEMBER, _ERROR_NAME, _REPLY_TO, _DESTINATION, _BODY_SIGNATURE = 1, 2, 3, 4, 5, 6, 8
_HEADER_BYTES = 16
_LONGEST_BYTES = 1 << 27
BUS_NAME = "org.freedesktop.DBus"


class BusError(MinirtError):
    """The other side answered with an error; `name` is that of the specification's ``org.freedesktop.DBus.Error...``."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{text or 'no reason is given'} ({name})")
        self.name = name


def split(signature: str) -> list[str]:
    """The single complete types of a signature. Raises `ValueError`."""
    found = []
    while signature:
        size = _size_of_type(signature)
        found.append(signature[:size])
        signature = signature[size:]
    return found


def _size_of_type(signature: str) -> int:
    if signature[:1] == "a":
        return 1 + _size_of_type(signature[1:])
    if signature[:1] in ("(", "{"):
        closing = {"(": ")", "{": "}"}[signature[0]]
        at = 1
        while signature[at : at + 1] != closing:
            at += _size_of_type(signature[at:])
        return at + 1
    if signature[:1] not in _NUMBERS and signature[:1] not in ("b", "s", "o", "g", "v"):
        raise ValueError(f"{signature!r} is not the signature of a type")
    return 1


def _alignment(kind: str) -> int:
    return _NUMBERS[kind][1] if kind in _NUMBERS else _ALIGNMENTS[kind]


def marshal(signature: str, values: Iterable[Any], out: bytearray | None = None) -> bytearray:
    """The bytes of values, behind those of `out`, whose beginning is aligned. Raises `ValueError`, and `struct.error`."""
    out = bytearray() if out is None else out
    for kind, value in zip(split(signature), values, strict=True):
        _marshal_one(kind, value, out)
    return out


def _pad(out: bytearray, alignment: int) -> None:
    out += b"\0" * (-len(out) % alignment)


def _marshal_one(kind: str, value: Any, out: bytearray) -> None:
    first = kind[0]
    _pad(out, _alignment(first))
    if first in _NUMBERS:
        out += struct.pack(f"<{_NUMBERS[first][0]}", value)
    elif first == "b":
        out += struct.pack("<I", bool(value))
    elif first in ("s", "o"):
        text = value.encode()
        out += struct.pack("<I", len(text)) + text + b"\0"
    elif first == "g":
        text = value.encode()
        out += bytes([len(text)]) + text + b"\0"
    elif first == "v":
        _marshal_one("g", value[0], out)
        _marshal_one(value[0], value[1], out)
    elif first == "a":
        at = len(out)
        out += b"\0\0\0\0"
        _pad(out, _alignment(kind[1]))
        start = len(out)
        for item in value:
            _marshal_one(kind[1:], item, out)
        struct.pack_into("<I", out, at, len(out) - start)
    else:
        marshal(kind[1:-1], value, out)


def unmarshal(signature: str, data: bytes, at: int = 0) -> tuple[list[Any], int]:
    """The values, and where they end. Raises `ValueError` for what is too short, and `struct.error`."""
    values = []
    for kind in split(signature):
        value, at = _unmarshal_one(kind, data, at)
        values.append(value)
    return values, at


def _unmarshal_one(kind: str, data: bytes, at: int) -> tuple[Any, int]:
    first = kind[0]
    at += -at % _alignment(first)
    if first in _NUMBERS:
        letter, size = _NUMBERS[first]
        return struct.unpack_from(f"<{letter}", data, at)[0], at + size
    if first == "b":
        return bool(struct.unpack_from("<I", data, at)[0]), at + 4
    if first in ("s", "o", "g"):
        size, at = (data[at], at + 1) if first == "g" else (struct.unpack_from("<I", data, at)[0], at + 4)
        if at + size >= len(data):
            raise ValueError("the message ends too early")
        return data[at : at + size].decode(), at + size + 1
    if first == "v":
        inner, at = _unmarshal_one("g", data, at)
        value, at = _unmarshal_one(inner, data, at)
        return (inner, value), at
    if first == "a":
        (size,) = struct.unpack_from("<I", data, at)
        at += 4
        at += -at % _alignment(kind[1])
        end = at + size
        if end > len(data):
            raise ValueError("the message ends too early")
        items = []
        while at < end:
            item, at = _unmarshal_one(kind[1:], data, at)
            items.append(item)
        return items, at
    values, at = unmarshal(kind[1:-1], data, at)
    return tuple(values), at


class Message:
    """One message, with the header fields that matter here."""

    __slots__ = ("body", "fields", "kind", "serial")

    def __init__(self, kind: int, serial: int, fields: dict[int, Any], body: list[Any]) -> None:
        self.kind, self.serial, self.fields, self.body = kind, serial, fields, body

    @property
    def member(self) -> str:
        return str(self.fields.get(_MEMBER, ""))


def pack(kind: int, serial: int, fields: dict[int, tuple[str, Any]], signature: str, values: Iterable[Any]) -> bytes:
    """A whole message."""
    body = marshal(signature, values)
    if signature:
        fields = fields | {_BODY_SIGNATURE: ("g", signature)}
    head = marshal("yyyyuua(yv)", (ord("l"), kind, 0, 1, len(body), serial, list(fields.items())))
    _pad(head, 8)
    return bytes(head + body)


def size_of(head: bytes) -> int:
    """How many bytes a message has, by its first 16. Raises `ValueError` for what is none of ours."""
    if head[:1] != b"l":
        raise ValueError("the message is big-endian")
    body, _, fields = struct.unpack_from("<III", head, 4)
    size = int(_HEADER_BYTES + fields + -fields % 8 + body)
    if size > _LONGEST_BYTES:
        raise ValueError("the message is too long")
    return size


def unpack(message: bytes) -> Message:
    """Undo `pack`."""
    (_, kind, _, _, _, serial, rows), at = unmarshal("yyyyuua(yv)", message)
    fields = {number: value for number, (_, value) in rows}
    at += -at % 8
    body, _ = unmarshal(fields.get(_BODY_SIGNATURE, ""), message[at:])
    return Message(kind, serial, fields, body)


def parse_addresses(text: str) -> list[str]:
    """The socket addresses that a bus address stands for, those of a kind that we can connect to."""
    found = []
    for entry in text.split(";"):
        transport, _, rest = entry.partition(":")
        pairs = dict(pair.split("=", 1) for pair in rest.split(",") if "=" in pair)
        if transport == "unix" and "path" in pairs:
            found.append(_unescape(pairs["path"]))
        elif transport == "unix" and "abstract" in pairs:
            found.append("\0" + _unescape(pairs["abstract"]))
    return found


def _unescape(value: str) -> str:
    first, *rest = value.split("%")
    return first + "".join(chr(int(part[:2], 16)) + part[2:] for part in rest)


class Bus:
    """A connection to a message bus; with `direct` to somebody who speaks as one without being one. A context manager."""

    def __init__(self, address: str, *, direct: bool = False, timeout_s: float = 30.0) -> None:
        """Connect to a socket address. Raises `Unavailable`."""
        self._timeout_s = timeout_s
        self._serial = 0
        self._signals: list[Message] = []
        self._end = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
        self._end.settimeout(timeout_s)
        shown = address.replace("\0", "@")
        try:
            self._end.connect(address)
            self._authenticate()
            if not direct:
                self.call(BUS_NAME, "/org/freedesktop/DBus", BUS_NAME, "Hello")
        except OSError as error:
            self._end.close()
            reason = os.strerror(error.errno).lower() if error.errno else "it does not answer in time"
            raise Unavailable(f"cannot connect to the bus {shown}: {reason}") from None
        except MinirtError as error:
            self._end.close()
            raise Unavailable(f"cannot connect to the bus {shown}: {error}") from None

    def __enter__(self) -> Bus:
        return self

    def __exit__(self, *_: object) -> None:
        self._end.close()

    def _authenticate(self) -> None:
        """SASL's EXTERNAL: the socket itself tells who we are."""
        uid = str(os.geteuid()).encode().hex()
        self._end.sendall(b"\0AUTH EXTERNAL " + uid.encode() + b"\r\n")
        said = b""
        while not said.endswith(b"\r\n"):
            # One byte at a time: what follows the line is not to be read yet.
            byte = self._end.recv(1)
            if not byte:
                raise OSError(errno.ECONNRESET, "the bus hung up")
            said += byte
        if not said.startswith(b"OK"):
            raise OSError(errno.EACCES, f"the bus refuses us: {said.decode(errors='replace').strip()}")
        self._end.sendall(b"BEGIN\r\n")

    def call(
        self, destination: str, path: str, interface: str, member: str, signature: str = "", *values: Any
    ) -> list[Any]:
        """Call a method; what it returns. Raises `BusError`, `TimedOut` and `Unavailable`."""
        self._serial += 1
        fields = {
            _PATH: ("o", path),
            _INTERFACE: ("s", interface),
            _MEMBER: ("s", member),
            _DESTINATION: ("s", destination),
        }
        serial = self._serial
        try:
            self._end.sendall(pack(_CALL, serial, fields, signature, values))
        except OSError as error:
            raise Unavailable(f"the bus does not take a call of {member}: {error.strerror}") from None
        deadline = time.monotonic() + self._timeout_s
        while True:
            message = self._receive(deadline, member)
            if message.fields.get(_REPLY_TO) != serial:
                if message.kind == _SIGNAL:
                    self._signals.append(message)
                continue
            if message.kind == _ERROR:
                text = message.body[0] if message.body and isinstance(message.body[0], str) else ""
                raise BusError(str(message.fields.get(_ERROR_NAME, "")), text)
            return message.body

    def await_signal(self, member: str, matches: Callable[[list[Any]], bool], timeout_s: float) -> list[Any]:
        """The content of a signal that has come already, or comes within the time. Raises `TimedOut` and `Unavailable`."""
        deadline = time.monotonic() + timeout_s
        while True:
            while self._signals:
                message = self._signals.pop(0)
                if message.member == member and matches(message.body):
                    return message.body
            message = self._receive(deadline, member)
            if message.kind == _SIGNAL:
                self._signals.append(message)

    def _receive(self, deadline: float, what: str) -> Message:
        try:
            head = self._read(_HEADER_BYTES, deadline)
            return unpack(head + self._read(size_of(head) - _HEADER_BYTES, deadline))
        except TimeoutError:
            raise TimedOut(f"the bus did not answer about {what} in time") from None
        except (OSError, ValueError, struct.error) as error:
            raise Unavailable(f"the bus broke off before it answered about {what}: {error}") from None

    def _read(self, size: int, deadline: float) -> bytes:
        parts = b""
        while len(parts) < size:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            self._end.settimeout(left_s)
            part = self._end.recv(size - len(parts))
            if not part:
                raise OSError(errno.ECONNRESET, "the other side hung up")
            parts += part
        return parts
