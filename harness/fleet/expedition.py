"""One trial on another machine: shipped there, held there, its records brought back while they are made."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from harness.command import Completed, HostProcess
from harness.errors import CommandError, CommandTimeout, MachineError, SeatrialError
from harness.fleet.cargo import QUESTION, Interpreter, pack_harness, pack_libraries, parse_interpreter
from harness.fleet.lines import Recall, Say
from harness.fleet.link import Link
from harness.model.record import Record, Run
from harness.store import RunFolder

SHIP_LIMIT_S = 300.0
TELL_S = 10.0
END_LIMIT_S = 90.0
"""for a trial that was told to end; it takes down its engines first"""


class Shore(Protocol):
    """Where a trial is held: a machine behind a link, or this computer."""

    @property
    def name(self) -> str: ...

    def run(self, argv: Sequence[str], *, timeout_s: float = 60.0) -> Completed: ...

    def start(self, argv: Sequence[str], *, stdout_fd: int, stderr_fd: int) -> HostProcess: ...


@contextlib.contextmanager
def shipped(link: Link, files: Mapping[str, bytes], say: Say) -> Iterator[tuple[str, Interpreter]]:
    """The path of a folder there that has the harness, and the Python it is for; it is gone afterwards. Raises `MachineError`, `CommandError`."""
    answer = link.run(("python3", "-c", QUESTION))
    interpreter = parse_interpreter(answer.text, link.name)
    libraries = pack_libraries(interpreter, say)
    say("shipping the harness")
    place = link.run(("mktemp", "-d", "/var/tmp/seatrial-XXXXXX")).check().text.strip()
    try:
        # The folder is root's; engines' own users have to get at minirt.
        link.run(("chmod", "0755", place)).check()
        for archive, folder in (
            (pack_harness(interpreter, place), place),
            (libraries.read_bytes(), f"{place}/{interpreter.library}"),
        ):
            link.send(archive, ("tar", "-xf", "-", "--no-same-owner", "-C", folder), timeout_s=SHIP_LIMIT_S)
        for name, data in files.items():
            link.send(data, ("tee", f"{place}/{name}"), timeout_s=60)
        yield place, interpreter
    finally:
        if link.alive:
            with contextlib.suppress(SeatrialError):
                link.run(("rm", "-rf", "--one-file-system", place), timeout_s=120)


def hold(
    shore: Shore,
    argv: Sequence[str],
    output: Path,
    about: Mapping[str, Any],
    say: Say,
    recall: Recall,
    reproduce: Callable[[str], str] = str,
    last_words: Callable[[], str] = str,
) -> Path:
    """Run ``seatrial run --stream``, which is `argv`, on `shore`; its run folder below `output`, written as it goes.

    `about` is added to what the run says about its machine. `reproduce` mends a line of a reason that says how to see it
    again, `last_words` gives what is known of a machine that does not answer any more. A trial that breaks off, or a machine
    that dies, is no exception: what came is kept, and the run's machine has a ``fault``. Raises `MachineError` where not even the run began, `StoreError`.
    """
    log = Log(output, dict(about), reproduce, say)
    heard: deque[str] = deque(maxlen=30)
    with contextlib.ExitStack() as undo:
        out_r, out_w = _pipe(undo)
        err_r, err_w = _pipe(undo)
        process = shore.start(argv, stdout_fd=out_w, stderr_fd=err_w)
        os.close(out_w)
        os.close(err_w)

        def listen() -> None:
            with open(err_r, errors="replace", closefd=False) as lines:
                for line in lines:
                    if line.strip():
                        heard.append(line.rstrip())
                        say(line.strip())

        threads = [
            threading.Thread(target=listen, daemon=True),
            threading.Thread(target=log.listen, args=(out_r,), daemon=True),
        ]
        for thread in threads:
            thread.start()
        asked = False
        try:
            while process.poll() is None:
                with contextlib.suppress(CommandTimeout):
                    process.wait(0.2)
                if recall.asked and not asked and process.poll() is None:
                    asked = True
                    _end(shore, log.pid, process)
        finally:
            status = process.stop()
            for thread in threads:
                thread.join(10.0)
    if log.error:
        raise log.error
    said = "\n".join(list(heard)[-12:])
    fault = ""
    if status == 255 and not asked:
        fault = f"the connection was lost in the middle of the trial{last_words()}"
    elif not asked and (status not in (0, 1) or not log.ended):
        fault = f"the trial broke off with status {status}: {said or 'without a word'}"
    if log.folder is None:
        raise MachineError(f"the trial on {shore.name} did not begin: {said or f'status {status}'}")
    log.close(fault)
    return log.folder.path


class Log:
    """Writes down here what a trial there says in JSON lines (`harness.cli.stream`)."""

    def __init__(self, output: Path, about: dict[str, Any], reproduce: Callable[[str], str], say: Say) -> None:
        self._output, self._about, self._reproduce, self._say = output, about, reproduce, say
        self.folder: RunFolder | None = None
        self.pid = 0
        self.error: SeatrialError | None = None
        self._run: Run | None = None
        self._seen: Counter[str] = Counter()
        self._told_s = 0.0

    def listen(self, fd: int) -> None:
        """Take lines until there are no more; the first failure to write one is kept in `error`."""
        with open(fd, errors="replace", closefd=False) as lines:
            for line in lines:
                try:
                    self.take(line)
                except SeatrialError as error:
                    self.error = self.error or error

    def take(self, line: str) -> None:
        """One line. What is none of ours (a login message) is passed over. Raises `StoreError`."""
        try:
            said = json.loads(line)
            if "pid" in said:
                self.pid = int(said["pid"])
            elif "run" in said:
                self._update(Run.from_json(said["run"]))
            elif "record" in said and self.folder:
                record = Record.from_json(said["record"])
                self.folder.append(dataclasses.replace(record, reason=self._mended(record.reason)))
                self._tell(record)
        except (KeyError, TypeError, ValueError):
            return

    def close(self, fault: str) -> None:
        """Note why it broke off, where it did. Raises `StoreError`."""
        if fault and self._run:
            self._about["fault"] = fault
            self._update(self._run)

    @property
    def ended(self) -> bool:
        """Whether the run came to its end: what its process ended with does not tell that from an error of its own."""
        return self._run is not None and bool(self._run.ended)

    def _tell(self, record: Record) -> None:
        """Say now and then how far it is."""
        self._seen[record.outcome.value] += 1
        if time.monotonic() - self._told_s >= TELL_S:
            self._told_s = time.monotonic()
            counts = ", ".join(f"{number} {outcome}" for outcome, number in sorted(self._seen.items()))
            self._say(f"{record.phase.value}: {record.subject}, {counts}")

    def _update(self, run: Run) -> None:
        self._run = run
        run = dataclasses.replace(run, machine={**run.machine, **self._about})
        if self.folder is None:
            self.folder = RunFolder.create(self._output, run)
        else:
            self.folder.update(run)

    def _mended(self, reason: str) -> str:
        head, mark, line = reason.rpartition("\nreproduce: ")
        return f"{head}{mark}{self._reproduce(line)}" if mark else reason


def _end(shore: Shore, pid: int, process: HostProcess) -> None:
    """Have the trial over there end as by Ctrl-C, and wait until it has."""
    if pid:
        with contextlib.suppress(CommandError, CommandTimeout, MachineError):
            shore.run(("kill", "-INT", str(pid)), timeout_s=30)
            process.wait(END_LIMIT_S)


def _pipe(undo: contextlib.ExitStack) -> tuple[int, int]:
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    undo.callback(os.close, read_fd)
    return read_fd, write_fd
