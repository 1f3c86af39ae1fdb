"""Several machines in Markdown: what differs, one table of all steps, the rest folded away."""

from __future__ import annotations

from collections.abc import Iterator

from harness.model.record import Outcome
from harness.report.machines import sentences
from harness.report.machines.result import Ending, Lane, Line, Merged
from harness.report.machines.sentences import DIFFERS
from harness.report.markdown import describe_machines, plain, render_finding
from harness.report.matrix import MARKS, MEANINGS, NO_MARK, Finding
from harness.report.sentences import describe_absent, describe_figures, describe_notes
from harness.report.words import steps


def render_markdown(merged: Merged) -> str:
    """Machines, differences, matrix, findings and figures; texts of runtimes are escaped or fenced."""
    return "\n".join(_lines(merged)) + "\n"


def _lines(merged: Merged) -> Iterator[str]:
    yield "# Seatrial report"
    yield ""
    yield f"{plain(sentences.describe_title(merged))}"
    yield ""
    for machine in merged.machines:
        state = f"**{MARKS[Outcome.ERROR]} error** " if machine.fault else ""
        yield f"- **{plain(machine.name)}**: {state}{plain(sentences.describe_machine(machine))}"
    yield ""
    if len(merged.machines) > 1:
        yield "## What differs between machines"
        yield ""
    for machine in merged.machines:
        if machine.fault:
            yield from render_finding(sentences.describe_fault(machine))
    if len(merged.machines) > 1:
        yield from _differences(merged)
    yield from _matrix(merged)
    for line in sentences.describe_legend(merged):
        yield plain(line)
        yield ""
    for place, found in sentences.find_others(merged, Outcome.ERROR, Outcome.FAIL):
        yield f"## What {'else ' if merged.differences else ''}went wrong on {plain(place)}"
        yield ""
        for finding in found:
            yield from render_finding(finding)
    yield from _costs(merged)
    yield from _folded(f"Skipped: {MEANINGS[Outcome.SKIP]}", _skipped(merged))
    absent = [plain(line) for line in sentences.collect(merged, describe_absent)]
    yield from _folded(f"Not offered: {MEANINGS[Outcome.NA]}", absent)
    figures = sentences.collect(merged, describe_figures)
    if figures:
        yield "## Figures"
        yield ""
        yield from (f"- {plain(line)}" for line in figures)
        yield ""
    for machine in merged.machines:
        yield from describe_machines(machine.matrix.runs, describe_notes(machine.matrix), machine.name)
        yield ""


def _differences(merged: Merged) -> Iterator[str]:
    if not merged.differences:
        yield f"**{plain(sentences.describe_agreement(merged))}**"
        yield ""
        return
    yield "| subject | step | test | " + " | ".join(plain(machine.name) for machine in merged.machines) + " |"
    yield "|:--|:--|:--|" + ":--|" * len(merged.machines)
    for difference in merged.differences:
        where, tests = sentences.describe_difference(difference)
        cells = [_ending(difference.endings.get(machine.name)) for machine in merged.machines]
        words = f"**{plain(difference.subject)}** | {plain(where)} | {'<br>'.join(map(plain, tests))}"
        yield f"| {words} | {' | '.join(cells)} |"
    yield ""
    for finding in merged.told:
        if finding.outcome in (Outcome.ERROR, Outcome.FAIL):
            yield from render_finding(finding)
        else:
            yield f"- {_sentence(finding)}"
    yield ""


def _ending(ending: Ending | None) -> str:
    if ending is None:
        return NO_MARK
    word = f"{MARKS[ending.outcome]} {ending.outcome.value}"
    return f"**{word}**" if ending.outcome in (Outcome.ERROR, Outcome.FAIL) else word


def _sentence(finding: Finding) -> str:
    """A finding that is no fault, in one line."""
    where = f" ({plain(steps(finding.operations))})" if finding.operations else ""
    return f"{MARKS[finding.outcome]} **{plain(finding.name)}**: {plain(finding.reason)}{where}"


def _matrix(merged: Merged) -> Iterator[str]:
    lanes = [lane for group in merged.groups for lane in group.lanes]
    if not lanes:
        return
    yield "## Every step on every machine"
    yield ""
    heads = [f"{plain(lane.row.subject)}<br>{plain(lane.machine.name)} {plain(lane.run)}".rstrip() for lane in lanes]
    yield "| step | " + " | ".join(heads) + " |"
    yield "|:--|" + "--:|" * len(lanes)
    for line in merged.lines:
        yield f"| {_label(line)} | " + " | ".join(_cell(lane, line, merged) for lane in lanes) + " |"
    yield ""


def _label(line: Line) -> str:
    if line.test:
        return f"<sub>{plain(line.test)}</sub>"
    return f"**{DIFFERS} {line.column.title}**" if line.subjects else line.column.title


def _cell(lane: Lane, line: Line, merged: Merged) -> str:
    if line.test:
        by = merged.endings.get((lane.row.subject, line.column.operation, line.test), {})
        return _ending(by.get(lane.machine.name)) if by else ""
    cell = lane.row.cells.get(line.column.operation)
    if cell is None:
        return NO_MARK
    mark = MARKS[cell.outcome] if cell.outcome is Outcome.PASS else _ending(Ending(cell.outcome))
    return f"{mark} {sentences.describe_value(line.column, cell)}".rstrip()


def _costs(merged: Merged) -> Iterator[str]:
    groups = sentences.compared_groups(merged)
    if not groups:
        return
    yield "## What it costs from machine to machine"
    yield ""
    yield plain(sentences.describe_costs(merged))
    yield ""
    yield "| subject | " + " | ".join(f"{plain(it.name)}: CPU | wall" for it in merged.machines) + " |"
    yield "|:--|" + "--:|--:|" * len(merged.machines)
    for group in groups:
        cells: list[str] = []
        for machine in merged.machines:
            lane = group.lane(machine)
            cells += sentences.describe_cost(lane, group, merged) if lane else ("", "")
        yield f"| **{plain(group.subject)}** | {' | '.join(cells)} |"
    yield ""


def _skipped(merged: Merged) -> list[str]:
    return [
        f"{_sentence(finding)}, on {plain(place)}"
        for place, found in sentences.find_others(merged, Outcome.SKIP)
        for finding in found
    ]


def _folded(title: str, lines: list[str]) -> Iterator[str]:
    if lines:
        yield f"<details><summary>{title} ({len(lines)})</summary>"
        yield ""
        yield from (f"- {line}" for line in lines)
        yield ""
        yield "</details>"
        yield ""
