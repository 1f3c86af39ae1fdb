"""The gauge of a cgroup that is not there: every value is absent, and there is one reason for it."""

from __future__ import annotations

from harness.meter.gauge import Reading


class NullGauge:
    """Reads nothing. `reason` says why, and is empty where nothing is missed (an OCI runtime has no daemon)."""

    def __init__(self, reason: str = "") -> None:
        self.notes: tuple[str, ...] = (reason,) if reason else ()

    def cpu_ns(self) -> int | None:
        return None

    def memory(self) -> Reading:
        return Reading()

    def pids(self) -> list[int]:
        return []

    def close(self) -> None:
        """Nothing is open."""
