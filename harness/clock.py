"""Time: a clock that tests can inject, and waiting for a condition without a bare sleep."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol, TypeVar

from harness.errors import WaitTimeout

T = TypeVar("T")


class Clock(Protocol):
    """What the harness needs of a clock."""

    def monotonic_ns(self) -> int: ...

    def thread_cpu_ns(self) -> int: ...

    def sleep(self, seconds: float) -> None: ...


class SystemClock:
    """The machine's own clocks (CLOCK_MONOTONIC, CLOCK_THREAD_CPUTIME_ID)."""

    def monotonic_ns(self) -> int:
        return time.monotonic_ns()

    def thread_cpu_ns(self) -> int:
        return time.thread_time_ns()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


SYSTEM_CLOCK = SystemClock()


def wait_until(
    predicate: Callable[[], T],
    timeout_s: float,
    what: str,
    *,
    longest_pause_s: float = 0.05,
    clock: Clock = SYSTEM_CLOCK,
) -> T:
    """Call `predicate` until it returns something true, and return that.

    Pauses grow from 1 ms to `longest_pause_s` between calls. Raises `WaitTimeout`, which names `what`, after `timeout_s`
    seconds; whatever `predicate` raises goes through.
    """
    deadline = clock.monotonic_ns() + int(timeout_s * 1e9)
    pause_s = 0.001
    while True:
        value = predicate()
        if value:
            return value
        if clock.monotonic_ns() >= deadline:
            raise WaitTimeout(what, timeout_s)
        clock.sleep(pause_s)
        pause_s = min(pause_s * 1.5, longest_pause_s)
