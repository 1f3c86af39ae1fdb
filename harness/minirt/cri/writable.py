"""How much containers wrote into their roots: measured aside, remembered, and never waited for for long.

A measurement walks a whole folder. It is taken again when somebody asks, at the earliest after a second and after twenty
times as long as it took, so that at most a twentieth of one core's time goes into it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from harness.minirt.images.snapshot import Usage, measure

_LONGEST_WAIT_S = 0.2
_SHORTEST_REST_S = 1.0
_REST = 20


@dataclass(frozen=True, slots=True)
class Measured:
    """`taken_ns`: the wall clock's time of the measurement; 0 where none could be waited for yet."""

    usage: Usage
    taken_ns: int
    stale_at: float


_NOTHING = Measured(Usage(0, 0), 0, 0.0)


class WritableLayers:
    """Remembers the last measurement of each container. Safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._measured: dict[str, Measured] = {}
        self._pending: dict[str, Future[None]] = {}
        self._pool: ThreadPoolExecutor | None = None

    def look(self, folders: Mapping[str, Path]) -> dict[str, Measured]:
        """What each container's folder (by container id) holds, as it was at most a moment ago, or as it was last known."""
        now = time.monotonic()
        with self._lock:
            for id, folder in folders.items():
                if self._measured.get(id, _NOTHING).stale_at <= now and id not in self._pending:
                    self._pool = self._pool or ThreadPoolExecutor(1, "measure")
                    self._pending[id] = self._pool.submit(self._measure, id, folder)
            pending = [self._pending[id] for id in folders if id in self._pending]
        if pending:
            wait(pending, _LONGEST_WAIT_S)
        with self._lock:
            return {id: self._measured.get(id, _NOTHING) for id in folders}

    def forget(self, id: str) -> None:
        """Drop what is known of a container that is gone; a measurement under way will not be kept either."""
        with self._lock:
            self._measured.pop(id, None)
            self._pending.pop(id, None)

    def close(self) -> None:
        """End the thread that measures, if there is one."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _measure(self, id: str, folder: Path) -> None:
        started = time.monotonic()
        usage = measure(folder)
        ended = time.monotonic()
        rest = max(_SHORTEST_REST_S, _REST * (ended - started))
        with self._lock:
            if self._pending.pop(id, None) is not None:
                self._measured[id] = Measured(usage, time.time_ns(), ended + rest)
