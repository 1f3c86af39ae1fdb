"""JUnit XML, as CI services read it: one suite a subject, one case a check, and one a measured step."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from junitparser import Error, Failure, JUnitXml, Skipped, TestCase, TestSuite

from harness.model.record import Outcome, Record
from harness.report.findings import split_reason
from harness.report.load import machine_of, tells_machines
from harness.report.statistics import worst
from harness.report.words import clean
from harness.store import RunData


def render_junit(runs: Sequence[RunData]) -> str:
    """`fail` becomes a failure, `error` an error; `skip` and `n/a` are both skipped, with messages that begin so.

    The samples of a measured step are one case, with the median of the good ones as its time. Where machines have to be told
    apart, one is a property of its suites, and begins their names and those of their classes; one that has failed has a
    suite of its own, with an error.
    """
    document = JUnitXml("seatrial")  # type: ignore[no-untyped-call]
    told = tells_machines(runs)
    for data in runs:
        machine = machine_of(data) if told else ""
        if data.run.machine.get("fault"):
            document.add_testsuite(_fault(data, machine))
        for subject in dict.fromkeys((*data.run.subjects, *(record.subject for record in data.records))):
            suite = _suite(data, f"{machine}: {clean(subject)}" if told else clean(subject), machine)
            cases: dict[tuple[str, str], list[Record]] = {}
            for record in data.records:
                if record.subject == subject:
                    cases.setdefault(_name(record), []).append(record)
            prefix = f"{machine}." if told else ""
            suite.add_testcases([_case(name, prefix + kind, records) for (kind, name), records in cases.items()])
            document.add_testsuite(suite)
    document.update_statistics()  # type: ignore[no-untyped-call]
    text = document.tostring()  # type: ignore[no-untyped-call]
    return text.decode() if isinstance(text, bytes) else str(text)


def _suite(data: RunData, name: str, machine: str) -> TestSuite:
    suite = TestSuite(name)  # type: ignore[no-untyped-call]
    suite.timestamp = data.run.started
    suite.add_property("run", data.run.run)
    suite.add_property("seatrial", data.run.seatrial)
    if machine:
        suite.add_property("machine", machine)
    return suite


def _fault(data: RunData, machine: str) -> TestSuite:
    suite = _suite(data, machine, machine)
    case = TestCase("trial", machine)
    case.result = [_result(Outcome.ERROR, clean(str(data.run.machine["fault"])), "")]
    suite.add_testcase(case)
    return suite


def _name(record: Record) -> tuple[str, str]:
    kind = ".".join(part for part in (record.suite, record.operation) if part)
    if record.block is None:
        return kind, record.test
    test = record.test.partition("[")[0]
    return kind, f"{test}[{record.operation}{'-' if record.network else ''}{record.network}]"


def _case(name: str, kind: str, records: Sequence[Record]) -> TestCase:
    case = TestCase(clean(name), clean(kind))
    times = [record.wall_ns for record in records if record.outcome is Outcome.PASS and record.wall_ns is not None]
    if times:
        case.time = round(statistics.median(times) / 1e9, 6)
    outcome = worst([record.outcome for record in records])
    if outcome is not Outcome.PASS:
        record = next(record for record in records if record.outcome is outcome)
        reason, again = split_reason(record)
        case.result = [_result(outcome, clean(reason), clean(again))]
    return case


def _result(outcome: Outcome, reason: str, again: str) -> Failure | Error | Skipped:
    first = reason.partition("\n")[0]
    if outcome in (Outcome.SKIP, Outcome.NA):
        return Skipped(f"{outcome.value}: {first}")
    result = (Failure if outcome is Outcome.FAIL else Error)(first, outcome.value)
    result.text = f"{reason}\nreproduce: {again}" if again else reason
    return result
