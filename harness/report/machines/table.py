"""Several machines in a terminal: what differs, then steps down and the machines of each subject side by side."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from harness.model.record import Outcome
from harness.report.grid import BLANK, GAP, chunks, render_grid, width_of
from harness.report.machines import sentences
from harness.report.machines.result import Difference, Ending, Group, Lane, Line, Machine, Merged
from harness.report.machines.sentences import DIFFERS
from harness.report.matrix import MARKS, NO_MARK, RANKS
from harness.report.sentences import describe_absent, describe_figures
from harness.report.table import Paint, painter, render_finding, wrapped
from harness.report.words import megabytes, number

_LONGEST = 64
"""characters of a test's name in a line; a longer one goes on in the next"""
_WIDEST = 14
"""characters of a machine's name in a line"""
_SUMS = ("total CPU", "engine MB", "processes")
_MARK = 1 + len(GAP)
"""characters that the mark of a difference takes in a row"""


@dataclass(frozen=True, slots=True)
class Part:
    """Columns that belong together, below the name of a subject."""

    subject: str
    columns: tuple[list[str], ...]

    @property
    def width(self) -> int:
        """With the gap before each column."""
        return sum(width_of(column) + len(GAP) for column in self.columns)


def render_table(merged: Merged, *, colour: bool = False, width: int = 160) -> str:
    """At `width` characters: subjects in as many tables as it takes. Escape sequences only where `colour`."""
    paint = painter(colour)
    blocks = ["\n".join([*wrapped([sentences.describe_title(merged)], width), *_machines(merged, paint, width)])]
    if len(merged.machines) > 1:
        blocks += _differences(merged, paint, width)
    else:
        blocks += _faults(merged, paint, width)
    blocks += _matrix(merged, paint, width)
    blocks.append("\n".join(wrapped(sentences.describe_legend(merged), width)))
    what = "What else" if merged.differences else "What"
    for title, outcomes in (
        (f"{what} went wrong on", (Outcome.ERROR, Outcome.FAIL)),
        (f"{what} was skipped on", (Outcome.SKIP,)),
    ):
        for place, found in sentences.find_others(merged, *outcomes):
            lines = [line for finding in found for line in render_finding(finding, paint, width)]
            blocks.append("\n".join([f"{title} {place}", *lines]))
    absent = sentences.collect(merged, describe_absent)
    if absent:
        blocks.append("\n".join(["What is not offered, or not specified", *wrapped(absent, width, "  ")]))
    blocks += _costs(merged, width)
    figures = sentences.collect(merged, describe_figures)
    if figures:
        blocks.append("\n".join(["Figures", *wrapped(figures, width, "  ")]))
    return "\n\n".join(blocks)


def _machines(merged: Merged, paint: Paint, width: int) -> Iterator[str]:
    """A name and a line about each, which goes on below itself."""
    size = max(len(machine.name) for machine in merged.machines)
    for machine in merged.machines:
        state = f"{MARKS[Outcome.ERROR]} error" if machine.fault else ""
        text = sentences.describe_machine(machine)
        first, *rest = wrapped([f"{state}, {text}" if state else text], width - size - 4)
        yield f"  {machine.name:{size}}  {paint(state, Outcome.ERROR) if state else ''}{first.removeprefix(state)}"
        yield from (f"{'':{size + 4}}{line}" for line in rest)


def _faults(merged: Merged, paint: Paint, width: int) -> list[str]:
    faults = [sentences.describe_fault(machine) for machine in merged.machines if machine.fault]
    return ["\n".join(line for it in faults for line in render_finding(it, paint, width))] if faults else []


def _differences(merged: Merged, paint: Paint, width: int) -> Iterator[str]:
    faults = _faults(merged, paint, width)
    if not merged.differences:
        agreement = wrapped([sentences.describe_agreement(merged)], width, "  ")
        yield "\n".join(["What differs between machines", *faults, *agreement])
        return
    yield "\n".join(["What differs between machines", *faults])
    labels = ["subject, step, test", *map(_label, merged.differences)]
    columns = [
        ["\n".join(_head(machine)), *(_ending(it.endings.get(machine.name), paint) for it in merged.differences)]
        for machine in merged.machines
    ]
    for chunk, _ in chunks([width_of(column) + len(GAP) for column in columns], width - width_of(labels)):
        yield "\n".join(render_grid([labels, *(columns[index] for index in chunk)]))
    yield "\n".join(line for finding in merged.told for line in render_finding(finding, paint, width))


def _label(difference: Difference) -> str:
    where, tests = sentences.describe_difference(difference)
    return "\n".join([f"{difference.subject}, {where}", *wrapped(tests, _LONGEST, BLANK * 2)])


def _head(machine: Machine) -> list[str]:
    """A machine over its column, and what a reader must know of it. A long name goes on in the next line, at a @ or a dot."""
    lines = [""]
    for part in re.split(r"(?=[@.])", machine.name):
        if lines[-1] and len(lines[-1] + part) > _WIDEST:
            lines.append("")
        lines[-1] += part
    lines += ["(tcg)"] if machine.emulated else []
    return [*lines, f"{MARKS[Outcome.ERROR]} error"] if machine.fault else lines


def _ending(ending: Ending | None, paint: Paint) -> str:
    if ending is None:
        return f"{NO_MARK}{BLANK * 6}"
    text = f"{MARKS[ending.outcome]} {ending.outcome.value}"
    return f"{paint(text, ending.outcome)}{BLANK * (7 - len(text))}"


def _matrix(merged: Merged, paint: Paint, width: int) -> Iterator[str]:
    """Steps down, subjects across. A subject whose machines do not fit into one table has them in several."""
    lines = sorted((line for line in merged.lines if not line.test), key=lambda line: RANKS[line.column.operation])
    labels = ["step", *(line.column.title for line in lines), *_SUMS]
    room = width - width_of(labels)
    parts = [
        part
        for group in merged.groups
        for part in _parts(group, [_lane(lane, lines, paint) for lane in group.lanes], _marks(group, lines), room)
    ]
    for chunk, _ in chunks([part.width for part in parts], room) if parts else ():
        shown = [parts[index] for index in chunk]
        subjects = "".join(f"{'':{_MARK + len(GAP)}}{part.subject:<{part.width - _MARK - len(GAP)}}" for part in shown)
        grid = render_grid([labels, *(column for part in shown for column in part.columns)])
        yield "\n".join([f"{'':{width_of(labels)}}{subjects}".rstrip(), *grid])


def _parts(group: Group, lanes: Sequence[list[str]], marks: list[str], room: int) -> Iterator[Part]:
    """The machines of a subject in as many parts as it takes, each wide enough for the subject's name."""
    sizes = [width_of(lane) + len(GAP) for lane in lanes]
    for chunk, _ in chunks(sizes, room - _MARK):
        first, *rest = (lanes[index] for index in chunk)
        lacking = len(group.subject) - sum(sizes[index] for index in chunk) + len(GAP)
        if lacking > 0:
            # The title of the first one reaches to the left, for columns stand to the right.
            title, *more = first[0].split("\n")
            first = ["\n".join([f"{title:{BLANK}>{width_of(first) + lacking}}", *more]), *first[1:]]
        yield Part(group.subject, (marks, first, *rest))


def _marks(group: Group, lines: Sequence[Line]) -> list[str]:
    """A narrow column that shows for which steps the machines of a subject differ."""
    return [BLANK, *(DIFFERS if group.subject in line.subjects else BLANK for line in lines), *(BLANK for _ in _SUMS)]


def _lane(lane: Lane, lines: Sequence[Line], paint: Paint) -> list[str]:
    """Title and cells of a subject on a machine; marks stand below each other."""
    cells = [lane.row.cells.get(line.column.operation) for line in lines]
    values = [sentences.describe_value(line.column, cell) for line, cell in zip(lines, cells, strict=True)]
    size = max(map(len, values), default=0)
    marks = [paint(MARKS[cell.outcome], cell.outcome) if cell else NO_MARK for cell in cells]
    texts = [f"{mark} {value:{BLANK}>{size}}" for mark, value in zip(marks, values, strict=True)]
    held, least = lane.row.held, "" if lane.row.whole else "≥"
    sums = (
        f"{least}{number(lane.row.cpu_ms)}" if lane.row.cpu_ms is not None else "",
        megabytes(held.engine) if held.engine is not None else "",
        f"{held.processes:.0f}" if held.processes is not None else "",
    )
    return ["\n".join([*_head(lane.machine), *([lane.run] if lane.run else [])]), *texts, *sums]


def _costs(merged: Merged, width: int) -> Iterator[str]:
    """Subjects down, machines across: what each costs there, against the first."""
    groups = sentences.compared_groups(merged)
    if not groups:
        return
    columns = [["subject", *(group.subject for group in groups)]]
    for machine in merged.machines:
        pairs = [_cost(group, machine, merged) for group in groups]
        size = max(len(wall) for _, wall in pairs)
        columns.append(["\n".join([*_head(machine), f"CPU{'wall':{BLANK}>{max(size, 4) + 2}}"])])
        columns[-1] += [f"{cpu}{BLANK * 2}{wall:{BLANK}>{max(size, 4)}}" for cpu, wall in pairs]
    names, *others = columns
    yield "\n".join(
        ["What it costs from machine to machine", *wrapped([sentences.describe_costs(merged)], width, "  ")]
    )
    for chunk, _ in chunks([width_of(column) + len(GAP) for column in others], width - width_of(names)):
        yield "\n".join(render_grid([names, *(others[index] for index in chunk)]))


def _cost(group: Group, machine: Machine, merged: Merged) -> tuple[str, str]:
    lane = group.lane(machine)
    return sentences.describe_cost(lane, group, merged) if lane else ("", "")
