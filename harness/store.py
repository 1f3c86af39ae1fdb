"""Results on disk: one folder a run, with ``run.json`` (replaced whole) and ``records.jsonl`` (only ever appended to).

Whatever ends a run, SIGKILL or a full disk, what was written before stays readable: a record is one `write` of one line, and a
last line that was torn is dropped with a note.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import StoreError
from harness.model.record import SCHEMA_VERSION, Record, Run

RUN_FILE = "run.json"
RECORDS_FILE = "records.jsonl"


@dataclass(frozen=True, slots=True)
class Reader:
    """How one version of the schema is read."""

    run: Callable[[Mapping[str, Any]], Run]
    record: Callable[[Mapping[str, Any]], Record]


_ADDITIVE = Reader(Run.from_json, Record.from_json)
"""Reads every version so far: what an older one lacks has a default."""

READERS: Mapping[int, Reader] = {1: _ADDITIVE, 2: _ADDITIVE, 3: _ADDITIVE}
"""By schema version. A new version adds a row and keeps the old ones; `results/golden` has a run of each."""


@dataclass(frozen=True, slots=True)
class RunData:
    """A run as it was read. `notes`: what had to be left out of it, in words."""

    folder: Path
    run: Run
    records: tuple[Record, ...]
    notes: tuple[str, ...] = ()


class RunFolder:
    """One run's folder, open for writing. Several processes may `append` at once, each with a `RunFolder` of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._torn = False

    @classmethod
    def create(cls, output: Path, run: Run) -> RunFolder:
        """Make ``output/<run.run>`` and write `run` into it. Raises `StoreError`, also where that folder exists."""
        path = output / run.run
        with _storing(path):
            path.mkdir(parents=True)
            (path / RECORDS_FILE).touch()
        folder = cls(path)
        folder.update(run)
        return folder

    def append(self, record: Record) -> None:
        """Add one record. Raises `StoreError`; whole records that were added before stay as they are."""
        line = json.dumps(record.to_json(), ensure_ascii=False, separators=(",", ":")).encode(errors="replace") + b"\n"
        path = self.path / RECORDS_FILE
        with _storing(path):
            fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                # One write a line: with O_APPEND lines of several processes never mix. A disk that fills up takes part of
                # it only; the next write then fails with the reason. Should there be room again later, the torn line is
                # ended first, so that it spoils no other.
                if self._torn:
                    line = b"\n" + line
                self._torn = True
                written = os.write(fd, line)
                while written < len(line):
                    written += os.write(fd, line[written:])
                self._torn = False
            finally:
                os.close(fd)

    def update(self, run: Run) -> None:
        """Replace ``run.json``: a reader sees the old one or the new one, never part of one. Raises `StoreError`."""
        self.write(RUN_FILE, json.dumps(run.to_json(), ensure_ascii=False, indent=2) + "\n")

    def write(self, name: str, text: str) -> Path:
        """Put a whole file (a report) into the folder, in place of an older one of that name. Raises `StoreError`."""
        return write_file(self.path / name, text)

    def read(self) -> RunData:
        """What the folder has now. Raises `StoreError`."""
        return read_folder(self.path)

    def read_records(self) -> tuple[Record, ...]:
        """The records that can be read, in the order in which they were appended. Raises `StoreError`."""
        return self.read().records


def write_file(path: Path, text: str) -> Path:
    """Write a whole file, in place of an older one: a reader sees one or the other. Raises `StoreError`."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with _storing(path):
        try:
            with draft.open("w", encoding="utf-8", newline="") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)
            raise
    return path


def read_folder(path: Path) -> RunData:
    """A run and its records. Raises `StoreError` where the folder is none of a run, or of a version that is not known."""
    data = _load(path / RUN_FILE)
    reader = _reader(path, data)
    try:
        run = reader.run(data)
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{path / RUN_FILE} is damaged: {error}") from error
    try:
        raw = (path / RECORDS_FILE).read_bytes()
    except FileNotFoundError:
        return RunData(path, run, (), (f"{RECORDS_FILE} is missing",))
    except OSError as error:
        raise StoreError(f"{path / RECORDS_FILE} cannot be read: {error.strerror}") from error
    records: list[Record] = []
    notes: list[str] = []
    lines = raw.split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            records.append(reader.record(json.loads(line)))
        except (KeyError, TypeError, ValueError) as error:
            if number == len(lines):
                notes.append(
                    f"{RECORDS_FILE}: the last line was torn (the run was killed or the disk was full) and is left out"
                )
            else:
                notes.append(f"{RECORDS_FILE}: line {number} cannot be read and is left out: {error}")
    return RunData(path, run, tuple(records), tuple(notes))


def find_runs(output: Path) -> list[Path]:
    """The folders of runs in `output`, the oldest first (ids begin with the time)."""
    return sorted(path.parent for path in output.glob(f"*/{RUN_FILE}"))


@contextlib.contextmanager
def hidden_folder(output: Path) -> Iterator[Path]:
    """A folder in `output` for what a run writes that is told by another one; `find_runs` passes it over, and it is gone afterwards.

    Raises `StoreError`. In `output`, so that a SIGKILL leaves nothing elsewhere.
    """
    with contextlib.ExitStack() as undo:
        with _storing(output):
            output.mkdir(parents=True, exist_ok=True)
            folder = undo.enter_context(tempfile.TemporaryDirectory(prefix=".", dir=output))
        yield Path(folder)


def newest(output: Path) -> Path:
    """The folder of the run in `output` that was started last. Raises `StoreError` where there is none."""
    found = find_runs(output)
    if not found:
        raise StoreError(f"there is no run in {output}: make one with seatrial run, or name another folder")
    return found[-1]


def _load(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise StoreError(f"{path.parent} is not the folder of a run: it has no {path.name}") from error
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise StoreError(f"{path} is damaged: {error}") from error
    if not isinstance(data, dict):
        raise StoreError(f"{path} is damaged: it is no JSON object")
    return data


def _reader(path: Path, data: Mapping[str, Any]) -> Reader:
    version = data.get("schema")
    if not isinstance(version, int) or version not in READERS:
        raise StoreError(
            f"{path} has schema version {version!r}; this Seatrial reads {', '.join(map(str, READERS))} and writes {SCHEMA_VERSION}"
        )
    return READERS[version]


@contextlib.contextmanager
def _storing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written: {error.strerror}; what was written before stays readable"
        ) from error
