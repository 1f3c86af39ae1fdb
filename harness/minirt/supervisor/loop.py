"""Waiting: descriptors and timers of one thread, over epoll."""

from __future__ import annotations

import time
from _heapq import heappop, heappush
from select import EPOLLERR, EPOLLHUP, EPOLLIN, epoll

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

READABLE = EPOLLIN | EPOLLHUP | EPOLLERR


class Timer:
    """Something that will be called, unless it is cancelled."""

    __slots__ = ("call", "cancelled", "due_ns")

    def __init__(self, due_ns: int, call: Callable[[], None]) -> None:
        self.due_ns = due_ns
        self.call = call
        self.cancelled = False

    def __lt__(self, other: Timer) -> bool:
        return self.due_ns < other.due_ns

    def cancel(self) -> None:
        self.cancelled = True


class Loop:
    """Calls whoever waits for a descriptor or for a time, one after the other, until `stop`."""

    def __init__(self) -> None:
        self._epoll = epoll()
        self._waiting: dict[int, Callable[[], None]] = {}
        self._timers: list[Timer] = []
        self._running = True

    def add(self, fd: int, call: Callable[[], None], events: int = EPOLLIN) -> None:
        """Call `call` whenever `fd` is ready, until `remove`."""
        self._waiting[fd] = call
        self._epoll.register(fd, events)

    def change(self, fd: int, events: int) -> None:
        """Wait for other events of `fd`."""
        self._epoll.modify(fd, events)

    def remove(self, fd: int) -> None:
        """Forget `fd`, before it is closed; nothing happens where it is not waited for."""
        if self._waiting.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def after(self, seconds: float, call: Callable[[], None]) -> Timer:
        """Call `call` once, in `seconds`."""
        timer = Timer(time.monotonic_ns() + int(seconds * 1e9), call)
        heappush(self._timers, timer)
        return timer

    def stop(self) -> None:
        """Have `run` return."""
        self._running = False

    def close(self) -> None:
        """Let go of everything; descriptors stay their owners'."""
        self._epoll.close()

    def run(self) -> None:
        """Wait and call until `stop`. What a callee raises goes through: callees answer for their own errors."""
        while self._running:
            for fd, _ in self._epoll.poll(self._pause()):
                # One that was called a moment ago may have removed this one.
                if call := self._waiting.get(fd):
                    call()
            now = time.monotonic_ns()
            while self._timers and self._timers[0].due_ns <= now:
                timer = heappop(self._timers)
                if not timer.cancelled:
                    timer.call()

    def _pause(self) -> float:
        while self._timers and self._timers[0].cancelled:
            heappop(self._timers)
        if not self._timers:
            return -1
        return max(0.0, (self._timers[0].due_ns - time.monotonic_ns()) / 1e9)
