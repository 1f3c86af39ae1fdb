"""The CRI itself, call by call, beside the verbs that all clients share: `CriDoor`.

A request is the fields of its protobuf message as plain data, named as in ``api.proto`` of cri-api v1; an answer is the
protobuf message. So a suite can say everything that the interface has words for, and sees everything that it answers.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import SplitResult

from harness.linux import namespaces

CALL_TIMEOUT_S = 60.0
CONNECT_S = 10.0


class CriDoor(Protocol):
    """One way to make the calls of the CRI."""

    @property
    def blind(self) -> frozenset[str]:
        """What it does not pass on of what a runtime answers or is asked, as ``Rpc.field``."""
        ...

    def call(self, rpc: str, request: Mapping[str, Any], timeout_s: float = CALL_TIMEOUT_S) -> Any:
        """Make the call `rpc` and return its answer.

        Raises `RuntimeRefusal` with the name of the gRPC status as its code, and `NotExpressible` for what this way has
        no words for.
        """
        ...

    def stream(self, rpc: str, request: Mapping[str, Any]) -> contextlib.AbstractContextManager[Iterator[Any]]:
        """The answers of a call that gives one after the other; the call is under way when this is entered."""
        ...


def dial(netns: Path, address: SplitResult | tuple[str, int], timeout_s: float = CONNECT_S) -> socket.socket:
    """A connection to a TCP address, made from inside a network namespace. Raises `OSError`."""
    where = (address.hostname or "", address.port or 80) if isinstance(address, SplitResult) else address
    outcome: list[socket.socket | OSError] = []

    def connect() -> None:
        # The namespace of a thread is its own, and ends with it; a socket stays in the one that it was made in.
        try:
            with netns.open() as entry:
                namespaces.enter([entry.fileno()])
            outcome.append(socket.create_connection(where, timeout_s))
        except OSError as error:
            outcome.append(error)

    thread = threading.Thread(target=connect, name="dial")
    thread.start()
    thread.join()
    (found,) = outcome
    if isinstance(found, OSError):
        raise found
    return found
