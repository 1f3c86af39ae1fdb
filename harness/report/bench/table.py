"""The figures of a bench in a terminal."""

from __future__ import annotations

import textwrap

import click
from tabulate import tabulate

from harness.report.bench.result import BenchResult, Comparison, Verdict
from harness.report.bench.sentences import (
    describe_interval,
    describe_legend,
    describe_level,
    describe_limit,
    describe_outliers,
    describe_ratio,
    describe_title,
    describe_twins,
)
from harness.report.sentences import describe_run
from harness.report.words import number

_COLOURS = {Verdict.WITHIN: "green", Verdict.ABOVE: "red", Verdict.MISSING: "magenta"}


def render_table(result: BenchResult, *, colour: bool = False, width: int = 160) -> str:
    """Escape sequences only where `colour`; sentences are wrapped at `width`, the table is as wide as it is."""
    blocks = [_wrapped(describe_run(result.head), width)]
    rivals = [subject for subject in result.subjects if subject != result.reference]
    for subject in [*rivals, result.reference]:
        rows = [comparison for comparison in result.comparisons if comparison.subject == subject]
        if rows:
            blocks.append(_figures(rows, subject, colour))
    if result.calls:
        blocks.append(_calls(result))
    blocks.append(_wrapped([*describe_legend(result), describe_outliers(result)], width))
    if result.findings:
        lines = [
            f"{finding.name}, {finding.outcome.value} ({finding.count} times): {finding.reason}"
            for finding in result.findings
        ]
        blocks.append("What went wrong\n" + _wrapped(lines, width, "  "))
    if not result.comparisons:
        blocks.append("No figure was measured.")
    return "\n\n".join(block for block in blocks if block)


def _figures(rows: list[Comparison], subject: str, colour: bool) -> str:
    head = [subject, "", "against", "ratio", "95 %", "A/A", "limit"]
    body = [
        [
            describe_title(row),
            describe_level(row.mine, row),
            describe_level(row.theirs, row),
            describe_ratio(row),
            describe_interval(row.ratio),
            describe_twins(row),
            click.style(describe_limit(row), fg=_COLOURS.get(row.verdict)) if colour else describe_limit(row),
        ]
        for row in rows
    ]
    return tabulate(body, head, tablefmt="simple", disable_numparse=True, colalign=["left", *["right"] * 6])


def _calls(result: BenchResult) -> str:
    body = [
        [
            f"{call.scenario} {call.operation}",
            *(
                f"{number(call.wall_ms.get(subject))} / {number(call.cpu_ms.get(subject))}"
                for subject in result.subjects
            ),
        ]
        for call in result.calls
    ]
    head = ["wall / CPU of each call, ms", *result.subjects]
    return tabulate(
        body, head, tablefmt="simple", disable_numparse=True, colalign=["left", *["right"] * len(result.subjects)]
    )


def _wrapped(lines: list[str], width: int, indent: str = "") -> str:
    return "\n".join(
        part
        for line in lines
        if line
        for part in textwrap.wrap(line, width, initial_indent=indent, subsequent_indent=indent + "  ")
    )
