"""From the records of a bench to its figures.

The unit of every figure is the turn: what an engine needed in one turn is one sample (the median, where it did something
several times), for turns are what chance strikes as a whole. Only measured turns of steps that went well count.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.errors import StoreError
from harness.model.bench import BENCHES, Against, Bench, Figure, Quantity
from harness.report.bench.comparison import count_outliers, find_level, find_ratio, find_slope
from harness.report.bench.result import BenchResult, Call, Comparison, Interval, Measured
from harness.report.findings import find_findings
from harness.report.load import frame, measured
from harness.report.statistics import find_heads
from harness.store import RunData

if TYPE_CHECKING:
    import pandas

_COLUMNS: Mapping[Quantity, str] = {
    Quantity.WALL: "wall_ns",
    Quantity.CPU: "cpu_ns",
    Quantity.PSS: "memory_pss",
    Quantity.SLOPE: "memory_pss",
    Quantity.PEAK: "memory_peak",
    Quantity.LIMIT: "memory_limit",
}
_MONITORS = "memory_monitors"
_MILLION = 1e6
"""nanoseconds in a millisecond, bytes in a megabyte"""


@dataclass(frozen=True, slots=True)
class _Series:
    """The samples of one side, by engine (two of a subject, or two times of one), and for a slope all its points."""

    by_twin: Mapping[float, Sequence[float]]
    points: tuple[Sequence[float], Sequence[float]] = ((), ())

    @property
    def samples(self) -> list[float]:
        return [sample for samples in self.by_twin.values() for sample in samples]


def find_bench(data: RunData, names: Sequence[str] = ()) -> BenchResult:
    """The result of a run that held a bench. `names`: of figures or scenarios that were asked for, all that have records
    by default. Raises `StoreError` for a bench that is not known, `UsageError` for a figure.
    """
    bench = BENCHES.get(data.run.bench)
    if bench is None:
        raise StoreError(f"{data.folder} is of a bench {data.run.bench!r}, which this Seatrial does not know")
    done = {record.scenario for record in data.records}
    wanted = {scenario.name for scenario in bench.choose(names) if names or scenario.name in done}
    samples = measured(frame([data]))
    figures = [figure for figure in bench.figures if figure.scenario in wanted]
    (head,) = find_heads([data])
    return BenchResult(
        head=head,
        bench=bench,
        reference=data.run.reference,
        subjects=data.run.subjects,
        comparisons=tuple(
            comparison for figure in figures for comparison in _compare_all(figure, samples, data, bench, done)
        ),
        calls=_calls(samples, data.run.subjects, bench, wanted),
        findings=find_findings([data], [""]),
    )


def _compare_all(
    figure: Figure, samples: pandas.DataFrame, data: RunData, bench: Bench, done: Collection[str]
) -> list[Comparison]:
    seed, reference = data.run.seed, data.run.reference
    mine = samples[samples["scenario"] == figure.scenario]
    if figure.operations:
        mine = mine[mine["operation"].isin(figure.operations)]
    found = []
    for subject in data.run.subjects:
        own = mine[mine["subject"] == subject]
        if figure.against is Against.IDLE:
            if subject == reference and own.empty:
                continue
            sides = _by_load(own, figure)
            one, other = (_measure(subject, side, figure, seed) for side in sides)
            found.append(_compare(figure, subject, sides, (one, other), seed, judged=subject != reference))
        elif subject != reference:
            their = mine[mine["subject"] == reference]
            sides = (_by_twin(own, figure, _COLUMNS[figure.quantity]), _by_twin(their, figure, _column(figure)))
            one, other = (
                _measure(name, side, figure, seed) for name, side in zip((subject, reference), sides, strict=True)
            )
            found.append(_compare(figure, subject, sides, (one, other), seed, judged=True))
    return found


def _column(figure: Figure) -> str:
    return _MONITORS if figure.monitors else _COLUMNS[figure.quantity]


def _compare(
    figure: Figure,
    subject: str,
    sides: tuple[_Series, _Series],
    measured: tuple[Measured | None, Measured | None],
    seed: int,
    judged: bool,
) -> Comparison:
    ratio = find_ratio(sides[0].samples, sides[1].samples, seed)
    return Comparison(figure, subject, *measured, ratio=ratio, judged=judged)


def _measure(subject: str, series: _Series, figure: Figure, seed: int) -> Measured | None:
    samples = series.samples
    if not samples:
        return None
    twins: Interval | None = None
    chance = 0.0
    if len(series.by_twin) == 2:
        one, other = series.by_twin.values()
        twins = find_ratio(other, one, seed)
        chance = abs(statistics.median(other) - statistics.median(one))
    level, intercept = find_level(samples, seed), None
    if figure.quantity is Quantity.SLOPE:
        level, intercept = find_slope(*series.points)
    return Measured(subject, level, len(samples), count_outliers(samples), intercept, twins, chance)


def _by_twin(samples: pandas.DataFrame, figure: Figure, column: str) -> _Series:
    """One sample a turn, by engine."""
    found: dict[float, list[float]] = {}
    if figure.quantity is Quantity.SLOPE:
        points: list[tuple[float, float]] = []
        for _, turn in samples.groupby(["twin", "block"]):
            own = [
                (load, value / _MILLION)
                for load, value in zip(turn["load"], turn[column], strict=True)
                if value == value
            ]
            if len({load for load, _ in own}) > 1:
                points += own
                found.setdefault(turn["twin"].iloc[0], []).append(find_slope(*zip(*own, strict=True))[0].value)
        return _Series(found, tuple(zip(*points, strict=True)) if points else ((), ()))  # type: ignore[arg-type]
    if figure.quantity is Quantity.PSS:
        # An engine is weighed with several numbers of pods; idle is with none.
        samples = samples[samples["load"].fillna(0) == 0]
    for _, turn in _wholes(samples, column).groupby(["twin", "block"]):
        found.setdefault(turn["twin"].iloc[0], []).append(float(turn[column].median()) / _MILLION)
    return _Series(found)


def _by_load(samples: pandas.DataFrame, figure: Figure) -> tuple[_Series, _Series]:
    """One sample a voyage: those with other pods about, and those without, the ones before and after them apart."""
    column = _COLUMNS[figure.quantity]
    whole = _wholes(samples, column)
    crowded, alone = whole[whole["load"] > 0], whole[whole["load"] == 0]
    after = crowded["iteration"].max() if len(crowded) else float("inf")
    parts = ([crowded], [alone[alone["iteration"] < after], alone[alone["iteration"] > after]])
    mine, theirs = (
        _Series({index: [value / _MILLION for value in part[column]] for index, part in enumerate(side) if len(part)})
        for side in parts
    )
    return mine, theirs


def _wholes(samples: pandas.DataFrame, column: str) -> pandas.DataFrame:
    """What one go cost: the sum over its operations, for goes of which no operation is missing."""
    groups = (
        samples[samples[column].notna()]
        .fillna({"iteration": 0, "load": 0})
        .groupby(["subject", "twin", "block", "iteration", "load"])
    )
    sums = groups[column].agg(["sum", "size"])
    whole = sums[sums["size"] == sums["size"].max()]["sum"] if len(sums) else sums["sum"]
    return whole.rename(column).reset_index()


def _calls(
    samples: pandas.DataFrame, subjects: Sequence[str], bench: Bench, wanted: Collection[str]
) -> tuple[Call, ...]:
    medians = samples.groupby(["scenario", "operation", "subject"])[["wall_ns", "cpu_ns"]].median() / _MILLION
    rows = medians.to_dict("index")
    return tuple(
        Call(
            scenario,
            call,
            *(
                {
                    subject: rows[scenario, call, subject][column]
                    for subject in subjects
                    if (scenario, call, subject) in rows
                }
                for column in ("wall_ns", "cpu_ns")
            ),
        )
        for scenario, calls in bench.calls
        if scenario in wanted
        for call in calls
        if any((scenario, call, subject) in rows for subject in subjects)
    )
