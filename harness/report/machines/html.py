"""Several machines as one HTML page that needs nothing else: what differs stands first and is marked."""

from __future__ import annotations

from harness.model.record import Outcome
from harness.report.html import environment
from harness.report.machines import sentences
from harness.report.machines.result import Lane, Line, Machine, Merged
from harness.report.matrix import MEANINGS, NO_MARK, Cell
from harness.report.sentences import describe_absent, describe_counts, describe_figures, describe_notes
from harness.report.words import number


def render_html(merged: Merged) -> str:
    """The page; headers stay in view while the matrix is scrolled, and bars are drawn with CSS alone."""
    return (
        environment()
        .get_template("machines/page.html")
        .render(
            merged=merged,
            said=sentences,
            meanings=MEANINGS,
            no_mark=NO_MARK,
            wrong=sentences.find_others(merged, Outcome.ERROR, Outcome.FAIL),
            skipped=sentences.find_others(merged, Outcome.SKIP),
            absent=sentences.collect(merged, describe_absent),
            figures=sentences.collect(merged, describe_figures),
            costs=sentences.compared_groups(merged),
            counts_of=describe_counts,
            notes_of=describe_notes,
            longest=_longest(merged),
            tooltip=_tooltip,
            bar=_bar,
            shares=_shares,
        )
    )


def _longest(merged: Merged) -> dict[tuple[str, str], float]:
    """The largest CPU time of each subject's step: the scale of the little bars, which compare machines."""
    longest: dict[tuple[str, str], float] = {}
    for group in merged.groups:
        for operation, cell in ((it, cell) for lane in group.lanes for it, cell in lane.row.cells.items()):
            if cell.cost and cell.cost.cpu_ms is not None:
                key = group.subject, operation
                longest[key] = max(longest.get(key, 0.0), cell.cost.cpu_ms)
    return longest


def _shares(machine: Machine) -> list[tuple[Outcome, int, float]]:
    """A machine's cells by outcome: their number, and their share in percent."""
    counts = machine.matrix.counts
    total = sum(counts.values()) or 1
    return [(outcome, count, round(100 * count / total, 3)) for outcome, count in counts.items() if count]


def _bar(cell: Cell, longest: float) -> float | None:
    """The length of a cell's bar, in percent."""
    if cell.cost is None or cell.cost.cpu_ms is None or not longest:
        return None
    return round(100 * cell.cost.cpu_ms / longest, 1)


def _tooltip(lane: Lane, line: Line, cell: Cell) -> str:
    """All that is known of a cell."""
    parts = [f"{lane.row.subject} on {lane.machine.name}, {line.column.title}: {cell.outcome.value}"]
    parts.append(", ".join(f"{count} {outcome.value}" for outcome, count in cell.tests.items()))
    if cell.cost:
        cost = cell.cost
        parts.append(
            f"CPU {number(cost.cpu_ms)} ms, wall {number(cost.wall_ms)} ms ({number(cost.wall_low_ms)} to {number(cost.wall_high_ms)})"
        )
    ratio = (lane.ratios or {}).get(line.column.operation)
    if ratio:
        parts.append(f"wall ×{ratio.wall:.2f}" + (f", CPU ×{ratio.cpu:.2f}" if ratio.cpu is not None else ""))
    return "; ".join(parts)
