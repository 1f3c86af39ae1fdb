"""How often something is tried again, and how long is waited in between."""

from __future__ import annotations

import email.utils
import time
from collections.abc import Callable
from dataclasses import dataclass

TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
"""status codes of HTTP after which the same request may well succeed"""


@dataclass(frozen=True, slots=True)
class Patience:
    """`tries` in a row without any progress are the end. Waiting doubles from `first_s` up to `longest_s`."""

    tries: int = 5
    first_s: float = 0.5
    longest_s: float = 20.0
    stall_s: float = 30.0
    """how long a connection may be silent before it counts as broken"""
    trickle_s: float = 60.0
    """how long one may be waited for in vain, or for next to nothing, before it does"""
    sleep: Callable[[float], object] = time.sleep

    def wait(self, failed: int, asked_s: float = 0.0) -> None:
        """Wait after the try number `failed` (from 1), or as long as the server asked for, within reason."""
        self.sleep(min(max(self.first_s * 2 ** (failed - 1), asked_s), self.longest_s))


def retry_after(value: str) -> float:
    """The seconds that a Retry-After header asks for (RFC 9110, section 10.2.3); 0 for what is none."""
    try:
        return max(float(value), 0.0) if value.isdigit() else _until(value)
    except (ValueError, TypeError, OverflowError):
        return 0.0


def _until(date: str) -> float:
    return max(email.utils.parsedate_to_datetime(date).timestamp() - time.time(), 0.0) if date else 0.0
