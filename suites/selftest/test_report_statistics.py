"""From records to a matrix."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.model.lifecycle import POD_CALLS, Operation
from harness.model.record import Cpu, Memory, Outcome, Phase, Record, Run
from harness.report.matrix import COLUMNS, MARKS, MEANINGS, Matrix
from harness.report.sentences import describe_notes
from harness.report.statistics import find_matrix, worst
from harness.store import RunData, read_folder

GOLDEN = Path(__file__).parents[2] / "results/golden/v1"
MS = 1_000_000
WAYS = {
    "containerd:grpc:runc": ("containerd", "grpc", "runc"),
    "containerd:crictl:runc": ("containerd", "crictl", "runc"),
    "minirt:grpc": ("minirt", "grpc", "builtin"),
    "oci:runc": ("none", "oci", "runc"),
}


def record(subject: str = "oci:runc", operation: str = "start", outcome: Outcome = Outcome.PASS, **more: Any) -> Record:
    engine, client, handler = WAYS.get(subject, ("", "", ""))
    fields = {"suite": "lifecycle", "test": f"test_it[{subject}]", **more}
    return Record(
        subject=subject, engine=engine, client=client, handler=handler, operation=operation, outcome=outcome, **fields
    )


def sample(wall_ms: float, subject: str = "oci:runc", operation: str = "start", **more: Any) -> Record:
    fields = {"phase": Phase.MEASURE, "block": 1, "network": "host", **more}
    return record(subject, operation, wall_ns=int(wall_ms * MS), **fields)


def data(*records: Record, **more: Any) -> RunData:
    fields: dict[str, Any] = {
        "run": "20260102-030405-aaaa",
        "seatrial": "0",
        "command": (),
        "seed": 1,
        "quick": False,
        "started": "2026-01-02T03:04:05+00:00",
        "ended": "2026-01-02T03:05:05+00:00",
        **more,
    }
    return RunData(Path("/nowhere"), Run(**fields), records)


def matrix(*records: Record, **more: Any) -> Matrix:
    return find_matrix([data(*records, **more)])


def test_every_operation_has_a_column_in_order() -> None:
    assert [column.operation for column in COLUMNS] == list(Operation)
    assert set(MARKS) == set(MEANINGS) == set(Outcome)
    assert len(set(MARKS.values())) == 5


@pytest.mark.parametrize(
    ("outcomes", "wanted"),
    [
        ("pass", "pass"),
        ("pass fail", "fail"),
        ("fail error pass", "error"),
        ("skip pass n/a", "pass"),
        ("n/a skip", "skip"),
        ("n/a n/a", "n/a"),
        ("skip fail", "fail"),
    ],
)
def test_the_outcome_of_a_cell(outcomes: str, wanted: str) -> None:
    records = [record(outcome=Outcome(word)) for word in outcomes.split()]
    assert matrix(*records).rows[0].cells["start"].outcome is Outcome(wanted)
    assert worst([entry.outcome for entry in records]) is Outcome(wanted)


def test_a_sum_without_the_engines_share_is_no_cost() -> None:
    cost = matrix(sample(10, cpu_ns=Cpu(client=0, pods=0))).rows[0].cells["start"].cost
    assert cost is not None
    assert (cost.wall_ms, cost.cpu_ms, cost.cpu_client_ms) == (10, None, 0)


def test_only_measured_samples_of_good_steps_count() -> None:
    found = matrix(
        sample(10, cpu_ns=Cpu(engine=MS, client=4 * MS, pods=2 * MS)),
        sample(30, cpu_ns=Cpu(engine=MS, client=5 * MS, pods=0)),
        sample(20, cpu_ns=Cpu(engine=MS, client=6 * MS, pods=1 * MS)),
        sample(9000, phase=Phase.CHECK, block=0),
        replace(sample(7000), outcome=Outcome.FAIL, reason="x"),
        record(),
    )
    cell = found.rows[0].cells["start"]
    assert cell.cost is not None
    assert (cell.cost.samples, cell.cost.wall_ms) == (3, 20)
    assert (cell.cost.wall_low_ms, cell.cost.wall_high_ms) == (15, 25)
    assert cell.cost.cpu_ms == 7, "the median of sums, not the sum of medians"
    assert (cell.cost.cpu_engine_ms, cell.cost.cpu_client_ms, cell.cost.cpu_pods_ms) == (1, 5, 1)
    assert cell.outcome is Outcome.FAIL
    assert cell.apart == 1
    assert cell.tests == {Outcome.PASS: 5, Outcome.FAIL: 1}


def test_absent_is_not_zero() -> None:
    cell = matrix(sample(1)).rows[0].cells["start"]
    assert cell.cost is not None
    assert cell.cost.cpu_ms is None
    row = matrix(sample(1)).rows[0]
    assert (row.cpu_ms, row.held.engine, row.held.processes) == (None, None, None)
    assert row.wall_ms == 1


def test_networks_are_never_mixed() -> None:
    row = matrix(sample(10), sample(50, network="bridge"), sample(70, network="bridge")).rows[0]
    cell = row.cells["start"]
    assert cell.cost is not None and cell.elsewhere is not None
    assert (row.network, cell.cost.wall_ms) == ("host", 10)
    assert cell.elsewhere["bridge"].wall_ms == 60
    alone = matrix(sample(50, network="bridge")).rows[0]
    assert (alone.network, alone.wall_ms) == ("bridge", 50)


def test_sums_say_when_a_step_is_missing() -> None:
    good = [sample(10), sample(5, operation="stop"), record(operation="pull", outcome=Outcome.NA)]
    row = matrix(*good).rows[0]
    assert (row.wall_ms, row.whole) == (15, True)
    row = matrix(*good, replace(sample(3, operation="remove"), outcome=Outcome.FAIL)).rows[0]
    assert (row.wall_ms, row.whole) == (15, False)


def test_memory_of_the_engine() -> None:
    held = (
        matrix(
            *(
                sample(
                    1,
                    memory_bytes=Memory(engine=size, anon=size - 1, pss_anon=5, pss_file=2, file_alone=2, processes=3),
                )
                for size in (10, 40, 20)
            )
        )
        .rows[0]
        .held
    )
    assert (held.engine, held.anon, held.pss, held.processes, held.slab) == (20, 19, 7, 3, None)


def test_rows_stand_in_the_order_of_the_run() -> None:
    found = matrix(record("zz"), record("minirt:grpc"), record("zz", "stop"), subjects=("oci:runc", "minirt:grpc"))
    assert [row.subject for row in found.rows] == ["oci:runc", "minirt:grpc", "zz"]
    assert found.rows[0].cells == {}, "nothing was recorded of it yet"
    assert len(found.columns) == len(COLUMNS)


def test_checks_without_a_step_have_a_column_of_their_own() -> None:
    found = matrix(record(operation=""), record(operation="brew_coffee", outcome=Outcome.FAIL))
    assert found.columns[-1].title == "other"
    assert found.rows[0].cells[""].outcome is Outcome.FAIL
    assert found.rows[0].cells[""].tests == {Outcome.PASS: 1, Outcome.FAIL: 1}


def test_a_reason_is_told_once() -> None:
    broken = [
        record(
            operation=step, outcome=Outcome.ERROR, test=f"test_{step}[oci:runc]", reason=f"no\nreproduce: run {step}"
        )
        for step in ("stop", "create", "stop")
    ]
    found = matrix(*broken, record(outcome=Outcome.NA, reason="has none"), record(outcome=Outcome.FAIL)).findings
    assert [finding.outcome for finding in found] == [Outcome.ERROR, Outcome.FAIL, Outcome.NA]
    assert (found[0].operations, found[0].count, found[0].reason) == (("create", "stop"), 3, "no")
    assert found[0].reproduce == "run stop"
    assert found[1].reason == "no reason was given"
    assert found[1].reproduce == "seatrial run oci:runc --suite lifecycle -- -k test_it"
    (of_a_bench,) = matrix(record(outcome=Outcome.FAIL, suite="bench", test="oci", scenario="cycle")).findings
    assert of_a_bench.reproduce == "seatrial bench oci oci:runc"


def test_harness_overhead_is_of_grpc_steps() -> None:
    found = matrix(
        *(sample(1, "minirt:grpc", harness_wall_ns=n * 10_000, harness_cpu_ns=n * 1000) for n in (1, 2, 9)),
        sample(1, "oci:runc", harness_wall_ns=10**9),
    ).overhead
    assert found is not None
    assert (found.samples, found.wall_ms, found.cpu_ms) == (3, 0.02, 0.002)
    assert matrix(sample(1)).overhead is None


def test_client_tax() -> None:
    found = matrix(
        *(sample(10, "containerd:grpc:runc", step, cpu_ns=Cpu(engine=MS)) for step in ("start", "stop", "pause")),
        *(
            sample(40, "containerd:crictl:runc", step, cpu_ns=Cpu(engine=MS, client=9 * MS))
            for step in ("start", "stop")
        ),
        sample(999, "containerd:crictl:runc", "pause", via="ctr"),
        sample(1, "minirt:grpc"),
    ).taxes
    (tax,) = found
    assert (tax.name, tax.base) == ("containerd:crictl:runc", "containerd:grpc:runc")
    assert (tax.steps, tax.wall_ms, tax.cpu_ms) == (2, 30, 9), "a step through another tool is none of the client's"


def pod(subject: str, wall_ms: float) -> list[Record]:
    memory = Memory(pss_anon=int(wall_ms), file_alone=0)
    return [sample(wall_ms, subject, call, cpu_ns=Cpu(engine=MS), memory_bytes=memory) for call in POD_CALLS]


def test_pod_totals() -> None:
    found = matrix(*pod("containerd:grpc:runc", 10), *pod("minirt:grpc", 4), *pod("oci:runc", 1)[1:]).pods
    assert [(total.name, total.wall_ms, total.wall_ratio) for total in found] == [
        ("containerd:grpc:runc", 80, 1.0),
        ("minirt:grpc", 32, 0.4),
    ]
    assert (found[1].cpu_ms, found[1].cpu_ratio, found[1].pss_ratio) == (8, 1.0, 0.4)
    assert matrix(*pod("minirt:grpc", 4)).pods[0].wall_ratio is None


def test_ratios_stay_within_a_run() -> None:
    one = data(*pod("containerd:grpc:runc", 10), run="a", machine={"distribution": "Debian"})
    two = data(*pod("minirt:grpc", 4), run="b", machine={"distribution": "Debian"})
    found = find_matrix([one, two])
    assert [total.wall_ratio for total in found.pods] == [1.0, None]
    assert [row.name for row in found.rows] == ["containerd:grpc:runc (Debian, a)", "minirt:grpc (Debian, b)"]


def test_several_machines() -> None:
    runs = [data(record(), machine={"distribution": name}) for name in ("Debian 12", "Fedora 41")] + [data(record())]
    assert [head.label for head in find_matrix(runs).runs] == ["Debian 12", "Fedora 41", "unknown machine"]
    assert find_matrix(runs[:1]).runs[0].label == ""


def test_state() -> None:
    assert matrix(record()).runs[0].state == ""
    assert "interrupted" in matrix(record(), interrupted=True).runs[0].state
    assert "killed" in matrix(record(), ended="").runs[0].state


def test_no_runs_and_no_records() -> None:
    for found in (find_matrix([]), matrix()):
        assert (found.rows, found.findings, found.overhead, found.taxes, found.pods) == ((), (), None, (), ())
        assert sum(found.counts.values()) == 0


def test_golden() -> None:
    found = find_matrix([read_folder(GOLDEN)])
    assert [found.counts[outcome] for outcome in (Outcome.FAIL, Outcome.NA, Outcome.SKIP, Outcome.ERROR)] == [
        2,
        15,
        14,
        1,
    ]
    assert sum(found.counts.values()) == 7 * len(COLUMNS)
    assert len(found.rows) == 7
    assert {finding.outcome for finding in found.findings} == set(Outcome) - {Outcome.PASS}


def test_notes_are_told_once() -> None:
    notes = ("oci:runc: no slab", "minirt:grpc: no slab", "oci:runc: no pss", "the disk was slow")
    found = matrix(sample(1), sample(1, "minirt:grpc"), subjects=("oci:runc", "minirt:grpc"), notes=notes)
    assert describe_notes(found) == ["no slab", "no pss (oci:runc)", "the disk was slow"]
