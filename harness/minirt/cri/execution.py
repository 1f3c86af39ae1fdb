"""ExecSync: a process in a container whose output is gathered, up to a limit, until it ends."""

from __future__ import annotations

import contextlib
import math
import os
import select
import time
from collections.abc import Callable, Mapping
from typing import Any

from harness.minirt.errors import TimedOut
from harness.minirt.supervisor.client import Supervisor

LIMIT_BYTES = (16 << 20) - 4096
"""of both streams together; what comes after it is read and thrown away (CRI, ExecSyncResponse). kubelet and crictl take
no message above 16 MB, with all that is around the output."""
_READ_BYTES = 1 << 16
_LOOK_UP_S = 0.5
DRAIN_S = 1.0
"""for which a command's output is read on after its end, where somebody whom it has left behind still holds it"""


class _Gathered:
    """What a stream gave so far."""

    def __init__(self) -> None:
        self.data = bytearray()

    def pump(self, fd: int) -> bool:
        """Read once; False at the end of the stream. Raises `BlockingIOError` where nothing is there."""
        part = os.read(fd, _READ_BYTES)
        if len(self.data) < LIMIT_BYTES:
            self.data += part[: LIMIT_BYTES - len(self.data)]
        return bool(part)


def run_to_end(
    supervisor: Supervisor,
    container_id: str,
    process: Mapping[str, Any],
    timeout_s: float,
    cancelled: Callable[[], bool],
) -> tuple[bytes, bytes, int]:
    """stdout, stderr and exit code of `process` (as config.json has it) in a container.

    Raises `TimedOut` after `timeout_s` (0: never) or once `cancelled`; nothing of the process is left then.
    """
    with contextlib.ExitStack() as stack:
        null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, null)
        outputs: dict[int, _Gathered] = {}
        theirs = []
        for _ in range(2):
            reading, writing = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(reading, False)
            stack.callback(os.close, reading)
            outputs[reading] = _Gathered()
            theirs.append(writing)
        try:
            request = supervisor.begin(
                "exec", (null, *theirs), id=container_id, process=dict(process), timeout_s=timeout_s, lingers=False
            )
            connection = stack.enter_context(request)
        finally:
            for fd in theirs:
                os.close(fd)
        result = _gather(connection, outputs, cancelled)
    if result["timed_out"]:
        raise TimedOut(f"the command did not end within {timeout_s:g} s and was killed")
    out, err = outputs.values()
    return bytes(out.data), bytes(err.data[: LIMIT_BYTES - len(out.data)]), int(result["exit_code"])


def _gather(connection: Any, outputs: Mapping[int, _Gathered], cancelled: Callable[[], bool]) -> dict[str, Any]:
    """The supervisor's word on the command, once it has ended and so has its output, or `DRAIN_S` later."""
    result: dict[str, Any] | None = None
    open_outputs = set(outputs)
    until = math.inf
    waiting = select.poll()
    answer = connection.socket.fileno()
    for fd in (answer, *outputs):
        waiting.register(fd, select.POLLIN)
    while result is None or (open_outputs and time.monotonic() < until):
        ready = [fd for fd, _ in waiting.poll(min(_LOOK_UP_S, max(until - time.monotonic(), 0)) * 1000)]
        for fd in ready:
            if fd != answer:
                with contextlib.suppress(BlockingIOError):
                    if not outputs[fd].pump(fd):
                        waiting.unregister(fd)
                        open_outputs.discard(fd)
        if answer in ready:
            result = connection.answer()
            waiting.unregister(answer)
            until = time.monotonic() + (0 if result["timed_out"] else DRAIN_S)
        if not ready and cancelled():
            raise TimedOut("the call was cancelled, and the command killed")
    return result
