"""One-time tokens: who has one may have, once and soon, what it stands for."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from harness.minirt.errors import Unavailable

LIFETIME_S: Final = 60.0
MOST: Final = 1000
"""that wait to be used"""
_RANDOM_BYTES: Final = 18

Item = TypeVar("Item")


class Tokens(Generic[Item]):
    """What was promised. Safe for threads. `now` tells seconds that only grow."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._items: dict[str, tuple[float, Item]] = {}

    def add(self, item: Item) -> str:
        """A token for `item`. Raises `Unavailable` where too many wait."""
        token = secrets.token_urlsafe(_RANDOM_BYTES)
        with self._lock:
            self._expire()
            if len(self._items) >= MOST:
                raise Unavailable(f"{MOST} streams have been asked for that nobody has fetched")
            self._items[token] = self._now() + LIFETIME_S, item
        return token

    def take(self, token: str) -> Item | None:
        """What the token stands for, which is then worth nothing; None where it is worth nothing."""
        with self._lock:
            self._expire()
            found = self._items.pop(token, None)
        return found[1] if found is not None else None

    def _expire(self) -> None:
        now = self._now()
        for token, (until, _) in list(self._items.items()):  # in the order in which they expire
            if until > now:
                break
            del self._items[token]
