"""Figures across cells: what the harness adds, what a client costs, what a whole pod costs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.model.container import Network
from harness.model.lifecycle import POD_CALLS
from harness.report.matrix import Cost, Overhead, PodTotal, Row, Tax
from harness.store import RunData

if TYPE_CHECKING:
    import pandas

REFERENCE = "containerd:grpc:runc"


def find_overhead(samples: pandas.DataFrame) -> Overhead | None:
    """Over all gRPC steps in `samples`; None where there is none."""
    mine = samples[(samples["client"] == "grpc") & samples["harness_wall_ns"].notna()]
    if mine.empty:
        return None
    cpu = mine["harness_cpu_ns"].dropna()
    return Overhead(
        samples=len(mine),
        wall_ms=float(mine["harness_wall_ns"].astype("float64").median()) / 1e6,
        cpu_ms=float(cpu.astype("float64").median()) / 1e6 if len(cpu) else None,
    )


def find_taxes(runs: Sequence[RunData], rows: Sequence[Row]) -> tuple[Tax, ...]:
    """For each subject whose engine and handler were driven over gRPC too, in the same run."""
    ways = {
        (index, record.subject): (record.engine, record.client, record.handler)
        for index, data in enumerate(runs)
        for record in data.records
    }
    base: dict[tuple[int, str, str], Row] = {}
    for row in rows:
        engine, client, handler = ways.get((row.run, row.subject), ("", "", ""))
        if client == "grpc":
            base.setdefault((row.run, engine, handler), row)
    taxes = []
    for row in rows:
        engine, client, handler = ways.get((row.run, row.subject), ("", "", ""))
        other = base.get((row.run, engine, handler))
        if other is None or client not in ("crictl", "ctr") or row.network != other.network:
            continue
        pairs = [
            (cell.cost, other.cells[key].cost)
            for key, cell in row.cells.items()
            if key in other.cells and not cell.via and not other.cells[key].via
        ]
        both = [(mine, theirs) for mine, theirs in pairs if mine and theirs]
        if both:
            taxes.append(_tax(row, client, other, both))
    return tuple(taxes)


def _tax(row: Row, client: str, other: Row, both: list[tuple[Cost, Cost]]) -> Tax:
    cpu = [
        mine.cpu_ms - theirs.cpu_ms for mine, theirs in both if mine.cpu_ms is not None and theirs.cpu_ms is not None
    ]
    return Tax(
        name=row.name,
        client=client,
        base=other.name,
        steps=len(both),
        wall_ms=statistics.median(mine.wall_ms - theirs.wall_ms for mine, theirs in both),
        cpu_ms=statistics.median(cpu) if cpu else None,
    )


def find_pods(runs: Sequence[RunData], rows: Sequence[Row]) -> tuple[PodTotal, ...]:
    """For each subject that made all the calls on the host network, and went well in each."""
    totals: dict[tuple[int, str], PodTotal] = {}
    for row in rows:
        costs = [row.cells[call].cost if call in row.cells else None for call in POD_CALLS]
        known = [cost for cost in costs if cost is not None]
        if len(known) < len(costs) or row.network != Network.HOST:
            continue
        cpu = [cost.cpu_ms for cost in known if cost.cpu_ms is not None]
        totals[row.run, row.subject] = PodTotal(
            name=row.name,
            wall_ms=sum(cost.wall_ms for cost in known),
            cpu_ms=sum(cpu) if len(cpu) == len(known) else None,
            pss=row.held.pss,
            wall_ratio=None,
            cpu_ratio=None,
            pss_ratio=None,
        )
    return tuple(_related(total, totals.get((run, REFERENCE))) for (run, _), total in totals.items())


def _related(total: PodTotal, reference: PodTotal | None) -> PodTotal:
    if reference is None:
        return total
    return PodTotal(
        total.name,
        total.wall_ms,
        total.cpu_ms,
        total.pss,
        _ratio(total.wall_ms, reference.wall_ms),
        _ratio(total.cpu_ms, reference.cpu_ms),
        _ratio(total.pss, reference.pss),
    )


def _ratio(value: float | None, reference: float | None) -> float | None:
    return value / reference if value is not None and reference else None
