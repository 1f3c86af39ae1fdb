"""What a report shows, as frozen values: the matrix of subjects and steps, and what is said about it.

`harness.report.statistics` makes it from records; every format renders it. Times are in milliseconds, memory in bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from harness.model.area import Area, OciArea
from harness.model.lifecycle import Operation
from harness.model.record import Outcome, Run


@dataclass(frozen=True, slots=True)
class Column:
    """A step: its name in records, and its title, of one or two short words."""

    operation: str
    title: str


OTHER = Column("", "other")
"""Checks that belong to no step; shown where a run has some."""

COLUMNS: tuple[Column, ...] = (
    Column(Operation.RUN_SANDBOX, "run pod"),
    Column(Operation.PULL, "pull"),
    Column(Operation.PULL_AGAIN, "pull again"),
    Column(Operation.CREATE, "create"),
    Column(Operation.START, "start"),
    Column(Operation.EXEC, "exec"),
    Column(Operation.PAUSE, "pause"),
    Column(Operation.RESUME, "resume"),
    Column(Operation.LOGS, "logs"),
    Column(Operation.STOP, "stop"),
    Column(Operation.REMOVE, "remove"),
    Column(Operation.STOP_SANDBOX, "stop pod"),
    Column(Operation.REMOVE_SANDBOX, "remove pod"),
    Column(Operation.REMOVE_IMAGE, "remove image"),
)

AREAS: tuple[Column, ...] = tuple(Column(area, area.name.lower()) for area in (*Area, *OciArea))
"""Of the suites that check an interface piece by piece (the CRI, OCI runtimes); shown where a run has them."""

TITLES: Mapping[str, str] = {column.operation: column.title for column in (*COLUMNS, *AREAS, OTHER)}

RANKS: Mapping[str, int] = {operation: rank for rank, operation in enumerate(TITLES)}
"""The order of steps in a report."""

MARKS: Mapping[Outcome, str] = {
    Outcome.PASS: "✓",
    Outcome.FAIL: "✗",
    Outcome.NA: "–",
    Outcome.SKIP: "○",
    Outcome.ERROR: "‼",
}
NO_MARK = "·"
"""Where there is no record: the run ended before."""

MEANINGS: Mapping[Outcome, str] = {
    Outcome.PASS: "the runtime kept its contract",
    Outcome.FAIL: "the runtime broke its contract",
    Outcome.NA: "the subject does not offer it",
    Outcome.SKIP: "not installed, or not possible on this machine",
    Outcome.ERROR: "the harness itself broke",
}


@dataclass(frozen=True, slots=True)
class Cost:
    """Medians over the measured samples of a step whose postcondition held."""

    samples: int
    wall_ms: float
    wall_low_ms: float
    """first quartile"""
    wall_high_ms: float
    """third quartile"""
    cpu_ms: float | None
    """engine + client + pods; a group that has no account is left out, and where none has one this is None"""
    cpu_engine_ms: float | None
    cpu_client_ms: float | None
    cpu_pods_ms: float | None


@dataclass(frozen=True, slots=True)
class Cell:
    """One subject's step: how it ended over all checks and samples, and what it cost."""

    outcome: Outcome
    tests: Mapping[Outcome, int]
    """number of checks and samples by outcome"""
    cost: Cost | None = None
    """on the subject's main network (`Row.network`)"""
    elsewhere: Mapping[str, Cost] | None = None
    """by other networks"""
    apart: int = 0
    """samples of steps that failed: kept, not counted"""
    via: str = ""

    @property
    def passed(self) -> str:
        """How many of its checks have passed, of how many that apply if not all: ``28``, ``27/28``; empty for none."""
        passed = self.tests.get(Outcome.PASS, 0)
        wrong = self.tests.get(Outcome.FAIL, 0) + self.tests.get(Outcome.ERROR, 0)
        return f"{passed}/{passed + wrong}" if wrong else str(passed or "")


@dataclass(frozen=True, slots=True)
class Held:
    """Memory and processes of the engine, medians at the end of the measured steps. Absent: could not be had."""

    engine: float | None = None
    anon: float | None = None
    shmem: float | None = None
    kernel: float | None = None
    slab: float | None = None
    file: float | None = None
    pss: float | None = None
    """anonymous memory of its processes, and the files they map, each counted once: their PSS if no other engine ran"""
    processes: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One subject on one machine."""

    run: int
    """index of its run in `Matrix.runs`"""
    machine: str
    """label of the run; empty where there is only one"""
    subject: str
    cells: Mapping[str, Cell]
    """by operation; a step without any record has none"""
    network: str
    """the network to which the costs belong; empty where nothing was measured"""
    wall_ms: float | None
    """sum over the steps of the medians"""
    cpu_ms: float | None
    whole: bool
    """whether every step that the subject offers is in the sums"""
    held: Held

    @property
    def name(self) -> str:
        """Subject and, among several runs, the machine."""
        return f"{self.subject} ({self.machine})" if self.machine else self.subject


@dataclass(frozen=True, slots=True)
class Finding:
    """One reason, and all that ended that way for it."""

    name: str
    """`Row.name`"""
    outcome: Outcome
    reason: str
    operations: tuple[str, ...]
    tests: tuple[str, ...]
    count: int
    reproduce: str = ""
    """command line"""


@dataclass(frozen=True, slots=True)
class Overhead:
    """What the harness itself adds to a gRPC step, medians."""

    samples: int
    wall_ms: float
    cpu_ms: float | None


@dataclass(frozen=True, slots=True)
class Tax:
    """What a command-line client costs over a warm gRPC channel to the same engine: medians over steps of the difference."""

    name: str
    client: str
    base: str
    steps: int
    wall_ms: float
    cpu_ms: float | None


@dataclass(frozen=True, slots=True)
class PodTotal:
    """The eight calls of one pod with one container, host network, image present; ratios to the reference in the same run."""

    name: str
    wall_ms: float
    cpu_ms: float | None
    pss: float | None
    wall_ratio: float | None
    cpu_ratio: float | None
    pss_ratio: float | None


@dataclass(frozen=True, slots=True)
class Head:
    """One run among those shown."""

    run: Run
    label: str
    state: str
    """empty for a run that ended by itself, else what happened, in words"""
    notes: tuple[str, ...]
    """of the run, and of reading it"""


@dataclass(frozen=True, slots=True)
class Matrix:
    """All of a report."""

    runs: tuple[Head, ...]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    findings: tuple[Finding, ...]
    """worst first: error, fail, skip, n/a"""
    overhead: Overhead | None
    taxes: tuple[Tax, ...]
    pods: tuple[PodTotal, ...]

    @property
    def counts(self) -> dict[Outcome, int]:
        """Number of cells by outcome, all five, best first."""
        cells = [cell for row in self.rows for cell in row.cells.values()]
        return {outcome: sum(cell.outcome is outcome for cell in cells) for outcome in MARKS}

    def found(self, *outcomes: Outcome) -> list[Finding]:
        """The findings with one of these outcomes."""
        return [finding for finding in self.findings if finding.outcome in outcomes]
