"""The HTTP request that a stream begins with, and the switch to another protocol."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import Final

import h11

HANDSHAKE_S: Final = 10.0
_READ_BYTES: Final = 16 << 10


class Refusal(Exception):
    """The request is answered by `status` and a text, and by nothing else."""

    def __init__(self, status: HTTPStatus, text: str, headers: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(text)
        self.status, self.text, self.headers = status, text, headers


class Upgrade:
    """One request on a fresh connection."""

    def __init__(self, connection: socket.socket) -> None:
        """Receive it. Raises `Refusal` for what is not a request, `OSError` where none comes in time."""
        self.socket = connection
        self._until = time.monotonic() + HANDSHAKE_S
        self._http = h11.Connection(h11.SERVER)
        try:
            request = self._receive()
            while not isinstance(request, h11.Request):
                request = self._receive()
            self.method = request.method.decode("ascii")
            self.path = request.target.decode("ascii").partition("?")[0]
            self._headers = [(name.decode("ascii"), value.decode("latin-1")) for name, value in request.headers]
            while self._http.their_state is h11.SEND_BODY:
                if isinstance(self._receive(), h11.Data):
                    raise Refusal(HTTPStatus.BAD_REQUEST, "a request without a body is needed")
        except (h11.RemoteProtocolError, UnicodeDecodeError) as error:
            raise Refusal(HTTPStatus.BAD_REQUEST, f"not a request: {error}") from error

    def _receive(self) -> object:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self.socket.settimeout(max(self._until - time.monotonic(), 0.001))
            self._http.receive_data(self.socket.recv(_READ_BYTES))
        if isinstance(event, h11.ConnectionClosed):
            raise ConnectionAbortedError("the client has hung up")
        return event

    def values(self, name: str) -> list[str]:
        """What stands, between commas or in several headers of that name."""
        texts = [value for header, value in self._headers if header == name.lower()]
        return [word.strip() for text in texts for word in text.split(",") if word.strip()]

    @property
    def protocol(self) -> str:
        """What the client wants to switch to, in lower case; "" for nothing."""
        if "upgrade" not in (word.lower() for word in self.values("connection")):
            return ""
        return next(iter(self.values("upgrade")), "").lower()

    def switch(self, headers: Iterable[tuple[str, str]]) -> bytes:
        """Say that the protocol is switched; what the client has sent in the new one already."""
        answer = h11.InformationalResponse(status_code=101, headers=list(headers), reason=b"Switching Protocols")
        self.socket.sendall(self._http.send(answer) or b"")
        return bytes(self._http.trailing_data[0])


def refuse(connection: socket.socket, refusal: Refusal) -> None:
    """Answer whatever came with a refusal, the last thing on the connection."""
    text = f"{refusal.text}\n".encode()
    http = h11.Connection(h11.SERVER)
    headers = [
        ("content-type", "text/plain; charset=utf-8"),
        ("content-length", str(len(text))),
        ("connection", "close"),
        *refusal.headers,
    ]
    reason = refusal.status.phrase.encode()
    answer = http.send(h11.Response(status_code=refusal.status, headers=headers, reason=reason)) or b""
    connection.sendall(answer + (http.send(h11.Data(data=text)) or b""))
