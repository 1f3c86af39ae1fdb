"""The figures of a bench as one HTML page that needs nothing else."""

from __future__ import annotations

from harness.report.bench import sentences
from harness.report.bench.result import BenchResult, Comparison, Verdict
from harness.report.html import environment
from harness.report.sentences import describe_run

_CLASSES = {
    Verdict.WITHIN: "pass",
    Verdict.ABOVE: "fail",
    Verdict.NO_LIMIT: "na",
    Verdict.MISSING: "error",
}


def render_html(result: BenchResult) -> str:
    """The page; the bars are drawn with CSS alone."""
    return (
        environment()
        .get_template("bench/page.html")
        .render(
            result=result,
            said=sentences,
            counts={verdict: count for verdict, count in result.counts.items() if verdict is not Verdict.NO_LIMIT},
            kinds=_CLASSES,
            scale=_scale,
            describe_run=describe_run,
            outliers=sentences.describe_outliers(result),
        )
    )


def _scale(comparison: Comparison) -> dict[str, float] | None:
    """Where ratio, interval and limit stand on a bar, in percent of its length; its end is the largest of them, or 1."""
    ratio = comparison.ratio
    if ratio is None:
        return None
    low, high = (ratio.value if end is None else end for end in (ratio.low, ratio.high))
    end = max(1.0, high, ratio.value, comparison.figure.limit or 0) * 1.02
    ends = {"value": ratio.value, "low": low, "high": high, "one": 1.0, "limit": comparison.figure.limit or -1.0}
    return {key: round(max(100 * value / end, 0), 2) for key, value in ends.items()}
