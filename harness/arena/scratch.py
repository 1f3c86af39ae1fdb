"""A run's own scratch folder, beside its arenas: alive with the run, and gone or removable with it."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from harness.arena.cgroups import bases
from harness.errors import ArenaError
from harness.keeper import runs

NAME = "_harness"
"""no arena has that name: theirs have no underscore"""


@contextlib.contextmanager
def open_scratch(run_id: str) -> Iterator[Path]:
    """A folder for what all arenas of a run share (the test images). `harness.arena.leftovers` finds it after a kill.

    Raises `ArenaError`.
    """
    folder = Path(runs.DATA, run_id, NAME)
    try:
        with runs.turnstile():
            lock = runs.hold(run_id)
            folder.mkdir(parents=True, mode=0o711)
    except OSError as error:
        raise ArenaError(f"cannot make {folder}: {error.strerror}") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)
        runs.sweep(run_id, bases())
