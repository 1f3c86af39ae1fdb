"""Waiting for a condition that nothing announces."""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def wait_until(predicate: Callable[[], bool], timeout_s: float) -> bool:
    """Call `predicate` until it is true, with pauses from 0.2 ms to 20 ms; whether it became true in time."""
    deadline = time.monotonic() + timeout_s
    pause_s = 0.0002
    while not predicate():
        if time.monotonic() >= deadline:
            return False
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, 0.02)
    return True
