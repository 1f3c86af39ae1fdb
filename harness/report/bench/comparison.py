"""Medians, slopes and ratios with their confidence intervals. scipy is imported here, late, and nowhere else."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from harness.report.bench.result import Interval

CONFIDENCE = 0.95
RESAMPLES = 4999
FAR = 3.5
"""modified z-score from which a sample is called an outlier (B. Iglewicz, D. Hoaglin, 1993)"""


def find_level(samples: Sequence[float], seed: int) -> Interval:
    """The median of `samples`, of which there is at least one, and its interval by bootstrap (percentiles)."""
    import numpy
    from scipy import stats

    value = statistics.median(samples)
    if len(samples) < 2:
        return Interval(value)
    found = stats.bootstrap(
        (samples,),
        numpy.median,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=numpy.random.default_rng(seed),
    ).confidence_interval
    return Interval(value, float(found.low), float(found.high))


def find_ratio(mine: Sequence[float], theirs: Sequence[float], seed: int) -> Interval | None:
    """The ratio of the medians of two independent series, and its interval; None where there is none to speak of."""
    import numpy
    from scipy import stats

    below = statistics.median(theirs) if theirs else 0.0
    if not mine or not below:
        return None
    value = statistics.median(mine) / below
    if len(mine) < 2 or len(theirs) < 2:
        return Interval(value)

    def ratio(one: numpy.ndarray, other: numpy.ndarray, axis: int) -> numpy.ndarray:
        with numpy.errstate(divide="ignore", invalid="ignore"):
            return numpy.asarray(numpy.median(one, axis=axis) / numpy.median(other, axis=axis))

    found = stats.bootstrap(
        (mine, theirs),
        ratio,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        vectorized=True,
        rng=numpy.random.default_rng(seed),
    ).confidence_interval
    if not (numpy.isfinite(found.low) and numpy.isfinite(found.high)):
        return Interval(value)
    return Interval(value, float(found.low), float(found.high))


def find_slope(amounts: Sequence[float], values: Sequence[float]) -> tuple[Interval, float]:
    """The slope of `values` over `amounts` with its interval, and the intercept (Theil-Sen: no outlier bends it)."""
    from scipy import stats

    slope, intercept, low, high = stats.theilslopes(values, amounts, alpha=CONFIDENCE)
    return Interval(float(slope), float(low), float(high)), float(intercept)


def count_outliers(samples: Sequence[float]) -> int:
    """How many `samples` are far from their median, measured by the median of all distances from it."""
    if len(samples) < 3:
        return 0
    middle = statistics.median(samples)
    spread = statistics.median(abs(sample - middle) for sample in samples)
    return sum(0.6745 * abs(sample - middle) > FAR * spread for sample in samples) if spread else 0
