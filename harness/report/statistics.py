"""From records to a matrix: worst outcomes, medians, sums.

A time or a cost counts only where the step's postcondition held, in the measuring phase; warm-up turns and samples of
failed steps are left out. Runs are never pooled: a row is one subject of one run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.model.container import Network
from harness.model.record import Outcome, Phase, Record
from harness.report.figures import find_overhead, find_pods, find_taxes
from harness.report.findings import find_findings
from harness.report.load import frame
from harness.report.matrix import COLUMNS, OTHER, TITLES, Cell, Cost, Head, Held, Matrix, Row
from harness.report.words import clean
from harness.store import RunData

if TYPE_CHECKING:
    import pandas

_PRECEDENCE = (Outcome.ERROR, Outcome.FAIL, Outcome.PASS, Outcome.SKIP, Outcome.NA)


def worst(outcomes: Sequence[Outcome]) -> Outcome:
    """The outcome of a cell: what went wrong wins; nothing done (skip, n/a) counts only where nothing passed."""
    return next(outcome for outcome in _PRECEDENCE if outcome in outcomes)


def find_matrix(runs: Sequence[RunData]) -> Matrix:
    """All of a report on `runs`."""
    heads = _heads(runs)
    samples = _samples(frame(runs))
    rows = [
        _row(index, heads[index].label, subject, data, samples)
        for index, data in enumerate(runs)
        for subject in _subjects(data)
    ]
    others = any(OTHER.operation in row.cells for row in rows)
    return Matrix(
        runs=heads,
        columns=(*COLUMNS, OTHER) if others else COLUMNS,
        rows=tuple(rows),
        findings=find_findings(runs, [head.label for head in heads]),
        overhead=find_overhead(samples),
        taxes=find_taxes(runs, rows),
        pods=find_pods(runs, rows),
    )


def _heads(runs: Sequence[RunData]) -> tuple[Head, ...]:
    labels = [""] * len(runs)
    if len(runs) > 1:
        labels = [str(data.run.machine.get("distribution") or "unknown machine") for data in runs]
        for index, data in enumerate(runs):
            if labels.count(labels[index]) > 1:
                labels[index] += f", {data.run.run}"
    return tuple(
        Head(data.run, clean(label), _state(data), tuple(map(clean, (*data.run.notes, *data.notes))))
        for label, data in zip(labels, runs, strict=True)
    )


def _state(data: RunData) -> str:
    if data.run.interrupted:
        return "interrupted: this report is partial"
    return "" if data.run.ended else "not ended: still under way, or killed; this report is partial"


def _subjects(data: RunData) -> list[str]:
    """In the order of the run; what has records of steps without being named there follows."""
    found = (record.subject for record in data.records if record.operation in TITLES and record.operation)
    return list(dict.fromkeys((*data.run.subjects, *found)))


def _samples(records: pandas.DataFrame) -> pandas.DataFrame:
    """The records that are measured samples of steps that went well, with one more column, `cpu_ns`: all groups."""
    measured = records[
        (records["phase"] == Phase.MEASURE.value)
        & (records["outcome"] == Outcome.PASS.value)
        & records["wall_ns"].notna()
    ].copy()
    groups = measured[["cpu_engine_ns", "cpu_client_ns", "cpu_pods_ns"]]
    measured["cpu_ns"] = groups.sum(axis=1, min_count=1)
    return measured


def _row(index: int, machine: str, subject: str, data: RunData, samples: pandas.DataFrame) -> Row:
    mine = samples[(samples["run"] == index) & (samples["subject"] == subject)]
    networks = sorted(set(mine["network"]), key=lambda name: (name != Network.HOST, name != "", name))
    network = networks[0] if networks else ""
    costs = {(operation, where): _cost(group) for (operation, where), group in mine.groupby(["operation", "network"])}
    by_operation: dict[str, list[Record]] = {}
    for record in data.records:
        if record.subject == subject:
            key = record.operation if record.operation in TITLES else OTHER.operation
            by_operation.setdefault(key, []).append(record)
    cells = {
        operation: _cell(
            records,
            costs.get((operation, network)),
            {where: costs[operation, where] for where in networks[1:] if (operation, where) in costs},
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
        subject=subject,
        cells=cells,
        network=network,
        wall_ms=sum(cost.wall_ms for cost in priced) if priced else None,
        cpu_ms=sum(spent) if spent else None,
        whole=all(cell.cost for cell in expected),
        held=_held(mine[mine["network"] == network]),
    )


def _cell(records: Sequence[Record], cost: Cost | None, elsewhere: dict[str, Cost]) -> Cell:
    outcomes = [record.outcome for record in records]
    return Cell(
        outcome=worst(outcomes),
        tests={outcome: outcomes.count(outcome) for outcome in Outcome if outcome in outcomes},
        cost=cost,
        elsewhere=elsewhere,
        apart=sum(record.outcome is not Outcome.PASS and record.wall_ns is not None for record in records),
        via=clean(", ".join(dict.fromkeys(record.via for record in records if record.via))),
    )


def _cost(group: pandas.DataFrame) -> Cost:
    wall = group["wall_ns"].astype("float64") / 1e6
    return Cost(
        samples=len(group),
        wall_ms=float(wall.median()),
        wall_low_ms=float(wall.quantile(0.25)),
        wall_high_ms=float(wall.quantile(0.75)),
        cpu_ms=_median(group["cpu_ns"], 1e6),
        cpu_engine_ms=_median(group["cpu_engine_ns"], 1e6),
        cpu_client_ms=_median(group["cpu_client_ns"], 1e6),
        cpu_pods_ms=_median(group["cpu_pods_ns"], 1e6),
    )


def _held(group: pandas.DataFrame) -> Held:
    parts = ("engine", "anon", "shmem", "kernel", "slab", "file", "processes")
    values = {part: _median(group[f"memory_{part}"]) for part in parts}
    return Held(**values, pss=_median(group["memory_pss_anon"] + group["memory_pss_file"]))


def _median(values: pandas.Series[int], unit: float = 1.0) -> float | None:
    known = values.dropna()
    return float(known.astype("float64").median()) / unit if len(known) else None
