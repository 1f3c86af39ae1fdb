"""From records to a matrix: worst outcomes, medians, sums.

A time or a cost counts only where the step's postcondition held, in the measuring phase; warm-up turns and samples of
failed steps are left out. Runs are never pooled: a row is one subject of one run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from harness.model.container import Network
from harness.model.record import Outcome, Record
from harness.report.figures import find_overhead, find_pods, find_taxes
from harness.report.findings import find_findings
from harness.report.load import frame, measured
from harness.report.matrix import AREAS, COLUMNS, OTHER, TITLES, Cell, Cost, Head, Held, Matrix, Row
from harness.report.words import clean, name
from harness.store import RunData

if TYPE_CHECKING:
    import pandas

Key = tuple[int, str, str]
"""Index of a run, subject, network."""
Costs = Mapping[tuple[int, str], Mapping[tuple[str, str], Cost]]
"""By index of a run and subject, then by operation and network."""

_PRECEDENCE = (Outcome.ERROR, Outcome.FAIL, Outcome.PASS, Outcome.SKIP, Outcome.NA)


def worst(outcomes: Sequence[Outcome]) -> Outcome:
    """The outcome of a cell: what went wrong wins; nothing done (skip, n/a) counts only where nothing passed."""
    return next(outcome for outcome in _PRECEDENCE if outcome in outcomes)


def find_matrix(runs: Sequence[RunData]) -> Matrix:
    """All of a report on `runs`."""
    heads = find_heads(runs)
    samples = _samples(frame(runs))
    costs, held = _costs(samples), _held(samples)
    rows = [
        _row(index, heads[index].label, subject, data, costs, held)
        for index, data in enumerate(runs)
        for subject in _subjects(data)
    ]
    further = [column for column in (*AREAS, OTHER) if any(column.operation in row.cells for row in rows)]
    return Matrix(
        runs=heads,
        columns=(*COLUMNS, *further),
        rows=tuple(rows),
        findings=find_findings(runs, [head.label for head in heads]),
        overhead=find_overhead(samples),
        taxes=find_taxes(runs, rows),
        pods=find_pods(runs, rows),
    )


def find_heads(runs: Sequence[RunData]) -> tuple[Head, ...]:
    labels = [""] * len(runs)
    if len(runs) > 1:
        machines = [str(data.run.machine.get("distribution") or "unknown machine") for data in runs]
        labels = [
            f"{machine}, {data.run.run}" if machines.count(machine) > 1 else machine
            for machine, data in zip(machines, runs, strict=True)
        ]
    return tuple(
        Head(data.run, name(label), _state(data), tuple(map(clean, (*data.run.notes, *data.notes))))
        for label, data in zip(labels, runs, strict=True)
    )


def _state(data: RunData) -> str:
    if data.run.interrupted:
        return "interrupted: this report is partial"
    return "" if data.run.ended else "not ended: still under way, or killed; this report is partial"


def _subjects(data: RunData) -> list[str]:
    """In the order of the run; what has records without being named there follows."""
    return list(dict.fromkeys((*data.run.subjects, *(record.subject for record in data.records))))


def _samples(records: pandas.DataFrame) -> pandas.DataFrame:
    samples = measured(records)
    return samples[samples["wall_ns"].notna()]


def _row(index: int, machine: str, subject: str, data: RunData, costs: Costs, held: Mapping[Key, Held]) -> Row:
    mine = costs.get((index, subject), {})
    networks = sorted({where for _, where in mine}, key=lambda word: (word != Network.HOST, word != "", word))
    network = networks[0] if networks else ""
    by_operation: dict[str, list[Record]] = {}
    for record in data.records:
        if record.subject == subject:
            key = record.operation if record.operation in TITLES else OTHER.operation
            by_operation.setdefault(key, []).append(record)
    cells = {
        operation: _cell(
            records,
            mine.get((operation, network)),
            {where: mine[operation, where] for where in networks[1:] if (operation, where) in mine},
        )
        for operation, records in by_operation.items()
    }
    priced = [cell.cost for cell in cells.values() if cell.cost]
    spent = [cost.cpu_ms for cost in priced if cost.cpu_ms is not None]
    expected = [
        cell for key, cell in cells.items() if key and cell.outcome in (Outcome.PASS, Outcome.FAIL, Outcome.ERROR)
    ]
    return Row(
        run=index,
        machine=machine,
        subject=name(subject),
        cells=cells,
        network=network,
        wall_ms=sum(cost.wall_ms for cost in priced) if priced else None,
        cpu_ms=sum(spent) if spent else None,
        whole=all(cell.cost for cell in expected),
        held=held.get((index, subject, network), Held()),
    )


def _cell(records: Sequence[Record], cost: Cost | None, elsewhere: dict[str, Cost]) -> Cell:
    outcomes = [record.outcome for record in records]
    return Cell(
        outcome=worst(outcomes),
        tests={outcome: outcomes.count(outcome) for outcome in Outcome if outcome in outcomes},
        cost=cost,
        elsewhere=elsewhere,
        apart=sum(record.outcome is not Outcome.PASS and record.wall_ns is not None for record in records),
        via=name(", ".join(dict.fromkeys(record.via for record in records if record.via))),
    )


def _costs(samples: pandas.DataFrame) -> Costs:
    groups = samples.groupby(["run", "subject", "operation", "network"])
    medians = groups[["wall_ns", "cpu_ns", "cpu_engine_ns", "cpu_client_ns", "cpu_pods_ns"]].median() / 1e6
    medians["samples"] = groups.size()
    for quarter in (1, 3):
        medians[f"quartile_{quarter}"] = groups["wall_ns"].quantile(quarter / 4) / 1e6
    costs: dict[tuple[int, str], dict[tuple[str, str], Cost]] = {}
    for (run, subject, operation, network), row in _rows(medians):
        costs.setdefault((run, subject), {})[operation, network] = Cost(
            samples=int(row["samples"]),
            wall_ms=row["wall_ns"],
            wall_low_ms=row["quartile_1"],
            wall_high_ms=row["quartile_3"],
            cpu_ms=_known(row["cpu_ns"]),
            cpu_engine_ms=_known(row["cpu_engine_ns"]),
            cpu_client_ms=_known(row["cpu_client_ns"]),
            cpu_pods_ms=_known(row["cpu_pods_ns"]),
        )
    return costs


def _held(samples: pandas.DataFrame) -> dict[Key, Held]:
    parts = ("engine", "anon", "shmem", "kernel", "slab", "file", "pss", "processes")
    columns = {f"memory_{part}": part for part in parts}
    medians = samples.groupby(["run", "subject", "network"])[list(columns)].median().rename(columns=columns)
    return {
        (run, subject, network): Held(**{part: _known(value) for part, value in row.items()})
        for (run, subject, network), row in _rows(medians)
    }


def _rows(table: pandas.DataFrame) -> Iterator[tuple[tuple[Any, ...], dict[str, float]]]:
    yield from cast("dict[tuple[Any, ...], dict[str, float]]", table.to_dict("index")).items()


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
