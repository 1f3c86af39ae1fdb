"""One HTML page that needs nothing else: no scripts, no other files, light and dark.

The page is the template ``page.html`` beside this module. Texts of runtimes are escaped by jinja2, whose escaping is on for
all that the template prints; a content security policy in the page forbids everything but its own style.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import jinja2

from harness.model.lifecycle import POD_CALLS
from harness.model.record import Outcome
from harness.report import words
from harness.report.figures import REFERENCE
from harness.report.matrix import MARKS, MEANINGS, NO_MARK, TITLES, Cell, Matrix, Row
from harness.report.sentences import (
    describe_absent,
    describe_counts,
    describe_figures,
    describe_notes,
    describe_run,
)

_CLASSES: Mapping[Outcome, str] = {
    Outcome.PASS: "pass",
    Outcome.FAIL: "fail",
    Outcome.NA: "na",
    Outcome.SKIP: "skip",
    Outcome.ERROR: "error",
}


@dataclass(frozen=True, slots=True)
class Segment:
    """Part of a bar. `share`: of the longest bar's length, in percent."""

    kind: str
    title: str
    share: float


@dataclass(frozen=True, slots=True)
class Bar:
    """One subject in a chart."""

    name: str
    label: str
    segments: tuple[Segment, ...]


@dataclass(frozen=True, slots=True)
class Chart:
    """Bars to one scale. `key`: kind and name of the segments that need telling apart."""

    title: str
    about: str
    key: tuple[tuple[str, str], ...]
    bars: tuple[Bar, ...]


def environment() -> jinja2.Environment:
    """Templates beside this module and below it; all that they print is escaped."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {
        "number": words.number,
        "megabytes": words.megabytes,
        "clean": words.clean,
        "steps": words.steps,
        "facts": words.facts,
        "kind": lambda outcome: _CLASSES[outcome],
        "mark": lambda outcome: MARKS[outcome],
    }
    return made


def render_html(matrix: Matrix) -> str:
    """The page."""
    used = [column for column in matrix.columns if any(column.operation in row.cells for row in matrix.rows)]
    return (
        environment()
        .get_template("page.html")
        .render(
            matrix=matrix,
            columns=used or matrix.columns,
            longest=_longest(matrix.rows),
            charts=[chart for chart in (_time(matrix), _cpu(matrix), _memory(matrix)) if chart.bars],
            titles=TITLES,
            meanings=MEANINGS,
            no_mark=NO_MARK,
            wrong=matrix.found(Outcome.ERROR, Outcome.FAIL),
            skipped=matrix.found(Outcome.SKIP),
            absent=describe_absent(matrix),
            counts=matrix.counts,
            counted=describe_counts(matrix),
            figures=[line for line in describe_figures(matrix) if not line.startswith("One pod")],
            pod_calls=POD_CALLS,
            reference=REFERENCE,
            notes=describe_notes(matrix),
            describe_run=describe_run,
        )
    )


def _longest(rows: Iterable[Row]) -> dict[str, float]:
    """The longest wall time of each step: the scale of the little bars in its cells."""
    longest: dict[str, float] = {}
    for row in rows:
        for operation, cell in row.cells.items():
            if cell.cost:
                longest[operation] = max(longest.get(operation, 0.0), cell.cost.wall_ms)
    return longest


def _time(matrix: Matrix) -> Chart:
    bars = []
    for row in matrix.rows:
        cells = _priced(row, matrix)
        parts = [
            (f"step{index % 2}", f"{TITLES[operation]}: {words.number(cell.cost.wall_ms)} ms", cell.cost.wall_ms)
            for index, (operation, cell) in enumerate(cells)
            if cell.cost
        ]
        if parts:
            bars.append((row.name, f"{_least(row)}{words.number(row.wall_ms)} ms, {len(parts)} steps", parts))
    about = "The medians of all steps on end; a subject without pods or images has fewer of them."
    return Chart("Wall time of a voyage", about, (), _scaled(bars))


def _cpu(matrix: Matrix) -> Chart:
    bars = []
    for row in matrix.rows:
        costs = [cell.cost for _, cell in _priced(row, matrix) if cell.cost]
        sums = {
            "engine": sum(cost.cpu_engine_ms or 0.0 for cost in costs),
            "client": sum(cost.cpu_client_ms or 0.0 for cost in costs),
            "pods": sum(cost.cpu_pods_ms or 0.0 for cost in costs),
        }
        parts = [(kind, f"{kind}: {words.number(value)} ms", value) for kind, value in sums.items() if value]
        if parts and row.cpu_ms is not None:
            bars.append((row.name, f"{_least(row)}{words.number(row.cpu_ms)} ms", parts))
    about = "What the steps cost the machine, by the account on which it went: the figure to compare by."
    key = (("engine", "engine"), ("client", "client"), ("pods", "pods"))
    return Chart("CPU time of a voyage", about, key, _scaled(bars))


def _memory(matrix: Matrix) -> Chart:
    bars = []
    for row in matrix.rows:
        held = row.held
        sizes = {"anon": held.anon, "shmem": held.shmem, "kernel": held.kernel, "slab": held.slab}
        parts = [(kind, f"{kind}: {words.megabytes(size)} MB", size) for kind, size in sizes.items() if size]
        if parts and held.engine is not None:
            label = f"{words.megabytes(held.engine)} MB"
            if held.processes is not None:
                label += f", {held.processes:.0f} process{'es' if held.processes != 1 else ''}"
            bars.append((row.name, label, parts))
    about = "What the engine's cgroup holds at the end of a step and nobody can take from it; page cache is not in it."
    key = (("anon", "anonymous"), ("shmem", "shared"), ("kernel", "kernel"), ("slab", "slab"))
    seen = {part[0] for _, _, parts in bars for part in parts}
    return Chart("Memory of the engine", about, tuple(pair for pair in key if pair[0] in seen), _scaled(bars))


def _priced(row: Row, matrix: Matrix) -> list[tuple[str, Cell]]:
    return [
        (column.operation, row.cells[column.operation])
        for column in matrix.columns
        if column.operation in row.cells and row.cells[column.operation].cost
    ]


def _scaled(bars: Iterable[tuple[str, str, list[tuple[str, str, float]]]]) -> tuple[Bar, ...]:
    known = list(bars)
    longest = max((sum(size for _, _, size in parts) for _, _, parts in known), default=0.0) or 1.0
    return tuple(
        Bar(name, label, tuple(Segment(kind, title, round(100 * size / longest, 3)) for kind, title, size in parts))
        for name, label, parts in known
    )


def _least(row: Row) -> str:
    return "" if row.whole else "≥ "
