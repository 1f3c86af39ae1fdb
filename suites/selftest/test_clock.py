"""Waiting for a condition."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from harness.clock import wait_until
from harness.errors import WaitTimeout


@dataclass
class FakeClock:
    now_ns: int = 0

    def monotonic_ns(self) -> int:
        return self.now_ns

    def thread_cpu_ns(self) -> int:
        return 0

    def sleep(self, seconds: float) -> None:
        self.now_ns += int(seconds * 1e9)


def test_gives_what_the_predicate_gives() -> None:
    answers = iter(["", 0, "ahoy"])
    assert wait_until(lambda: next(answers), 1, "an answer", clock=FakeClock()) == "ahoy"


def test_gives_up_in_time_and_says_what_for() -> None:
    clock = FakeClock()
    with pytest.raises(WaitTimeout, match=r"waited 2 s for the tide"):
        wait_until(lambda: False, 2, "the tide", clock=clock)
    assert 2e9 <= clock.now_ns < 2.1e9


def test_asks_at_least_once() -> None:
    assert wait_until(lambda: 1, 0, "now", clock=FakeClock()) == 1
