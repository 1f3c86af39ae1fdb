"""One more process in a container, for as long as it runs; it and all that it starts are in a part of the container's cgroup.

That part is how everything that a command has started is found again, whatever its parents and sessions are by then.
"""

from __future__ import annotations

import errno
import os

from harness.linux import syscalls
from harness.minirt.errors import CgroupError
from harness.minirt.supervisor.container import reap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from harness.minirt.container.cgroup import Cgroup
    from harness.minirt.container.launch import Launched
    from harness.minirt.supervisor.loop import Loop, Timer

_SIGKILL = 9
_AGAIN_S = 0.005
_MOST_ROUNDS = 400
"""of killing what does not want to end (a process in uninterruptible sleep), before that is left to the container's end"""


class Place:
    """A part of a container's cgroup, for one command. Nothing here waits."""

    _made = 0

    def __init__(self, whole: Cgroup) -> None:
        """Make it. Raises `OSError`."""
        while True:
            Place._made += 1
            self.cgroup = whole.part(f"exec-{Place._made}")
            try:
                os.mkdir(self._folder, 0o755)
            except FileExistsError:  # an earlier supervisor's, with what a command has left in it
                continue
            return

    @property
    def _folder(self) -> str:
        return self.cgroup.folders[self.cgroup.chief]

    def kill(self) -> None:
        """Send SIGKILL to all that are in it; frozen for that moment on v1, so that nobody forks between count and kill."""
        try:
            if self.cgroup.version == 1 and self.cgroup.chief == "freezer":
                self.cgroup.begin_freeze()
            self.cgroup.signal_all(_SIGKILL)
            self.cgroup.thaw()
        except (CgroupError, OSError) as error:
            print(f"{self._folder}: {error}", flush=True)

    def remove(self) -> bool:
        """Remove it; False where somebody is in it."""
        try:
            os.rmdir(self._folder)
        except FileNotFoundError:
            return True
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
                print(f"{self._folder}: {error}", flush=True)
            return False
        return True


class Execution:
    """A process that was started in a running container. `done` is called once, with its exit code and whether time ran out.

    `left` gets the place where it has ended and something that it has started has not.
    """

    def __init__(
        self,
        loop: Loop,
        launched: Launched,
        place: Place,
        done: Callable[[dict[str, Any]], None],
        left: Callable[[Place], None],
    ) -> None:
        self._pidfd = launched.pidfd
        self._place = place
        self._loop = loop
        self._done = done
        self._left = left
        self._exit_code = 0
        self._killed = False
        self._timed_out = False
        self._rounds = 0
        self._timer: Timer | None = None
        loop.add(self._pidfd, self._ended)

    def limit(self, seconds: float) -> None:
        """Kill it, with all that it started, once `seconds` have passed."""
        self._timer = self._loop.after(seconds, self._time_out)

    def _time_out(self) -> None:
        self._timed_out = True
        self.kill()

    def kill(self) -> None:
        """Kill it and all that it started."""
        self._killed = True
        self._place.kill()
        if self._pidfd >= 0:
            try:
                syscalls.pidfd_send_signal(self._pidfd, _SIGKILL)
            except ProcessLookupError:
                pass

    def _ended(self) -> None:
        self._loop.remove(self._pidfd)
        self._exit_code = reap(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        if self._timer is not None:
            self._timer.cancel()
        self._clear()

    def _clear(self) -> None:
        """Done, once nothing is left of what had to be killed."""
        if not self._place.remove():
            if self._killed and self._rounds < _MOST_ROUNDS:
                self._rounds += 1
                self._place.kill()
                self._loop.after(_AGAIN_S, self._clear)
                return
            self._left(self._place)
        self._done({"exit_code": self._exit_code, "timed_out": self._timed_out})
