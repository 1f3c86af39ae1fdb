"""The matrix in a terminal: subjects down, steps across, findings and figures below."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Sequence

import click

from harness.model.record import Outcome
from harness.report.grid import BLANK, GAP, chunks, render_grid, width_of
from harness.report.matrix import AREAS, MARKS, NO_MARK, Column, Finding, Matrix, Row
from harness.report.sentences import describe_absent, describe_figures, describe_legend, describe_run
from harness.report.words import megabytes, number, steps

_COLOURS = {
    Outcome.PASS: {"fg": "green"},
    Outcome.FAIL: {"fg": "red", "bold": True},
    Outcome.NA: {"dim": True},
    Outcome.SKIP: {"fg": "yellow"},
    Outcome.ERROR: {"fg": "magenta", "bold": True},
}
_SUMS = ("total\nwall", "total\nCPU", "engine\nMB", "pro-\ncesses")

Paint = Callable[[str, Outcome | None], str]


def render_table(matrix: Matrix, *, colour: bool = False, width: int = 160) -> str:
    """At `width` characters: one table, or the steps in as many as it takes. Escape sequences only where `colour`."""
    paint = painter(colour)
    parts = [part for head in matrix.runs for part in describe_run(head, len(matrix.runs) > 1)]
    if not matrix.rows:
        return "\n".join([*wrapped(parts, width), "", "This run has no subjects and no records."])
    blocks = ["\n".join(wrapped(parts, width)), *_tables(matrix, paint, width)]
    blocks.append("\n".join(wrapped(describe_legend(matrix), width)))
    for title, outcomes in (
        ("What went wrong", (Outcome.ERROR, Outcome.FAIL)),
        ("What was skipped", (Outcome.SKIP,)),
    ):
        found = matrix.found(*outcomes)
        if found:
            blocks.append(
                "\n".join([title, *(line for finding in found for line in render_finding(finding, paint, width))])
            )
    absent = describe_absent(matrix)
    if absent:
        blocks.append("\n".join(["What is not offered, or not specified", *wrapped(absent, width, "  ")]))
    figures = describe_figures(matrix)
    if figures:
        blocks.append("\n".join(["Figures", *wrapped(figures, width, "  ")]))
    return "\n\n".join(blocks)


def painter(colour: bool) -> Paint:
    """What gives a text the colour of an outcome; where not `colour`, what leaves it as it is."""

    def paint(text: str, outcome: Outcome | None) -> str:
        return click.style(text, **_COLOURS[outcome]) if colour and outcome else text  # type: ignore[arg-type]

    return paint


def _tables(matrix: Matrix, paint: Paint, width: int) -> Iterator[str]:
    used = [column for column in matrix.columns if any(column.operation in row.cells for row in matrix.rows)]
    columns: list[Column] = used or list(matrix.columns)
    names = ["subject", *(row.name for row in matrix.rows)]
    sums = list(zip(_SUMS, *map(_sums, matrix.rows), strict=True))
    texts = [_column(column, matrix.rows, paint) for column in columns]
    widths = [width_of(text) + len(GAP) for text in texts]
    sums_width = sum(width_of(text) + len(GAP) for text in sums)
    for chunk, last in chunks(widths, width - width_of(names), sums_width):
        shown = [names, *(texts[index] for index in chunk), *(sums if last else ())]
        yield "\n".join(render_grid(shown))


def _column(column: Column, rows: Sequence[Row], paint: Paint) -> list[str]:
    """Title and cells of a step; marks stand below each other."""
    cells = [row.cells.get(column.operation) for row in rows]
    times = [number(cell.cost.wall_ms) if cell and cell.cost else "" for cell in cells]
    if column in AREAS:
        # Many checks and no cost: how many of those that apply have passed.
        times = [cell.passed if cell else "" for cell in cells]
    size = max(map(len, times), default=0)
    texts = [column.title.replace(" ", "\n")]
    for cell, time in zip(cells, times, strict=True):
        mark = paint(MARKS[cell.outcome], cell.outcome) if cell else NO_MARK
        first = f"{mark} {time:{BLANK}>{size}}" if size else mark
        texts.append(f"{first}\n{number(cell.cost.cpu_ms)}" if cell and cell.cost else first)
    return texts


def _sums(row: Row) -> tuple[str, str, str, str]:
    least = "" if row.whole else "≥"
    return (
        least + number(row.wall_ms) if row.wall_ms is not None else "",
        least + number(row.cpu_ms) if row.cpu_ms is not None else "",
        megabytes(row.held.engine) if row.held.engine is not None else "",
        f"{row.held.processes:.0f}" if row.held.processes is not None else "",
    )


def render_finding(finding: Finding, paint: Paint, width: int) -> Iterator[str]:
    """Lines: outcome, who and where, the reason (only its first line, if nothing is wrong), how to reproduce it."""
    where = steps(finding.operations)
    times = f" ({finding.count} times)" if finding.count > 1 and finding.reproduce else ""
    first, *rest = finding.reason.split("\n")
    mark = paint(f"{MARKS[finding.outcome]} {finding.outcome.value}", finding.outcome)
    head = f"{finding.name}, {where}{times}: {first}" if where else f"{finding.name}{times}: {first}"
    lines = wrapped([head], width - 8, "") or [""]
    yield f"  {mark}{' ' * (6 - len(finding.outcome.value))}{lines[0]}"
    yield from (f"          {line}" for line in lines[1:])
    if finding.outcome in (Outcome.FAIL, Outcome.ERROR):
        for line in rest:
            yield from (f"          {part}" for part in (wrapped([line], width - 10) or [""]))
        if finding.reproduce:
            yield f"          reproduce: {finding.reproduce}"


def wrapped(lines: Sequence[str], width: int, indent: str = "") -> list[str]:
    """`lines` in `width` characters (40 at the least); what does not fit into one goes on two further to the right."""
    return [
        part
        for line in lines
        for part in textwrap.wrap(
            line,
            max(width, 40),
            initial_indent=indent,
            subsequent_indent=f"{indent}  " if indent else "",
            break_on_hyphens=False,
        )
    ]
