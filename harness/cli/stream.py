"""A run as JSON lines on stdout while it goes: for whoever started it on another machine and puts the pieces together there."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from typing import Any, TextIO

from harness.store import RECORDS_FILE, RUN_FILE, RunFolder

PAUSE_S = 0.5
BEAT_S = 5.0
"""An empty line is written as often: that shows whether anybody is there to read."""


class Stream:
    """Follows a run's folder; a context manager.

    ``{"pid": N}`` comes first: who to send SIGINT to. Then ``{"run": {…}}`` each time ``run.json`` is another, and
    ``{"record": {…}}`` for each record. Where nobody reads any more the run is ended as by SIGTERM.
    """

    def __init__(self, folder: RunFolder, out: TextIO | None = None) -> None:
        self._folder = folder.path
        # Of our own: pytest puts a file of its own in place of descriptor 1 while tests run.
        self._out = out or os.fdopen(os.dup(sys.stdout.fileno()), "w")
        self._offset = 0
        self._run: Any = None
        self._seen: tuple[int, ...] = ()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Stream:
        self._write(json.dumps({"pid": os.getpid()}))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _follow(self) -> None:
        try:
            silent_s = 0.0
            while True:
                last = self._ended.wait(PAUSE_S)
                silent_s = 0.0 if self._pass_on() else silent_s + PAUSE_S
                if silent_s >= BEAT_S:
                    self._write("")
                    silent_s = 0.0
                if last:
                    return
        except BrokenPipeError:
            if not self._ended.is_set():
                os.kill(os.getpid(), signal.SIGTERM)

    def _pass_on(self) -> bool:
        """Write what is new; whether there was anything."""
        there = [(self._folder / name).stat() for name in (RUN_FILE, RECORDS_FILE)]
        seen = tuple(number for stat in there for number in (stat.st_ino, stat.st_size, stat.st_mtime_ns))
        if seen == self._seen:
            return False
        self._seen = seen
        before = self._offset, self._run
        run = json.loads((self._folder / RUN_FILE).read_bytes())
        if run != self._run:
            self._run = run
            self._write(json.dumps({"run": run}))
        with (self._folder / RECORDS_FILE).open("rb") as records:
            records.seek(self._offset)
            for line in records:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                self._write(f'{{"record":{line.decode().strip()}}}')
        return (self._offset, self._run) != before

    def _write(self, line: str) -> None:
        self._out.write(line + "\n")
        self._out.flush()
