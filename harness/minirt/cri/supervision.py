"""The daemon's watch over its supervisor: what it says is passed on, and one that was killed gets a successor."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from harness.minirt.cri import log
from harness.minirt.errors import Unavailable
from harness.minirt.supervisor.client import Supervisor

GONE: Final = "the supervisor has gone: containers go on, but cannot be started or watched until there is another"
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 30.0
_BEGIN_S: Final = 10.0

Facts = Mapping[str, Mapping[str, Any]]


class Supervision:
    """One thread. `welcome` gets what a supervisor knows of containers, by id, each time when one is found; `event` the rest.

    `lost` is called when a supervisor has gone, before the next one is looked for.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        state: str,
        child: int,
        *,
        files: int,
        welcome: Callable[[Facts], None],
        event: Callable[[Mapping[str, Any]], None],
        lost: Callable[[], None],
    ) -> None:
        """`child`: the supervisor's pid, where it is this process's child; else 0.

        `files`: the soft limit of open files that containers have.
        """
        self.problem = ""
        """why containers cannot be run, in words; empty where they can"""
        self._supervisor = supervisor
        self._state = state
        self._files = files
        self._child = child
        self._welcome = welcome
        self._event = event
        self._lost = lost
        self._failure: BaseException | None = None
        self._begun = threading.Event()
        self._closed = threading.Event()

    def start(self) -> None:
        """Follow the supervisor from now on; returns once it was welcomed. Raises what the first welcome raised."""
        threading.Thread(target=self._run, name="events", daemon=True).start()
        self._begun.wait()
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """The end of this supervisor, if it comes, is of no interest any more."""
        self._closed.set()

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                self._supervisor.follow(self._greet, self._event)
            except Exception as error:
                if not self._begun.is_set():
                    self._failure = error
                    self._begun.set()
                    return
                log.warning("what the supervisor said could not be dealt with", error=error)
            if not self._begun.is_set():
                self._failure = Unavailable("the supervisor has gone before it could be asked anything")
                self._begun.set()
                return
            if not self._closed.is_set():
                self.problem = GONE
                self._supervisor.close()
                self._lost()
                log.warning(GONE)
                self._find_another()

    def _greet(self, facts: Mapping[str, Any]) -> None:
        self._welcome({row["id"]: row for row in facts["containers"]})
        if self._begun.is_set():
            log.info("there is a supervisor again", process=facts["pid"])
        self.problem = ""
        self._begun.set()

    def _find_another(self) -> None:
        """Return when there is a supervisor, or none is needed any more."""
        pause_s = _FIRST_PAUSE_S
        while not self._closed.is_set() and not self._is_there():
            self._reap()
            self._child = _spawn(self._state, self._files)
            until = time.monotonic() + _BEGIN_S
            while time.monotonic() < until and not self._has_ended():
                if self._is_there():
                    return
                self._closed.wait(0.01)
            log.warning("no new supervisor could be started", see=f"{self._state}/supervisor.log")
            self._closed.wait(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _is_there(self) -> bool:
        try:
            self._supervisor.call("hello")
        except Unavailable:
            return False
        return True

    def _has_ended(self) -> bool:
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(self._child, os.WNOHANG)[0] == 0:
                return False
        self._child = 0
        return True

    def _reap(self) -> None:
        if self._child:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self._child, 0)
            self._child = 0


def _spawn(state: str, files: int) -> int:
    """A new supervisor from scratch: this process has threads, and is too large to be forked into one. Its pid."""
    argv = [sys.executable, "-m", "harness.minirt", "supervise", state, str(files)]
    null = [(os.POSIX_SPAWN_OPEN, fd, "/dev/null", os.O_RDWR, 0) for fd in (0, 1)]
    return os.posix_spawn(sys.executable, argv, os.environ, file_actions=null, setsigmask=())
