"""The streaming server: a port on which who has a token gets the streams that it stands for.

The port is taken when the daemon starts; a thread, and the modules that speak the protocols, come with the first token.
Each connection then has a thread of its own, for as long as it lasts.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from typing import TYPE_CHECKING, Final

from harness.minirt.errors import Unavailable, UsageError
from harness.minirt.streaming.tokens import Tokens

if TYPE_CHECKING:
    from harness.minirt.streaming.session import Grant

_LOGGER = logging.getLogger("minirt.streams")
MOST_STREAMS: Final = 256
"""at a time; further ones are refused"""
MOST_WAITING: Final = 64
"""of those who have shown no token yet; for a further one, who has waited longest is hung up on"""
_BACKLOG: Final = 64
_PAUSE_S: Final = 0.1
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 4))


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT`` or ``[HOST]:PORT``; port 0 is any that is free. Raises `UsageError`."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise UsageError(f"{text!r} is not HOST:PORT")
    return host, int(port)


class StreamingServer:
    """Owns the port and the tokens. Safe for threads."""

    def __init__(self, address: str) -> None:
        """Take the port. Raises `Unavailable` where it cannot be had."""
        host, port = parse_address(address)
        try:
            family, _, _, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            self._socket = socket.create_server(target[:2], family=family, backlog=_BACKLOG)
        except OSError as error:
            raise Unavailable(f"streams cannot be served on {address}: {error}") from error
        shown = f"[{target[0]}]" if family == socket.AF_INET6 else target[0]
        self.base = f"http://{shown}:{self._socket.getsockname()[1]}"
        self._tokens: Tokens[Grant] = Tokens()
        self._lock = threading.Lock()
        self._listening = False
        self._closed = threading.Event()
        self._waiting: dict[socket.socket, None] = {}
        self._admitted: set[socket.socket] = set()

    def promise(self, grant: Grant) -> str:
        """The URL at which, once and soon, the streams of `grant` are. Raises `Unavailable`."""
        with self._lock:
            if not self._listening:
                threading.Thread(target=self._listen, name="streams", daemon=True).start()
                self._listening = True
        return f"{self.base}/{grant.kind}/{self._tokens.add(grant)}"

    def close(self) -> None:
        """Take no more connections. Those that there are end with the daemon."""
        self._closed.set()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes up who waits in accept
        self._socket.close()

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError as error:
                if self._closed.is_set():
                    return
                _LOGGER.warning("a stream cannot be taken: %s", error)
                self._closed.wait(_PAUSE_S)  # out of descriptors, most likely: others give theirs back
                continue
            self._let_wait(connection)
            try:
                threading.Thread(target=self._serve, args=(connection,), name="stream", daemon=True).start()
            except RuntimeError as error:
                _LOGGER.warning("there is no thread for a stream: %s", error)
                connection.close()
                self._forget(connection)

    def _let_wait(self, connection: socket.socket) -> None:
        with self._lock:
            self._waiting[connection] = None
            if len(self._waiting) > MOST_WAITING:
                oldest = next(iter(self._waiting))
                del self._waiting[oldest]
                with contextlib.suppress(OSError):
                    oldest.shutdown(socket.SHUT_RDWR)  # its thread does the rest

    def _admit(self, connection: socket.socket) -> bool:
        """Whether there is room for one more stream."""
        with self._lock:
            if len(self._admitted) >= MOST_STREAMS:
                return False
            self._waiting.pop(connection, None)
            self._admitted.add(connection)
            return True

    def _forget(self, connection: socket.socket) -> None:
        with self._lock:
            self._waiting.pop(connection, None)
            self._admitted.discard(connection)

    def _serve(self, connection: socket.socket) -> None:
        from harness.minirt.streaming.frames import ProtocolError
        from harness.minirt.streaming.session import serve

        try:
            with connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                for option, value in _KEEPALIVE:
                    connection.setsockopt(socket.IPPROTO_TCP, option, value)
                serve(connection, self._tokens, lambda: self._admit(connection))
        except (OSError, ProtocolError) as error:
            _LOGGER.debug("a stream was cut off: %s", error)
        finally:
            self._forget(connection)
