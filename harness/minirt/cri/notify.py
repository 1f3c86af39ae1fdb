"""Words to the service manager that started us, if one did and wants to hear them (sd_notify(3): one datagram each)."""

from __future__ import annotations

import contextlib
import os
import socket

_VARIABLE = "NOTIFY_SOCKET"


class ServiceManager:
    """Who started us. Its address is taken out of the environment: what we start is not to speak for us."""

    def __init__(self) -> None:
        self._address = os.environ.pop(_VARIABLE, "")

    def tell(self, *words: str) -> None:
        """Send ``READY=1``, ``STOPPING=1``, ``STATUS=...``; nothing happens where nobody wants to hear it."""
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        # Whoever does not listen any more is told nothing: that is no reason not to serve.
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as way,
        ):
            way.sendto("\n".join(words).encode(), address)
