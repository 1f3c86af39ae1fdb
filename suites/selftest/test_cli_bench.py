"""``seatrial bench``: a tiny one is complete and true (how fast anything is, is no matter), and nothing is left of it."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from pathlib import Path

import pytest
from arena_traces import traces

from harness.cli.bench_run import Request, perform_bench
from harness.clock import wait_until
from harness.command import HostRunner
from harness.errors import UsageError
from harness.model.bench import CRI, OCI
from harness.model.lifecycle import POD_CALLS
from harness.model.record import Outcome, Phase
from harness.report.bench import find_bench
from harness.report.bench.result import Verdict
from harness.store import RunData, find_runs, read_folder

SEATRIAL = [sys.executable, "-m", "harness.cli"]
MINE, REFERENCE = "minirt:grpc", "containerd:grpc:runc"
MANY, CALLS, VOYAGES = 40, 5, 5


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunData:
    """Every scenario, one block each."""
    output = tmp_path_factory.mktemp("results")
    request = Request(CRI, quick=True, blocks=1, many=MANY, heavy_bytes=2_000_000, seed=7, output=output)
    status = perform_bench(request)
    (folder,) = find_runs(output)
    data = read_folder(folder)
    assert status == 0, [record.reason for record in data.records if record.reason]
    return data


def test_every_turn_is_recorded(run: RunData) -> None:
    assert {record.outcome for record in run.records} == {Outcome.PASS}
    counted = Counter(
        (record.scenario, record.subject)
        for record in run.records
        if record.phase is Phase.MEASURE and record.twin == 1
    )
    each = {"pod-host": 8, "pod-bridge": 8, "exec": CALLS, "list": CALLS, "pull": 1, "memory": 5}
    wanted = {(scenario, subject): count for scenario, count in each.items() for subject in (MINE, REFERENCE)}
    assert counted == {**wanted, ("load", MINE): 3 * VOYAGES * len(POD_CALLS)}


def test_records_say_what_was_done(run: RunData) -> None:
    assert (run.run.bench, run.run.reference, run.run.subjects) == ("cri", REFERENCE, (MINE, REFERENCE))
    assert "seatrial/heavy:1" in run.run.images
    assert all(
        record.wall_ns and record.cpu_ns.engine is not None for record in run.records if record.scenario != "memory"
    )
    weighed = [record for record in run.records if record.scenario == "memory" and record.subject == REFERENCE]
    for twin in (0, 1):
        mine = [record for record in weighed if record.twin == twin]
        assert [(record.operation, record.load) for record in mine] == [
            ("fresh", 0),
            *(("weigh", pods) for pods in (0, 1, 2, 4)),
        ]
        # A daemon, and a shim for each pod.
        assert [record.memory_bytes.processes for record in mine] == [1, 1, 2, 3, 5]
        shims = [record.memory_bytes.monitors for record in mine]
        assert shims[:2] == [0, 0]
        assert shims == sorted(shims, key=lambda size: size or 0)
    assert {record.load for record in run.records if record.scenario == "load"} == {0, MANY}


def test_the_report_is_whole(run: RunData) -> None:
    found = find_bench(run)
    assert [comparison.figure for comparison in found.comparisons] == list(CRI.figures)
    assert Verdict.MISSING not in {comparison.verdict for comparison in found.comparisons}
    assert len(found.calls) == 2 * len(POD_CALLS)
    for name in ("report.md", "report.html", "junit.xml", "samples.csv"):
        assert (run.folder / name).stat().st_size > 1000


def test_nothing_is_left(run: RunData) -> None:
    assert traces(run.run.run) == []


def test_interrupted(tmp_path: Path) -> None:
    """Ctrl-C among many pods: the partial report is written, and nothing is left."""
    argv = [*SEATRIAL, "bench", "cri", MINE, "--quick", "--figure", "load", "--output", str(tmp_path / "results")]
    with (tmp_path / "out").open("wb") as out:
        process = HostRunner().start(argv, stdout_fd=out.fileno(), stderr_fd=out.fileno())
        try:
            wait_until(
                lambda: any(
                    len(read_folder(folder).records) > len(POD_CALLS) for folder in find_runs(tmp_path / "results")
                ),
                60,
                "some records",
            )
            os.kill(process.pid, signal.SIGINT)
            status = process.wait(60)
        finally:
            process.stop()
    assert status == 130, (tmp_path / "out").read_text()
    (folder,) = find_runs(tmp_path / "results")
    assert read_folder(folder).run.interrupted
    assert "interrupted" in (folder / "report.md").read_text()
    assert traces(folder.name) == []


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(CRI, figures=("speed",)), "has no figure 'speed'"),
        (Request(CRI, subjects=("oci:runc",)), "for CRI"),
        (Request(CRI, subjects=("mine=cri:unix:///run/mine.sock",)), "starts engines of its own"),
    ],
)
def test_bad_usage(request_: Request, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        perform_bench(request_)


def test_a_bench_of_oci_runtimes(tmp_path: Path) -> None:
    """Every scenario, one block each: all is recorded, every figure is there, and nothing is left."""
    status = perform_bench(Request(OCI, ("oci:crun",), quick=True, blocks=1, seed=7, output=tmp_path))
    (folder,) = find_runs(tmp_path)
    data = read_folder(folder)
    assert status == 0, [record.reason for record in data.records if record.reason]
    result = find_bench(data)
    assert {comparison.figure.name for comparison in result.comparisons} == {figure.name for figure in OCI.figures}
    for comparison in result.comparisons:
        assert comparison.mine and comparison.mine.level.value > 0, comparison.figure.name
        assert comparison.theirs and comparison.ratio
    assert {call.operation for call in result.calls} == {"create", "start", "remove"}
    peaks = [record.memory_bytes.peak for record in data.records if record.scenario == "peak"]
    assert all(peak and 1_000_000 < peak < 40_000_000 for peak in peaks)
    limits = {record.memory_bytes.limit for record in data.records if record.scenario == "floor"}
    assert all(limit and limit % (1 << 20) == 0 for limit in limits)
    assert traces(data.run.run) == []
