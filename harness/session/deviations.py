"""Known deviations: what runtimes that many people use are known not to keep to, in a suite's ``deviations.toml``.

A test that meets one still ends as `fail`; its reason says that the deviation is known, and links to the sentence that is
broken. An entry is ``[[deviation]]`` with ``runtime``, ``seen`` (the versions on which it was seen), ``test`` (its name and
parameters, without the subject), ``sentence`` (an address) and ``note``.
"""

from __future__ import annotations

import functools
import tomllib
from dataclasses import dataclass
from pathlib import Path

from harness.model.subject import Subject

FILE = "deviations.toml"


@dataclass(frozen=True, slots=True)
class Deviation:
    """One entry."""

    runtime: str
    seen: tuple[str, ...]
    test: str
    sentence: str
    note: str

    def __str__(self) -> str:
        return f"known of {self.runtime} {', '.join(self.seen)}: {self.note} ({self.sentence})"


def parse_deviations(text: str) -> tuple[Deviation, ...]:
    """Raises `ValueError` for what is no TOML, and `TypeError` for an entry with a field missing or too many."""
    rows = tomllib.loads(text).get("deviation", [])
    return tuple(Deviation(**{**row, "seen": tuple(row["seen"])}) for row in rows)


@functools.cache
def read_deviations(suite: Path) -> tuple[Deviation, ...]:
    """The known deviations from what the folder `suite` checks; none where it has no file of them."""
    path = suite / FILE
    return parse_deviations(path.read_text()) if path.exists() else ()


def bare_name(test: str, subject: str) -> str:
    """A test's name and parameters without the subject that pytest has among them."""
    name, bracket, rest = test.partition("[")
    if not bracket:
        return test
    parameters = rest.removesuffix("]")
    if parameters == subject:
        return name
    return f"{name}[{parameters.removeprefix(f'{subject}-').removesuffix(f'-{subject}')}]"


def note_of(suite: Path, subject: Subject, test: str) -> str:
    """What is known of a test that failed, on lines of its own; "" for nothing."""
    runtime, name = Path(subject.handler).name, bare_name(test, subject.name)
    notes = [str(row) for row in read_deviations(suite) if (row.runtime, row.test) == (runtime, name)]
    return "".join(f"\n{note}" for note in notes)
