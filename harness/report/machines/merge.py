"""From runs of several machines to one report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from harness.model.record import Outcome
from harness.report.load import by_machine
from harness.report.machines.differences import Endings, find_differences, find_endings, steps_of
from harness.report.machines.result import Difference, Ending, Group, Lane, Line, Machine, Merged, Ratio
from harness.report.matrix import RANKS, Finding, Row
from harness.report.statistics import find_matrix
from harness.report.words import clean, name
from harness.store import RunData

Told = Mapping[tuple[str, str, Outcome, str], set[str]]
"""The operations that differences tell of, by machine, subject, outcome and reason."""


def find_merged(runs: Sequence[RunData]) -> Merged:
    """All of a report on `runs`, which are one at least. Runs of the same machine stand side by side, as its own report has them."""
    held = by_machine(runs)
    matrices = {machine: find_matrix(mine) for machine, mine in held.items()}
    subjects = list(dict.fromkeys(row.subject for matrix in matrices.values() for row in matrix.rows))
    endings = find_endings(held)
    differences = find_differences(endings, subjects)
    told = _told(differences)
    machines = tuple(
        Machine(
            name=machine,
            matrix=replace(
                matrix,
                runs=tuple(replace(head, label=machine) for head in matrix.runs),
                findings=tuple(it for it in matrix.findings if not _is_told(machine, it, told)),
            ),
            accelerator=name(str(held[machine][-1].run.machine.get("accelerator") or "")),
            fault=clean("\n".join(str(it.run.machine["fault"]) for it in held[machine] if it.run.machine.get("fault"))),
        )
        for machine, matrix in matrices.items()
    )
    steps = steps_of(endings)
    return Merged(
        machines=machines,
        groups=tuple(_group(subject, machines) for subject in subjects),
        lines=_lines(machines, differences, endings),
        endings=endings,
        differences=differences,
        compared=sum(len(by) for by in steps.values() if len(by) > 1),
    )


def _told(differences: Sequence[Difference]) -> Told:
    told: dict[tuple[str, str, Outcome, str], set[str]] = {}
    for difference in differences:
        for machine, ending in difference.endings.items():
            key = machine, difference.subject, ending.outcome, ending.reason
            told.setdefault(key, set()).update(difference.operations)
    return told


def _is_told(machine: str, finding: Finding, told: Told) -> bool:
    known = told.get((machine, finding.name, finding.outcome, finding.reason))
    return known is not None and {it if it in RANKS else "" for it in finding.operations or ("",)} <= known


def _group(subject: str, machines: Sequence[Machine]) -> Group:
    lanes = []
    for machine in machines:
        rows = [row for row in machine.matrix.rows if row.subject == subject]
        runs = [name(machine.matrix.runs[row.run].run.run) if len(rows) > 1 else "" for row in rows]
        lanes += [Lane(machine, row, run) for row, run in zip(rows, runs, strict=True)]
    base = next((lane for lane in lanes if lane.row.wall_ms is not None), None)
    if base is None:
        return Group(subject, tuple(lanes))
    compared = (
        replace(lane, ratios=_ratios(lane.row, base.row) or None) if lane.machine is not base.machine else lane
        for lane in lanes
    )
    return Group(subject, tuple(compared), base.machine.name)


def _ratios(row: Row, base: Row) -> dict[str, Ratio]:
    """Of the steps that were measured on both, on the same network."""
    found = {}
    for operation, cell in row.cells.items():
        other = base.cells.get(operation)
        if cell.cost and other and other.cost and other.cost.wall_ms and row.network == base.network:
            mine, theirs = cell.cost.cpu_ms, other.cost.cpu_ms
            found[operation] = Ratio(
                cell.cost.wall_ms / other.cost.wall_ms, mine / theirs if mine is not None and theirs else None
            )
    return found


def _lines(machines: Sequence[Machine], differences: Sequence[Difference], endings: Endings) -> tuple[Line, ...]:
    rows = [row for machine in machines for row in machine.matrix.rows]
    columns = {column.operation: column for machine in machines for column in machine.matrix.columns}
    steps = steps_of(endings)
    subjects: dict[tuple[str, str], set[str]] = {}
    """those that differ, by operation and test; an empty test is the step itself"""
    gravities: dict[str, int] = {}
    for difference in differences:
        for operation in difference.operations:
            gravities[operation] = min(difference.gravity, gravities.get(operation, difference.gravity))
            subjects.setdefault((operation, ""), set()).add(difference.subject)
            for test in difference.tests:
                by = endings.get((difference.subject, operation, test), {})
                # What the step's own cells say already (it was skipped altogether) needs no further row.
                if by and (not difference.gravity or _outcomes(by) != steps[difference.subject, operation]):
                    subjects.setdefault((operation, test), set()).add(difference.subject)
    used = sorted((it for it in columns if any(it in row.cells for row in rows)), key=RANKS.__getitem__)
    return tuple(
        Line(columns[operation], test, frozenset(subjects.get((operation, test), ())), gravities.get(operation))
        for operation in sorted(used, key=lambda it: gravities.get(it, len(Outcome)))
        for test in ("", *(test for step, test in subjects if step == operation and test))
    )


def _outcomes(by: Mapping[str, Ending]) -> dict[str, Outcome]:
    return {machine: ending.outcome for machine, ending in by.items()}
