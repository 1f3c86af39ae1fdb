"""Signals during a run: SIGTERM on the way out of Ctrl-C, and both held back while everything is taken down."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType


class Terminated(KeyboardInterrupt):
    """SIGTERM, on the same way out as Ctrl-C."""

    @classmethod
    def number(cls, interrupt: KeyboardInterrupt) -> int:
        """The signal that an interrupt stands for."""
        return signal.SIGTERM if isinstance(interrupt, cls) else signal.SIGINT


@contextlib.contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """SIGTERM raises `Terminated`."""

    def raise_terminated(number: int, frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, raise_terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def deaf() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back while everything is taken down and the report written: it takes a second or two."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
