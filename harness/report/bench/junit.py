"""The figures of a bench as JUnit XML: one suite a subject, one case a figure; one that is above its limit fails."""

from __future__ import annotations

from junitparser import Error, Failure, JUnitXml, TestCase, TestSuite

from harness.report.bench.result import BenchResult, Comparison, Verdict
from harness.report.bench.sentences import describe_interval, describe_level, describe_ratio, describe_title
from harness.report.words import clean


def render_junit(result: BenchResult) -> str:
    """A figure without a limit is a case that passes; a step that failed is a case of its own."""
    document = JUnitXml("seatrial")  # type: ignore[no-untyped-call]
    for subject in result.subjects:
        suite = TestSuite(clean(subject))  # type: ignore[no-untyped-call]
        suite.timestamp = result.head.run.started
        suite.add_property("run", result.head.run.run)
        suite.add_property("reference", result.reference)
        suite.add_testcases([_case(it) for it in result.comparisons if it.subject == subject])
        for finding in (it for it in result.findings if it.name == clean(subject)):
            case = TestCase(", ".join(finding.operations) or "step", "bench")
            case.result = [Error(clean(finding.reason), finding.outcome.value)]
            suite.add_testcase(case)
        document.add_testsuite(suite)
    document.update_statistics()  # type: ignore[no-untyped-call]
    text = document.tostring()  # type: ignore[no-untyped-call]
    return text.decode() if isinstance(text, bytes) else str(text)


def _case(comparison: Comparison) -> TestCase:
    case = TestCase(comparison.figure.name, "bench")
    words = (
        f"{describe_title(comparison)}: {describe_level(comparison.mine, comparison)} against "
        f"{describe_level(comparison.theirs, comparison)}, ratio {describe_ratio(comparison)} "
        f"({describe_interval(comparison.ratio)}), limit {comparison.figure.limit or 'none'}"
    )
    if comparison.verdict is Verdict.ABOVE:
        case.result = [Failure(words, "above")]
    elif comparison.verdict is Verdict.MISSING:
        case.result = [Error(words, "missing")]
    else:
        case.system_out = words
    return case
