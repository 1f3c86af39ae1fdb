"""The seccomp agent: it is sent the descriptor by which a filter asks about calls (runtime-spec, "The Container Process State").

Imported only for a profile that has SCMP_ACT_NOTIFY. The child loads its filter and tells the number of the descriptor by
write(2), which is why a filter must not ask about that one; from then on the agent answers for every other call.
"""

from __future__ import annotations

import os
import sys
from _socket import AF_UNIX, SCM_RIGHTS, SO_SNDTIMEO, SOCK_CLOEXEC, SOCK_STREAM, SOL_SOCKET, socket

from harness.linux import syscalls
from harness.minirt.container import document
from harness.minirt.errors import step_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from harness.minirt.container.seccomp import Listener

_LONGEST_WAIT_S = 10
STEP = "send the seccomp descriptor to its listener"


def send_descriptor(pid: int, number: int, listener: Listener, version: str, state: str) -> None:
    """Send descriptor `number` of the process `pid`, a child of ours, to the agent. `state`: text of the container's state.

    One connection carries one message, and is closed. Raises `StepError`.
    """
    try:
        pidfd = os.pidfd_open(pid)
        try:
            fd = syscalls.pidfd_getfd(pidfd, number)
        finally:
            os.close(pidfd)
        try:
            _send(listener.path, render_message(pid, listener.metadata, version, state), fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise step_error(STEP, error) from None


def render_message(pid: int, metadata: str, version: str, state: str) -> bytes:
    """The container process state."""
    content: dict[str, object] = {"ociVersion": version, "fds": ["seccompFd"], "pid": pid}
    if metadata:
        content["metadata"] = metadata
    return f'{document.render(content)[:-1]},"state":{state}}}'.encode()


def _send(path: str, message: bytes, fd: int) -> None:
    end = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
    try:
        # Who listens, and does not take what it is sent, shall not hold up the runtime for good.
        end.setsockopt(SOL_SOCKET, SO_SNDTIMEO, _LONGEST_WAIT_S.to_bytes(8, sys.byteorder) + bytes(8))
        try:
            end.connect(path)
        except OSError as error:
            named = OSError(error.errno, os.strerror(error.errno or 0), path)
            raise step_error(f"{STEP}: failed to connect with seccomp agent", named) from None
        sent = end.sendmsg([message], [(SOL_SOCKET, SCM_RIGHTS, fd.to_bytes(4, sys.byteorder))])
        if sent < len(message):
            end.sendall(message[sent:])
    finally:
        end.close()
