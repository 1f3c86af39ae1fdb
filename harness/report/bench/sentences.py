"""What the report of a bench says in words, the same in every format."""

from __future__ import annotations

from harness.model.bench import Quantity
from harness.report.bench.result import UNITS, BenchResult, Comparison, Interval, Measured, Verdict
from harness.report.words import number, signed

MARKS = {Verdict.WITHIN: "✓", Verdict.ABOVE: "✗", Verdict.NO_LIMIT: " ", Verdict.MISSING: "‼"}
NO_DIFFERENCE = "~"


_MEANINGS = (
    (frozenset({Quantity.CPU}), "CPU: of engine, client and containers together."),
    (
        frozenset({Quantity.PSS, Quantity.SLOPE}),
        "PSS: anonymous memory of the engine's processes, and the files they map as if no other engine ran. A slope is "
        "fitted (Theil-Sen) over 0, 5, 10 and 20 pods; that of the reference is of its shims alone.",
    ),
    (frozenset({Quantity.PEAK}), "Peak: the largest resident set of the command's own process, shared files among it."),
    (
        frozenset({Quantity.LIMIT}),
        "Memory limit: the smallest limit of the container's cgroup, in steps of 1 MiB, with which it starts each time.",
    ),
)


def describe_title(comparison: Comparison) -> str:
    """What a figure is about."""
    quantity = comparison.figure.quantity
    return f"{comparison.figure.title}: {'wall' if quantity is Quantity.WALL else quantity.value}"


def describe_level(measured: Measured | None, comparison: Comparison) -> str:
    """One side's value, with its unit."""
    if measured is None:
        return "–"
    value = measured.level.value
    # What a pod adds may be a few kilobytes.
    text = f"{value:.3f}" if comparison.figure.quantity is Quantity.SLOPE else number(value)
    return f"{text} {UNITS[comparison.figure.quantity]}"


def describe_ratio(comparison: Comparison) -> str:
    """The ratio, marked where it is no difference."""
    if comparison.ratio is None:
        return "–"
    return f"{'' if comparison.counts else NO_DIFFERENCE}{_figures(comparison.ratio.value)}"


def describe_interval(interval: Interval | None) -> str:
    """``0.15 to 0.18``."""
    if interval is None or interval.low is None or interval.high is None:
        return "–"
    return f"{_figures(interval.low)} to {_figures(interval.high)}"


def describe_twins(comparison: Comparison) -> str:
    """The A/A ratios of both sides."""
    sides = [side.twins for side in (comparison.mine, comparison.theirs) if side is not None]
    return ", ".join(_figures(twins.value) if twins else "–" for twins in sides) or "–"


def describe_limit(comparison: Comparison) -> str:
    """``0.25 ✓``; a question mark where the interval is on both sides of the limit."""
    limit = comparison.figure.limit
    if limit is None or comparison.verdict is Verdict.NO_LIMIT:
        return "–"
    doubt = "" if comparison.sure or comparison.verdict is Verdict.MISSING else "?"
    return f"{limit:g} {MARKS[comparison.verdict]}{doubt}"


def describe_counts(result: BenchResult) -> str:
    """``12 within, 1 above``."""
    counted = {verdict: count for verdict, count in result.counts.items() if count and verdict is not Verdict.NO_LIMIT}
    return ", ".join(f"{count} {verdict.value}" for verdict, count in counted.items()) or "no figure has a limit"


def describe_legend(result: BenchResult) -> list[str]:
    """How to read the table."""
    lines = [
        f"Ratio: to {result.reference} in the same run, medians of turns, with its interval of 95 % (bootstrap). "
        f"{NO_DIFFERENCE}: no difference, for the interval includes 1 or chance makes one as large. A/A: each side against "
        "itself, that is two engines of it, or the time before and the time after.",
        f"Limit: the largest ratio that is within. {describe_counts(result)}. ?: the interval is on both sides of it.",
        *(
            text
            for quantities, text in _MEANINGS
            if any(row.figure.quantity in quantities for row in result.comparisons)
        ),
    ]
    lines += [
        f"{side.subject}: {side.level.value:.3f} MB a pod ({describe_interval(side.level)}), and {signed(side.intercept)} "
        "MB with none."
        for comparison in result.comparisons
        for side in (comparison.mine, comparison.theirs)
        if side is not None and side.intercept is not None
    ]
    return lines


def describe_outliers(result: BenchResult) -> str:
    """How many samples are far from the others; "" for none."""
    flagged = [
        f"{side.outliers} of {side.samples} in {comparison.figure.name} of {side.subject}"
        for comparison in result.comparisons
        for side in (comparison.mine, comparison.theirs)
        if side is not None and side.outliers
    ]
    return f"Outliers, kept: {'; '.join(dict.fromkeys(flagged))}." if flagged else ""


def _figures(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 0.0995 else f"{value:.2f}"
