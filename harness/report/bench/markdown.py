"""The figures of a bench as Markdown, fit for a step summary of a CI service."""

from __future__ import annotations

from collections.abc import Iterator

from harness.report.bench.result import BenchResult
from harness.report.bench.sentences import (
    describe_counts,
    describe_interval,
    describe_legend,
    describe_level,
    describe_limit,
    describe_outliers,
    describe_ratio,
    describe_title,
    describe_twins,
)
from harness.report.markdown import describe_machines, fenced, plain
from harness.report.sentences import describe_run
from harness.report.words import number


def render_markdown(result: BenchResult) -> str:
    """Headline, figures, calls, what went wrong; texts of runtimes are escaped or fenced."""
    return "\n".join(_lines(result)) + "\n"


def _lines(result: BenchResult) -> Iterator[str]:
    yield f"# Seatrial bench: {plain(result.bench.title)}"
    yield ""
    yield from (f"{plain(line)}  " for line in describe_run(result.head))
    yield ""
    yield f"**{plain(describe_counts(result))}**"
    yield ""
    yield "| figure | subject | | against | ratio | 95 % | A/A | limit |"
    yield "|:--|:--|--:|--:|--:|--:|--:|--:|"
    for row in result.comparisons:
        cells = [
            describe_title(row),
            row.subject,
            describe_level(row.mine, row),
            describe_level(row.theirs, row),
            describe_ratio(row),
            describe_interval(row.ratio),
            describe_twins(row),
            describe_limit(row),
        ]
        yield "| " + " | ".join(map(plain, cells)) + " |"
    yield ""
    for line in (*describe_legend(result), describe_outliers(result)):
        if line:
            yield plain(line)
            yield ""
    if result.calls:
        yield "<details><summary>Each call: wall / CPU in ms, medians</summary>"
        yield ""
        yield "| scenario | call | " + " | ".join(map(plain, result.subjects)) + " |"
        yield "|:--|:--|" + "--:|" * len(result.subjects)
        for call in result.calls:
            values = [f"{number(call.wall_ms.get(it))} / {number(call.cpu_ms.get(it))}" for it in result.subjects]
            yield f"| {call.scenario} | {plain(call.operation)} | " + " | ".join(values) + " |"
        yield ""
        yield "</details>"
        yield ""
    if result.findings:
        yield "## What went wrong"
        yield ""
        for finding in result.findings:
            yield f"### {finding.outcome.value}: {plain(finding.name)} ({finding.count} times)"
            yield ""
            yield from fenced(finding.reason)
            yield ""
    yield from describe_machines([result.head], result.head.notes)
