"""Somebody who follows a container's output: each of its streams goes into a pipe of theirs too, from now on."""

from __future__ import annotations

import os
from select import EPOLLOUT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from harness.minirt.supervisor.loop import Loop


class Attachment:
    """Pipes by the names of streams; they are the attachment's own. What does not fit into one is kept, and sent later.

    `drained` is called whenever nothing is kept any more, `ended` once, with the container's facts, when it has ended.
    """

    def __init__(
        self,
        loop: Loop,
        pipes: dict[str, int],
        drained: Callable[[], None],
        ended: Callable[[dict[str, Any]], None],
    ) -> None:
        self.ended = ended
        self._loop = loop
        self._pipes = pipes
        self._kept: dict[str, bytearray] = {}
        self._drained = drained
        self._finishing = False
        for fd in pipes.values():
            os.set_blocking(fd, False)

    def feed(self, name: str, data: bytes) -> None:
        """Hand on what came from a stream. Whoever goes on although `is_full` has it kept in memory."""
        fd = self._pipes.get(name)
        if fd is None:
            return
        kept = self._kept.get(name)
        if kept is None:
            sent = self._write(name, fd, data)
            if sent == len(data) or name not in self._pipes:
                return
            kept = self._kept[name] = bytearray()
            self._loop.add(fd, lambda: self._send_kept(name), EPOLLOUT)
            data = data[sent:]
        kept += data

    def is_full(self, name: str) -> bool:
        """Whether the reader has not taken yet what came from a stream."""
        return name in self._kept

    def finish(self) -> None:
        """Nothing more comes: close each pipe as soon as all is in it."""
        self._finishing = True
        for name in [name for name in self._pipes if name not in self._kept]:
            self._close(name)

    def close(self) -> None:
        """Nobody follows any more."""
        for name in list(self._pipes):
            self._close(name)

    def _write(self, name: str, fd: int, data: bytes | bytearray) -> int:
        try:
            return os.write(fd, data)
        except BlockingIOError:
            return 0
        except OSError:  # EPIPE: nobody reads this stream any more
            self._close(name)
            return 0

    def _send_kept(self, name: str) -> None:
        kept = self._kept[name]
        del kept[: self._write(name, self._pipes[name], kept)]
        if name in self._pipes and not kept:
            self._loop.remove(self._pipes[name])
            del self._kept[name]
            if self._finishing:
                self._close(name)
        if name not in self._kept:
            self._drained()

    def _close(self, name: str) -> None:
        self._kept.pop(name, None)
        fd = self._pipes.pop(name)
        self._loop.remove(fd)
        os.close(fd)
