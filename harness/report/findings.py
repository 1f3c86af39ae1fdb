"""Every reason that records give, told once, with all that ended that way for it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence

from harness.model.record import Outcome, Record
from harness.report.matrix import RANKS, Finding
from harness.report.words import clean, name
from harness.store import RunData

_ORDER = (Outcome.ERROR, Outcome.FAIL, Outcome.SKIP, Outcome.NA)
_AGAIN = "reproduce: "


def find_findings(runs: Sequence[RunData], labels: Sequence[str]) -> tuple[Finding, ...]:
    """Errors first, then failures, skips and n/a; in each the order of the records. `labels`: of the runs, or empty."""
    groups: dict[tuple[str, Outcome, str], list[tuple[Record, str]]] = {}
    for data, label in zip(runs, labels, strict=True):
        for record in data.records:
            if record.outcome is not Outcome.PASS:
                who = f"{name(record.subject)} ({label})" if label else name(record.subject)
                reason, again = split_reason(record)
                groups.setdefault((who, record.outcome, reason), []).append((record, again))
    findings = [
        Finding(
            name=who,
            outcome=outcome,
            reason=clean(reason),
            operations=_operations(record for record, _ in members),
            tests=tuple(dict.fromkeys(record.test for record, _ in members)),
            count=len(members),
            reproduce=clean(members[0][1]),
        )
        for (who, outcome, reason), members in groups.items()
    ]
    return tuple(sorted(findings, key=lambda finding: _ORDER.index(finding.outcome)))


def split_reason(record: Record) -> tuple[str, str]:
    """A record's reason without the line that says how to reproduce it, and that command, made up where it is missing."""
    lines = record.reason.splitlines()
    again = next((line.removeprefix(_AGAIN) for line in reversed(lines) if line.startswith(_AGAIN)), "")
    reason = "\n".join(line for line in lines if not again or line != _AGAIN + again).strip()
    if not again and record.outcome in (Outcome.FAIL, Outcome.ERROR):
        again = shlex.join(_words(record))
    return reason or "no reason was given", again


def _words(record: Record) -> list[str]:
    if record.scenario:
        return ["seatrial", "bench", record.test, record.subject]
    test = record.test.partition("[")[0]
    suite, choice = ["--suite", record.suite] if record.suite else [], ["--", "-k", test] if test else []
    return ["seatrial", "run", record.subject, *suite, *choice]


def _operations(records: Iterable[Record]) -> tuple[str, ...]:
    found = dict.fromkeys(record.operation for record in records if record.operation)
    return tuple(sorted(found, key=lambda operation: RANKS.get(operation, len(RANKS))))
