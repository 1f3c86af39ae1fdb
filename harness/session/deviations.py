"""Known deviations: what runtimes that many people use are known not to keep to, in a suite's ``deviations.toml``.

A test that meets one still ends as `fail`; its reason says that the deviation is known, and links to the sentence that is
broken. An entry is ``[[deviation]]`` with ``test`` (its name and parameters, without the subject; a name alone stands for all
its parameters), ``seen`` (by runtime the versions on which it was seen), ``sentence`` (an address), ``note``, and
``sometimes = true`` where chance decides.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.model.subject import Subject

FILE = "deviations.toml"


@dataclass(frozen=True, slots=True)
class Deviation:
    """One entry."""

    test: str
    seen: Mapping[str, tuple[str, ...]]
    sentence: str
    note: str
    sometimes: bool = False

    def is_about(self, test: str) -> bool:
        return self.test in (test, test.partition("[")[0])

    def told_of(self, runtime: str) -> str:
        """The line that a reason gets."""
        return f"known of {runtime} {', '.join(self.seen[runtime])}: {self.note} ({self.sentence})"


def parse_deviations(text: str) -> tuple[Deviation, ...]:
    """Raises `ValueError` for what is no TOML, and `TypeError` for an entry with a field missing or too many."""
    rows = tomllib.loads(text).get("deviation", [])
    return tuple(
        Deviation(**{**row, "seen": {runtime: tuple(found) for runtime, found in row.get("seen", {}).items()}})
        for row in rows
    )


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
    rows = [row for row in read_deviations(suite) if runtime in row.seen and row.is_about(name)]
    return "".join(f"\n{row.told_of(runtime)}" for row in rows)
