"""How the supervisor comes to be: forked from the daemon while that is still tiny, told later whether it is needed.

The daemon forks first and reads its options afterwards, so that not even an option parser is loaded into the supervisor.
"""

from __future__ import annotations

import gc
import os
import time
from _signal import SIG_IGN, SIGINT, SIGTERM, signal  # type: ignore[import-not-found]
from fcntl import LOCK_EX, LOCK_NB, flock
from resource import RLIMIT_NOFILE, getrlimit, setrlimit

from harness.minirt.container.process import Rlimit
from harness.minirt.supervisor.loop import Loop
from harness.minirt.supervisor.server import Server

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

_READY = b"\0"
_LOCK_S = 5.0
_AGAIN_S = 0.01


class Fork:
    """A process that waits to become the supervisor. Either `become` or `dismiss` it."""

    def __init__(self) -> None:
        ours, theirs = os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(theirs[0])
                os.close(ours[1])
                _serve(ours[0], theirs[1])
            finally:
                os._exit(1)
        os.close(ours[0])
        os.close(theirs[1])
        self._tell, self._hear = ours[1], theirs[0]

    def become(self, state: str) -> str:
        """Have it serve ``<state>/supervisor.sock``; "" once it does, else why it cannot."""
        os.write(self._tell, state.encode())
        os.close(self._tell)
        answer = b""
        while part := os.read(self._hear, 4096):
            answer += part
            if answer == _READY:
                break
        os.close(self._hear)
        return "" if answer == _READY else answer.decode(errors="replace") or "it died"

    def dismiss(self) -> None:
        """Let it go: it is not needed."""
        os.close(self._tell)
        os.close(self._hear)
        os.waitpid(self.pid, 0)


def _serve(hear: int, tell: int) -> NoReturn:
    """Wait for the state folder, then serve until the end. Never returns: its caller's stack is the daemon's."""
    os.setsid()
    state = b""
    while part := os.read(hear, 4096):
        state += part
    os.close(hear)
    if not state:
        os._exit(0)
    try:
        loop, lock = _open(state.decode(), getrlimit(RLIMIT_NOFILE)[0])
    except OSError as error:
        os.write(tell, f"the supervisor cannot start: {error}".encode())
        os._exit(1)
    gc.collect()
    gc.freeze()
    os.write(tell, _READY)
    os.close(tell)
    try:
        loop.run()
    except BaseException:  # the last thing to say, to the log, before the end
        import traceback

        traceback.print_exc()
        os._exit(1)
    os.close(lock)
    os._exit(0)


def serve_alone(state: str, files: int) -> int:
    """Be the supervisor of a state folder, whose last one was killed, until the end; the exit status.

    `files`: the soft limit of open files that containers are to have.
    """
    os.setsid()
    until = time.monotonic() + _LOCK_S
    while True:
        try:
            loop, lock = _open(state, files)
            break
        except BlockingIOError:
            # A child that had just been forked may hold the lock for a moment longer than its parent lived.
            if time.monotonic() > until:
                return 1
            time.sleep(_AGAIN_S)
    loop.run()
    os.close(lock)
    return 0


def _open(state: str, files: int) -> tuple[Loop, int]:
    # The lock before the socket: of two daemons that start at once, one finds the other's supervisor.
    lock = os.open(f"{state}/supervisor.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    flock(lock, LOCK_EX | LOCK_NB)
    log = os.open(f"{state}/supervisor.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    # The daemon's own stdio is somebody's pipe, whose reader must not wait for us.
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir("/")
    loop = Loop()
    # Four descriptors a container. What they are themselves started with stays as it was (old programs use select).
    hard = getrlimit(RLIMIT_NOFILE)[1]
    setrlimit(RLIMIT_NOFILE, (hard, hard))
    server = Server(loop, state, Rlimit(RLIMIT_NOFILE, files, hard))
    asleep, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    loop.add(asleep, server.end)
    signal(SIGINT, SIG_IGN)
    signal(SIGTERM, lambda *_: os.write(wake, b"!"))
    server.listen()
    server.adopt()
    return loop, lock


__all__ = ["Fork", "serve_alone"]
