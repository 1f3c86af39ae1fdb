"""What ends on one machine as it does not on another: from records to differences, the gravest first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from harness.model.record import Outcome, Record
from harness.report.findings import split_reason
from harness.report.machines.result import Difference, Ending
from harness.report.matrix import RANKS
from harness.report.statistics import worst
from harness.report.words import clean, name
from harness.store import RunData

Step = tuple[str, str]
"""Subject and operation."""
Endings = Mapping[tuple[str, str, str], Mapping[str, Ending]]
"""By subject, operation and test, then by machine."""


def find_endings(runs: Mapping[str, Sequence[RunData]]) -> dict[tuple[str, str, str], dict[str, Ending]]:
    """How each test of each subject ended on each machine. `runs`: by machine."""
    records: dict[tuple[str, str, str], dict[str, list[Record]]] = {}
    for machine, held in runs.items():
        for record in (record for data in held for record in data.records):
            key = name(record.subject), operation_of(record), bare_test(record)
            records.setdefault(key, {}).setdefault(machine, []).append(record)
    return {key: {machine: _ending(mine) for machine, mine in by.items()} for key, by in records.items()}


def operation_of(record: Record) -> str:
    """The step to which a record belongs, as far as a report knows it."""
    return record.operation if record.operation in RANKS else ""


def bare_test(record: Record) -> str:
    """A test's name without the subject among its parameters; of a measured one, whose parameter is a turn, without any."""
    test, bracket, parameters = record.test.partition("[")
    if record.block is None and bracket:
        words = parameters.removesuffix("]").replace(record.subject, "").strip("-")
        test += f"[{words}]" if words else ""
    return name(test)


def _ending(records: Sequence[Record]) -> Ending:
    outcome = worst([record.outcome for record in records])
    if outcome is Outcome.PASS:
        return Ending(outcome)
    reason, again = split_reason(next(record for record in records if record.outcome is outcome))
    return Ending(outcome, clean(reason), clean(again))


def steps_of(endings: Endings) -> dict[Step, dict[str, Outcome]]:
    """How each step ended on each machine, as a cell shows it."""
    found: dict[Step, dict[str, list[Outcome]]] = {}
    for (subject, operation, _), by in endings.items():
        for machine, ending in by.items():
            found.setdefault((subject, operation), {}).setdefault(machine, []).append(ending.outcome)
    return {step: {machine: worst(outcomes) for machine, outcomes in by.items()} for step, by in found.items()}


def find_differences(endings: Endings, subjects: Sequence[str]) -> tuple[Difference, ...]:
    """Each test that differs, told once: those of a subject that end alike, for the same reasons, are one difference.

    Failures and errors come first, then n/a, then skips; in each the order of `subjects` and steps. What was not tried on
    a machine (its trial broke off) is no difference by itself.
    """
    groups: dict[tuple[str, tuple[tuple[str, Outcome, str], ...]], list[tuple[str, str]]] = {}
    for subject, operation, test in _differing(endings):
        by = endings[subject, operation, test]
        alike = tuple((machine, ending.outcome, ending.reason) for machine, ending in by.items())
        groups.setdefault((subject, alike), []).append((operation, test))
    found = [
        Difference(
            subject=subject,
            operations=tuple(sorted({operation for operation, _ in members}, key=RANKS.__getitem__)),
            tests=tuple(dict.fromkeys(test for _, test in members)),
            endings=endings[subject, *members[0]],
        )
        for (subject, _), members in groups.items()
    ]
    return tuple(sorted(found, key=lambda it: (it.gravity, subjects.index(it.subject), RANKS[it.operations[0]])))


def _differing(endings: Endings) -> Iterator[tuple[str, str, str]]:
    """The tests that end differently; where a step does and none of its tests on both machines, those that decide it."""
    steps = steps_of(endings)
    plainly = {key for key, by in endings.items() if len({ending.outcome for ending in by.values()}) > 1}
    explained = {(subject, operation) for subject, operation, _ in plainly}
    for key, by in endings.items():
        subject, operation, _ = key
        ends = steps[subject, operation]
        decides = (
            len(set(ends.values())) > 1
            and len(by) < len(ends)
            and any(ending.outcome is not Outcome.PASS and ending.outcome is ends[it] for it, ending in by.items())
        )
        if key in plainly or ((subject, operation) not in explained and decides):
            yield key
