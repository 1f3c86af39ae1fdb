"""What a report on several machines shows, as frozen values. Times are in milliseconds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from harness.model.record import Outcome
from harness.report.matrix import Column, Finding, Matrix, Row


@dataclass(frozen=True, slots=True)
class Machine:
    """One machine, and the report on its runs alone."""

    name: str
    matrix: Matrix
    """its findings are those alone that no difference tells"""
    accelerator: str = ""
    """``kvm``, ``tcg``; empty where it is no virtual machine that Seatrial started"""
    fault: str = ""
    """why the trial on it broke off, possibly many lines; empty where it did not"""

    @property
    def outcome(self) -> Outcome:
        """`ERROR` for one that has failed, else the worst of its cells; `PASS` where nothing went wrong."""
        counts = self.matrix.counts
        if self.fault or counts[Outcome.ERROR]:
            return Outcome.ERROR
        return Outcome.FAIL if counts[Outcome.FAIL] else Outcome.PASS

    @property
    def emulated(self) -> bool:
        """Whether its times mean something only against each other."""
        return self.accelerator == "tcg"


@dataclass(frozen=True, slots=True)
class Lane:
    """One subject on one machine: a column."""

    machine: Machine
    row: Row
    run: str = ""
    """id of the run, where the machine held several with that subject"""
    ratios: Mapping[str, Ratio] | None = None
    """by operation, against `Group.base`; None for that machine itself, and where nothing can be compared"""


@dataclass(frozen=True, slots=True)
class Group:
    """One subject on all machines where it was tried, side by side."""

    subject: str
    lanes: tuple[Lane, ...]
    base: str = ""
    """the first machine on which something was measured: what the costs on the others are divided by"""

    def lane(self, machine: Machine) -> Lane | None:
        """The first one on `machine`; None where the subject was not tried."""
        return next((lane for lane in self.lanes if lane.machine is machine), None)


@dataclass(frozen=True, slots=True)
class Ratio:
    """What a step cost, divided by what it cost the same subject on another machine; it passed on both."""

    wall: float
    cpu: float | None


@dataclass(frozen=True, slots=True)
class Ending:
    """How one test of one subject ended on one machine, the worst of its samples."""

    outcome: Outcome
    reason: str = ""
    reproduce: str = ""
    """command line"""


@dataclass(frozen=True, slots=True)
class Difference:
    """Tests of one subject that end on one machine as they do not on another: alike among themselves, for one reason."""

    subject: str
    operations: tuple[str, ...]
    tests: tuple[str, ...]
    """as records name them, without the subject"""
    endings: Mapping[str, Ending]
    """by machine; one on which they were not tried has none"""

    @property
    def gravity(self) -> int:
        """0: something is wrong on some machine; 1: it is not offered on some; 2: it was skipped."""
        outcomes = {ending.outcome for ending in self.endings.values()}
        if outcomes & {Outcome.FAIL, Outcome.ERROR}:
            return 0
        return 1 if Outcome.NA in outcomes else 2

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The reasons, worst first, with the machines that give each; reproduced on the first of them."""
        found: dict[tuple[Outcome, str], list[str]] = {}
        for machine, ending in self.endings.items():
            if ending.outcome is not Outcome.PASS:
                found.setdefault((ending.outcome, ending.reason), []).append(machine)
        worst_first = sorted(found.items(), key=lambda pair: list(Outcome).index(pair[0][0]), reverse=True)
        return tuple(
            Finding(
                name=f"{self.subject} on {enumerated(machines)}",
                outcome=outcome,
                reason=reason,
                operations=self.operations,
                tests=self.tests,
                count=1,
                reproduce=self.endings[machines[0]].reproduce,
            )
            for (outcome, reason), machines in worst_first
        )


@dataclass(frozen=True, slots=True)
class Line:
    """A row of the matrix: a step, or (where `test`) a test of it that ends differently between machines."""

    column: Column
    test: str
    subjects: frozenset[str] = frozenset()
    """those for which it differs"""
    gravity: int | None = None
    """of the gravest of its step's differences (`Difference.gravity`); None where there is none"""


@dataclass(frozen=True, slots=True)
class Merged:
    """All of a report on several machines."""

    machines: tuple[Machine, ...]
    groups: tuple[Group, ...]
    lines: tuple[Line, ...]
    """the gravest differences first, in each the order of the voyage; a test follows its step"""
    endings: Mapping[tuple[str, str, str], Mapping[str, Ending]]
    """by subject, operation and test, then by machine"""
    differences: tuple[Difference, ...]
    """failures and errors first, then n/a, then skips"""
    compared: int
    """cells that have a counterpart on another machine"""

    @property
    def counts(self) -> dict[Outcome, int]:
        """Number of cells by outcome, all five, best first."""
        each = [machine.matrix.counts for machine in self.machines]
        return {outcome: sum(counts[outcome] for counts in each) for outcome in each[0]}

    @property
    def told(self) -> tuple[Finding, ...]:
        """The reasons of all differences, each once."""
        found = [finding for difference in self.differences for finding in difference.findings]
        return tuple({(it.name, it.outcome, it.reason, it.operations): it for it in reversed(found)}.values())[::-1]

    @property
    def emulated(self) -> tuple[str, ...]:
        """The machines whose times mean something only against each other."""
        return tuple(machine.name for machine in self.machines if machine.emulated)


def median_of(ratios: Mapping[str, Ratio]) -> Ratio:
    """Over the steps in `ratios`, of which there is one at least."""
    cpu = [ratio.cpu for ratio in ratios.values() if ratio.cpu is not None]
    return Ratio(statistics.median(it.wall for it in ratios.values()), statistics.median(cpu) if cpu else None)


def enumerated(names: list[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
