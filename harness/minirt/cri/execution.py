"""ExecSync: a process in a container whose output is gathered, up to a limit, until it ends."""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Callable, Mapping
from typing import Any

from harness.minirt.errors import TimedOut
from harness.minirt.supervisor.client import Supervisor

LIMIT_BYTES = 16 << 20
"""of each stream; what comes after it is read and thrown away (CRI, ExecSyncResponse)"""
_READ_BYTES = 1 << 16
_LOOK_UP_MS = 500


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
                "exec", (null, *theirs), id=container_id, process=dict(process), timeout_s=timeout_s
            )
            connection = stack.enter_context(request)
        finally:
            for fd in theirs:
                os.close(fd)
        result = _gather(connection, outputs, cancelled)
    if result["timed_out"]:
        raise TimedOut(f"the command did not end within {timeout_s:g} s and was killed")
    out, err = outputs.values()
    return bytes(out.data), bytes(err.data), int(result["exit_code"])


def _gather(connection: Any, outputs: Mapping[int, _Gathered], cancelled: Callable[[], bool]) -> dict[str, Any]:
    waiting = select.poll()
    answer = connection.socket.fileno()
    for fd in (answer, *outputs):
        waiting.register(fd, select.POLLIN)
    while True:
        ready = [fd for fd, _ in waiting.poll(_LOOK_UP_MS)]
        for fd in ready:
            if fd != answer:
                with contextlib.suppress(BlockingIOError):
                    if not outputs[fd].pump(fd):
                        waiting.unregister(fd)
        if answer in ready:
            result: dict[str, Any] = connection.answer()
            for fd, gathered in outputs.items():
                # All that the process itself wrote is in the pipe now; a child that it left behind is not waited for.
                with contextlib.suppress(BlockingIOError):
                    while gathered.pump(fd):
                        pass
            return result
        if not ready and cancelled():
            raise TimedOut("the call was cancelled, and the command killed")
