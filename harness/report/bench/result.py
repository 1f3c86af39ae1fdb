"""What the report of a bench shows, as frozen values. Times are in milliseconds, memory in megabytes of 1 000 000 bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from harness.model.bench import Bench, Figure, Quantity
from harness.report.matrix import Finding, Head

UNITS: Mapping[Quantity, str] = {
    Quantity.WALL: "ms",
    Quantity.CPU: "ms",
    Quantity.PSS: "MB",
    Quantity.SLOPE: "MB",
    Quantity.PEAK: "MB",
    Quantity.LIMIT: "MB",
}


class Verdict(StrEnum):
    """What a limit says of a ratio."""

    WITHIN = "within"
    ABOVE = "above"
    NO_LIMIT = "no limit"
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Interval:
    """A value, and the ends of its confidence interval of 95 %; None where there are too few samples for one."""

    value: float
    low: float | None = None
    high: float | None = None

    def excludes(self, value: float) -> bool:
        """Whether `value` lies outside; False without an interval."""
        return self.low is not None and self.high is not None and not self.low <= value <= self.high


@dataclass(frozen=True, slots=True)
class Measured:
    """One side of a comparison."""

    subject: str
    level: Interval
    """the median over turns; of a slope the slope itself, fitted over all points"""
    samples: int
    """turns (single voyages where a subject is compared with itself)"""
    outliers: int
    """samples far from the others: flagged, and counted all the same"""
    intercept: float | None = None
    """of a slope"""
    twins: Interval | None = None
    """A/A: what one engine of this subject needs, in times of what the other does; None where there was only one"""
    chance: float = 0.0
    """the difference between the two"""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One figure of one subject."""

    figure: Figure
    subject: str
    mine: Measured | None
    theirs: Measured | None
    ratio: Interval | None = None
    judged: bool = True
    """whether the limit is about this subject; the reference is shown, not judged"""

    @property
    def counts(self) -> bool:
        """Whether there is a difference: the interval excludes 1, and chance makes none as large."""
        if self.mine is None or self.theirs is None or self.ratio is None:
            return False
        difference = abs(self.mine.level.value - self.theirs.level.value)
        return self.ratio.excludes(1) and difference > max(self.mine.chance, self.theirs.chance)

    @property
    def verdict(self) -> Verdict:
        """A ratio that is no difference from 1 is within a limit of 1 or more, whatever its last digits are."""
        if self.figure.limit is None or not self.judged:
            return Verdict.NO_LIMIT
        if self.ratio is None:
            return Verdict.MISSING
        if self.ratio.value <= self.figure.limit or (self.figure.limit >= 1 and not self.counts):
            return Verdict.WITHIN
        return Verdict.ABOVE

    @property
    def sure(self) -> bool:
        """Whether the whole interval is on one side of the limit."""
        return self.figure.limit is None or (self.ratio is not None and self.ratio.excludes(self.figure.limit))


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a scenario: medians by subject, absent where it has no sample."""

    scenario: str
    operation: str
    wall_ms: Mapping[str, float]
    cpu_ms: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class BenchResult:
    """All of a report on one bench."""

    head: Head
    bench: Bench
    reference: str
    subjects: tuple[str, ...]
    """the reference last"""
    comparisons: tuple[Comparison, ...]
    calls: tuple[Call, ...]
    findings: tuple[Finding, ...]

    @property
    def counts(self) -> dict[Verdict, int]:
        """Number of figures by verdict, all of them."""
        verdicts = [comparison.verdict for comparison in self.comparisons]
        return {verdict: verdicts.count(verdict) for verdict in Verdict}

    @property
    def within(self) -> bool:
        """Whether every figure that has a limit was measured and is within it."""
        return not (self.counts[Verdict.ABOVE] or self.counts[Verdict.MISSING])
