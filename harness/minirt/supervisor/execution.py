"""One more process in a container, for as long as somebody waits for it."""

from __future__ import annotations

import os

from harness.linux import syscalls
from harness.minirt.supervisor.container import reap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from harness.minirt.supervisor.loop import Loop, Timer

_SIGKILL = 9
_MOST_ROUNDS = 50


def parse_stat(text: str) -> tuple[int, int]:
    """``(parent, session)`` of a process, from its /proc/PID/stat."""
    fields = text[text.rindex(")") + 2 :].split()
    return int(fields[1]), int(fields[3])


def family(root: int, candidates: Iterable[int], read_stat: Callable[[int], str]) -> set[int]:
    """Those of `candidates` that descend from `root` or are in a session that it, or a descendant, leads; and `root`."""
    facts: dict[int, tuple[int, int]] = {}
    for pid in candidates:
        try:
            facts[pid] = parse_stat(read_stat(pid))
        except (OSError, ValueError):
            continue
    members = {root}
    while True:
        more = {pid for pid, (parent, session) in facts.items() if parent in members or session in members} - members
        if not more:
            return members
        members |= more


def _read_stat(pid: int) -> str:
    with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
        return file.read(1024).decode(errors="replace")


class Execution:
    """A process that was started in a running container. `done` is called once, with its exit code and whether time ran out."""

    def __init__(
        self,
        loop: Loop,
        pid: int,
        pidfd: int,
        processes: Callable[[], Iterable[int]],
        done: Callable[[dict[str, Any]], None],
    ) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self._loop = loop
        self._processes = processes
        self._done = done
        self._timed_out = False
        self._timer: Timer | None = None
        loop.add(pidfd, self._ended)

    def limit(self, seconds: float) -> None:
        """Kill it, with all that it started, once `seconds` have passed."""
        self._timer = self._loop.after(seconds, self._time_out)

    def _time_out(self) -> None:
        self._timed_out = True
        self.kill()

    def kill(self) -> None:
        """Kill it and all that it started. Stopped first, so that nobody forks while the family is counted."""
        stopped: set[int] = set()
        for _ in range(_MOST_ROUNDS):
            found = family(self.pid, self._processes(), _read_stat) - stopped
            if not found:
                break
            for pid in found:
                _send(pid, 19)
            stopped |= found
        # The family first: a descendant whose parent is gone could not be told from a stranger any more.
        for pid in stopped - {self.pid}:
            _send(pid, _SIGKILL)
        try:
            syscalls.pidfd_send_signal(self.pidfd, _SIGKILL)
        except ProcessLookupError:
            pass

    def _ended(self) -> None:
        self._loop.remove(self.pidfd)
        exit_code = reap(self.pidfd)
        os.close(self.pidfd)
        if self._timer is not None:
            self._timer.cancel()
        self._done({"exit_code": exit_code, "timed_out": self._timed_out})


def _send(pid: int, signal: int) -> None:
    try:
        os.kill(pid, signal)
    except ProcessLookupError:
        pass
