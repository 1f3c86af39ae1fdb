"""Markdown, fit for a step summary of a CI service."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence

from harness.model.record import Outcome
from harness.report.matrix import MARKS, MEANINGS, NO_MARK, Cell, Finding, Head, Matrix, Row
from harness.report.sentences import (
    describe_absent,
    describe_counts,
    describe_figures,
    describe_legend,
    describe_notes,
    describe_run,
)
from harness.report.words import clean, facts, megabytes, number, steps


def render_markdown(matrix: Matrix) -> str:
    """Headline, table, findings and figures; texts of runtimes are escaped or fenced."""
    return "\n".join(_lines(matrix)) + "\n"


def _lines(matrix: Matrix) -> Iterator[str]:
    yield "# Seatrial report"
    yield ""
    for head in matrix.runs:
        first, *rest = describe_run(head, len(matrix.runs) > 1)
        yield f"{plain(first)}  "
        yield from (f"{plain(line)}  " for line in rest)
        yield ""
        if head.state:
            yield f"> **Partial: {plain(head.state.partition(':')[0])}.** What was measured until then is below."
            yield ""
    if not matrix.rows:
        yield "This run has no subjects and no records."
        return
    yield f"**{plain(describe_counts(matrix))}**"
    yield ""
    used = [column for column in matrix.columns if any(column.operation in row.cells for row in matrix.rows)]
    yield "| subject | " + " | ".join(column.title for column in used) + " | total ms | engine MB | processes |"
    yield "|:--|" + "--:|" * (len(used) + 3)
    for row in matrix.rows:
        cells = [_cell(row.cells.get(column.operation)) for column in used]
        yield f"| **{plain(row.name)}** | " + " | ".join([*cells, *_sums(row)]) + " |"
    yield ""
    for line in describe_legend(matrix):
        yield plain(line)
        yield ""
    wrong = matrix.found(Outcome.ERROR, Outcome.FAIL)
    if wrong:
        yield "## What went wrong"
        yield ""
        for finding in wrong:
            yield from render_finding(finding)
    skipped = [
        f"{MARKS[Outcome.SKIP]} **{plain(finding.name)}**: {plain(finding.reason)} ({plain(steps(finding.operations))})"
        for finding in matrix.found(Outcome.SKIP)
    ]
    absent = [plain(line) for line in describe_absent(matrix)]
    for title, outcome, lines in (("Skipped", Outcome.SKIP, skipped), ("Not offered", Outcome.NA, absent)):
        if lines:
            yield f"<details><summary>{title}: {MEANINGS[outcome]} ({len(lines)})</summary>"
            yield ""
            yield from (f"- {line}" for line in lines)
            yield ""
            yield "</details>"
            yield ""
    figures = describe_figures(matrix)
    if figures:
        yield "## Figures"
        yield ""
        yield from (f"- {plain(line)}" for line in figures)
        yield ""
    yield from describe_machines(matrix.runs, describe_notes(matrix))


def describe_machines(heads: Sequence[Head], notes: Sequence[str], name: str = "") -> Iterator[str]:
    """What is known of the machines and versions, folded away. `name`: of the machine, where there are several."""
    yield f"<details><summary>{f'{plain(name)}: machine' if name else 'Machine'}, versions, notes</summary>"
    yield ""
    for head in heads:
        if head.label:
            yield f"**{plain(head.label)}**"
            yield ""
        pairs = [
            *facts(head.run.machine),
            *((program, clean(version)) for program, version in head.run.versions.items()),
        ]
        yield from (f"- {plain(fact)}: {plain(value)}" for fact, value in pairs)
        yield ""
    yield from (f"- {plain(note)}" for note in notes)
    yield ""
    yield "</details>"


def plain(text: str) -> str:
    """`text` so that Markdown (and the HTML in it) shows it as it is, on one line."""
    text = html.escape(" ".join(clean(text).split()), quote=False)
    return re.sub(r"([\\`*_\[\]|~#!@$])", lambda match: f"&#{ord(match[1])};", text)


def fenced(text: str) -> list[str]:
    """`text` as a block of code that it cannot end."""
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text)), 3)
    return [f"{fence}text", *text.split("\n"), fence]


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return NO_MARK
    mark = f"{MARKS[cell.outcome]} {cell.outcome.value}" if cell.outcome is not Outcome.PASS else MARKS[cell.outcome]
    if cell.outcome in (Outcome.FAIL, Outcome.ERROR):
        mark = f"**{mark}**"
    if cell.cost is None:
        return mark
    return f"{mark} {number(cell.cost.wall_ms)}<br><sub>{number(cell.cost.cpu_ms)}</sub>"


def _sums(row: Row) -> list[str]:
    least = "" if row.whole else "≥ "
    wall = f"{least}{number(row.wall_ms)}<br><sub>{number(row.cpu_ms)}</sub>" if row.wall_ms is not None else ""
    processes = f"{row.held.processes:.0f}" if row.held.processes is not None else ""
    return [wall, megabytes(row.held.engine) if row.held.engine is not None else "", processes]


def render_finding(finding: Finding) -> Iterator[str]:
    """A section of its own: the reason, and how to reproduce it."""
    where = f", {plain(steps(finding.operations))}" if finding.operations else ""
    times = f" ({finding.count} times)" if finding.count > 1 else ""
    yield f"### {MARKS[finding.outcome]} {finding.outcome.value}: {plain(finding.name)}{where}{times}"
    yield ""
    yield from fenced(finding.reason)
    yield ""
    if finding.reproduce:
        yield "Reproduce:"
        yield ""
        yield from fenced(finding.reproduce)
        yield ""
