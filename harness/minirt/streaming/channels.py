"""The channels between a client and a process, whatever carries them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Protocol

STDIN: Final = "stdin"
STDOUT: Final = "stdout"
STDERR: Final = "stderr"
ERROR: Final = "error"
RESIZE: Final = "resize"


@dataclass(frozen=True, slots=True)
class Arrived:
    """The client sent something on a channel."""

    channel: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Ended:
    """The client sends nothing more on a channel."""

    channel: str


Event = Arrived | Ended


class Channels(Protocol):
    """A protocol that carries channels, with no input or output of its own."""

    @property
    def outgoing(self) -> bytearray:
        """What is to go to the client; whoever sends it takes it away."""
        ...

    @property
    def opened(self) -> frozenset[str]:
        """The channels that the client has opened so far."""
        ...

    def receive(self, data: bytes) -> Iterable[Event]:
        """What came from the client. Raises `ProtocolError`."""
        ...

    def send(self, channel: str, data: bytes) -> None:
        """Send something; nothing happens where the client does not listen on the channel."""
        ...

    def end(self, channel: str) -> None:
        """Say that nothing more comes on a channel."""
        ...

    def close(self) -> None:
        """Say that nothing more comes at all."""
        ...
