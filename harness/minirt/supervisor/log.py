"""The log of a container, in CRI's format: ``<RFC 3339 time> stdout|stderr F|P <text>``, one line each.

``P`` marks a part of a line: the rest follows in the next line of the same stream. (KEP "kubelet: CRI log format".)
"""

from __future__ import annotations

import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

LONGEST_LINE_BYTES = 16 << 10
"""of text; a longer line is cut into parts"""


def timestamp(now_ns: int) -> bytes:
    """RFC 3339 with nanoseconds, in UTC."""
    seconds, rest = divmod(now_ns, 1_000_000_000)
    return b"%s.%09dZ" % (time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)).encode(), rest)


class LogFile:
    """A file that whole lines are appended to. What cannot be written is lost, and counted: a container never waits for a disk."""

    def __init__(self, path: str, tell: Callable[[str, int], None] = lambda problem, lost_bytes: None) -> None:
        """`tell` hears when writing begins to fail, with the reason, and when it succeeds again, with "" and what was lost."""
        self.path = path
        self.lost_bytes = 0
        """since writing began to fail"""
        self._tell = tell
        self._fd = -1
        if path:
            self.reopen()

    def reopen(self) -> None:
        """Go on in a new file under the same path: the old one has been moved away. Raises `OSError`; then nothing changed."""
        if not self.path:
            return
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        fd = os.open(self.path, flags, 0o640)
        self.close()
        self._fd = fd

    def write(self, lines: bytes) -> None:
        if self._fd < 0:
            return
        at = 0
        try:
            while at < len(lines):
                at += os.write(self._fd, lines[at:] if at else lines)
        except OSError as error:
            whole = lines.rfind(b"\n", 0, at) + 1
            self._take_back(at - whole)
            failing, self.lost_bytes = bool(self.lost_bytes), self.lost_bytes + len(lines) - whole
            if not failing:
                self._tell(os.strerror(error.errno or 0).lower(), 0)
        else:
            if self.lost_bytes:
                lost, self.lost_bytes = self.lost_bytes, 0
                self._tell("", lost)

    def _take_back(self, count: int) -> None:
        """Remove the last bytes, which begin a line that could not be written whole."""
        if count:
            try:
                os.ftruncate(self._fd, os.fstat(self._fd).st_size - count)
            except OSError:  # not a plain file
                pass

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Stream:
    """One of the two streams of a container on its way into the log."""

    __slots__ = ("_file", "_name", "_rest", "name")

    def __init__(self, file: LogFile, name: str) -> None:
        self._file = file
        self.name = name
        self._name = name.encode()
        self._rest = b""

    def feed(self, data: bytes, now_ns: int) -> None:
        """Write the whole lines of `data`, and whatever is too long to wait for its end."""
        *lines, rest = (self._rest + data).split(b"\n")
        head = b"%s %s " % (timestamp(now_ns), self._name)
        full, part = head + b"F ", head + b"P "
        out: list[bytes] = []
        for line in lines:
            while len(line) > LONGEST_LINE_BYTES:
                out += (part, line[:LONGEST_LINE_BYTES], b"\n")
                line = line[LONGEST_LINE_BYTES:]
            out += (full, line, b"\n")
        while len(rest) > LONGEST_LINE_BYTES:
            out += (part, rest[:LONGEST_LINE_BYTES], b"\n")
            rest = rest[LONGEST_LINE_BYTES:]
        self._rest = rest
        if out:
            self._file.write(b"".join(out))

    def finish(self, now_ns: int) -> None:
        """Write what is left of a line that never got its end: it stays a part."""
        if self._rest:
            self._file.write(b"%s %s P %s\n" % (timestamp(now_ns), self._name, self._rest))
            self._rest = b""
