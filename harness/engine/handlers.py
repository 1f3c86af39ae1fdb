"""OCI runtimes below an engine: by name, or the user's own by path."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harness.engine.programs import find_program
from harness.errors import MachineError
from harness.model.subject import Subject

PACKAGED = ("runc", "crun", "runsc")
OWN = "own"
"""Name under which an engine knows a runtime that was given by its path."""


@dataclass(frozen=True, slots=True)
class Handler:
    """An OCI runtime, under the name by which an engine is told of it."""

    name: str
    program: Path


def handler_name(subject: Subject) -> str:
    return OWN if subject.handler.startswith("/") else subject.handler


def find_handler(subject: Subject) -> Handler | None:
    """The runtime below `subject`'s engine; None where it is not installed."""
    program = find_program(subject.handler)
    return Handler(handler_name(subject), program) if program else None


def require_handler(subject: Subject) -> Handler:
    """As `find_handler`. Raises `MachineError`, with a remedy."""
    found = find_handler(subject)
    if found is None:
        raise MachineError(missing(subject.handler))
    return found


def missing(handler: str) -> str:
    """Why a runtime is not to be had, and what would mend that."""
    if handler.startswith("/"):
        return f"{handler} is not a program that can be run"
    remedy = f"seatrial setup {handler}" if handler in PACKAGED else f"put {handler} on PATH"
    return f"{handler} is not on PATH: {remedy}"
