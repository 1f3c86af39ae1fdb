"""Hooks: programs that an engine has run at moments of a container's life (runtime-spec, "POSIX-platform Hooks").

Each gets the container's state as JSON on its standard input, and the environment that it says. The specification does not
say what one without ``env`` has; callers know it from runc: of the runtime's own side that of the runtime, of
`createContainer` none, of `startContainer` that of the container's process. One that fails or takes
longer than its timeout ends the list with a `HookError`, which carries the end of what it said.
"""

from __future__ import annotations

import select
import time

from harness.linux import lean as os
from harness.minirt.container.record import Record
from harness.minirt.errors import HookError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

NAMES = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
_LONGEST_TEXT = 4096
_LONGEST_POLL_MS = 3_600_000
_MOST_READS = 16
_SIGKILL = 9


class Hook(Record):
    """One program to run. `env` is its whole environment; None: it says nothing of one."""

    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] | None = None
    timeout_s: int | None = None


def run_hooks(name: str, hooks: Iterable[Hook], state: str, env: Iterable[str] | None = None) -> None:
    """Run hooks one after the other; `state` is the text of the state document.

    `env`: the environment of those that have none, None: that of this process.
    """
    for index, hook in enumerate(hooks):
        entries = env if hook.env is None else hook.env
        variables = os.environ if entries is None else dict(entry.partition("=")[::2] for entry in entries)
        _run(f"error running {name} hook #{index}", hook, state.encode(), variables)


def _run(what: str, hook: Hook, state: bytes, env: Mapping[str, str]) -> None:
    stdin = os.memfd_create("state", os.MFD_CLOEXEC)
    os.write(stdin, state)
    os.lseek(stdin, 0, os.SEEK_SET)
    reader, writer = os.pipe2(os.O_CLOEXEC)
    # Our end alone: a hook that has much to say is to wait for us, not to be told to try again.
    os.set_blocking(reader, False)
    try:
        try:
            pid = os.posix_spawn(
                hook.path,
                list(hook.args) or [hook.path],
                env,
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, stdin, 0),
                    (os.POSIX_SPAWN_DUP2, writer, 1),
                    (os.POSIX_SPAWN_DUP2, writer, 2),
                ],
                # A group of its own, by which what it started can be ended with it.
                setpgroup=0,
                setsigdef=(13, 25),
                setsigmask=(),
            )
        except OSError as error:
            raise HookError(f"{what}: {hook.path}: {os.strerror(error.errno or 0).lower()}") from error
        os.close(writer)
        writer = -1
        status, said = _await(pid, reader, hook.timeout_s)
    finally:
        os.close(stdin)
        os.close(reader)
        if writer >= 0:
            os.close(writer)
    if status is None:
        raise HookError(f"{what}: {hook.path} did not end within {hook.timeout_s} s, said: {said}")
    if status:
        ended = f"exit status {status}" if status > 0 else f"signal {-status}"
        raise HookError(f"{what}: {ended}, stdout: , stderr: {said}")


def _await(pid: int, reader: int, timeout_s: int | None) -> tuple[int | None, str]:
    """Its exit status (None: it had to be killed) and the end of its output. Reaps it."""
    pidfd = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.register(reader, select.POLLIN)
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    said = b""
    ended = late = False
    while not ended:
        left_ms = None if deadline is None else (deadline - time.monotonic()) * 1000
        if left_ms is not None and left_ms <= 0:
            # Our own child, not reaped yet: the number is still its own.
            os.killpg(pid, _SIGKILL)
            late = True
            break
        events = poll.poll(None if left_ms is None else min(left_ms + 1, _LONGEST_POLL_MS))
        ended = any(fd == pidfd for fd, _ in events)
        said = _drain(reader, said, poll)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(pidfd)
    said = _drain(reader, said, poll)
    return (None if late else code), said.decode(errors="replace").strip()


def _drain(reader: int, said: bytes, poll: select.poll) -> bytes:
    # Not to the last byte: there are programs that write faster than anybody reads, and the clock has to be looked at.
    for _ in range(_MOST_READS):
        try:
            part = os.read(reader, 65536)
        except BlockingIOError:
            return said
        if not part:
            try:
                poll.unregister(reader)
            except KeyError:
                pass
            return said
        said = (said + part)[-_LONGEST_TEXT:]
    return said
