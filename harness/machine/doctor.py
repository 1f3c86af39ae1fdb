"""``seatrial doctor``: what this machine has, which subjects will run on it, and what would mend the rest. Data only."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from harness.engine import availability
from harness.engine.programs import version_of
from harness.machine.facts import Facts
from harness.machine.kernel import Feature
from harness.machine.tools import TOOLS, find_tool
from harness.model.subject import Subject

LEAST_DISK_BYTES = 1 << 30
LEAST_MEMORY_BYTES = 1 << 30


class Health(StrEnum):
    """`GOOD`; `LIMITED`: something will be missing from the report; `BAD`: nothing can run."""

    GOOD = "good"
    LIMITED = "limited"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Row:
    """One thing of the machine. `remedy`: what follows from its state, or the command that mends it."""

    thing: str
    state: str
    health: Health
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Prospect:
    """Whether a subject will run here; else why not, and the command that mends it, if one does."""

    subject: str
    reason: str = ""
    remedy: str = ""

    @property
    def runs(self) -> bool:
        return not self.reason


@dataclass(frozen=True, slots=True)
class Diagnosis:
    machine: tuple[Row, ...]
    tools: tuple[Row, ...]
    prospects: tuple[Prospect, ...]

    @property
    def obstacle(self) -> str:
        """Why not even the bundled runtime can run here; empty where it can."""
        for row in (*self.machine, *self.tools):
            if row.health is Health.BAD:
                return f"{row.thing}: {row.state}" + (f"; {row.remedy}" if row.remedy else "")
        own = [prospect for prospect in self.prospects if prospect.subject.split(":")[0] == "minirt"]
        if own and not any(prospect.runs for prospect in own):
            return f"{own[0].subject}: {own[0].reason}"
        return ""


def diagnose(
    facts: Facts,
    features: Iterable[Feature],
    subjects: Iterable[Subject],
    *,
    find: Callable[[str], Path | None] = find_tool,
    version: Callable[[Path], str] = version_of,
    why_not: Callable[[Subject], str] = availability,
) -> Diagnosis:
    """Judge what was found."""
    return Diagnosis(
        machine=tuple(machine_rows(facts, features)),
        tools=tuple(tool_rows(find, version)),
        prospects=tuple(prospect(subject, why_not) for subject in subjects),
    )


def machine_rows(facts: Facts, features: Iterable[Feature]) -> Iterable[Row]:
    """The machine itself, from the ground up."""
    yield Row("system", f"{facts.distribution}, {facts.architecture}", Health.GOOD)
    for feature in features:
        yield Row(feature.name, feature.state, Health.BAD if feature.reason else Health.GOOD, feature.reason)
    if facts.cgroup_mode == "none":
        yield Row("cgroups", "none", Health.BAD, "no cgroup hierarchy is mounted under /sys/fs/cgroup")
    else:
        yield Row("cgroups", f"{facts.cgroup_mode}: {', '.join(facts.cgroup_controllers)}", Health.GOOD)
    yield Row("processor", f"{facts.cores} x {facts.cpu_model}", Health.GOOD)
    short = facts.memory_bytes < LEAST_MEMORY_BYTES
    yield Row(
        "memory",
        _gib(facts.memory_bytes),
        Health.LIMITED if short else Health.GOOD,
        "engines may be killed for want of it" if short else "",
    )
    full = facts.disk_free_bytes < LEAST_DISK_BYTES
    yield Row(
        "disk",
        f"{_gib(facts.disk_free_bytes)} free",
        Health.LIMITED if full else Health.GOOD,
        "make room below /var/lib" if full else "",
    )
    yield Row(
        "root",
        "yes" if facts.root else "no",
        Health.GOOD if facts.root else Health.BAD,
        "" if facts.root else "run it again as root: sudo seatrial ...",
    )
    if facts.root:
        for name, consequence in facts.lacking.items():
            yield Row(name, "lacking", Health.BAD if name == "CAP_SYS_ADMIN" else Health.LIMITED, consequence)
    yield Row(
        "systemd",
        "yes" if facts.systemd else "no",
        Health.GOOD,
        "" if facts.systemd else "no services of the machine's own",
    )


def tool_rows(find: Callable[[str], Path | None], version: Callable[[Path], str]) -> Iterable[Row]:
    """Engines, clients and runtimes, with the version of each."""
    for tool in TOOLS.values():
        missing = [program for program in tool.programs if find(program) is None]
        path = find(tool.programs[0])
        if missing and not tool.default:
            continue
        if path is None or missing:
            # Without busybox there are no images, hence nothing to run.
            health = Health.BAD if tool.name == "busybox" else Health.LIMITED
            yield Row(tool.name, "not found", health, f"seatrial setup {tool.name}")
        else:
            yield Row(tool.name, version(path) or "there", Health.GOOD)


def prospect(subject: Subject, why_not: Callable[[Subject], str]) -> Prospect:
    """Whether `subject` will run on this machine. Engines put the command that mends it after a colon, at the end."""
    reason = why_not(subject)
    words, colon, remedy = reason.rpartition(": ")
    return Prospect(subject.name, words, remedy) if colon else Prospect(subject.name, reason)


def _gib(number: int) -> str:
    return f"{number / (1 << 30):.1f} GiB"
