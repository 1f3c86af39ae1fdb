"""From the records of a bench to figures, and from those to every format."""

from __future__ import annotations

import html
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from harness.errors import StoreError, UsageError
from harness.model.lifecycle import POD_CALLS
from harness.model.record import Cpu, Memory, Outcome, Phase, Record, Run
from harness.report.bench import BenchResult, find_bench
from harness.report.bench.comparison import count_outliers, find_level, find_ratio, find_slope
from harness.report.bench.result import Comparison, Interval, Verdict
from harness.report.formats import FORMATS, render
from harness.store import RunData

GOLDEN = Path(__file__).parents[2] / "results/golden"
MINE, REFERENCE = "minirt:grpc", "containerd:grpc:runc"
MS = 1_000_000


def sample(subject: str, scenario: str, operation: str, twin: int, block: int, wall_ms: float, **more: Any) -> Record:
    engine, client, handler = (*subject.split(":"), "builtin")[:3]
    fields: dict[str, Any] = {
        "outcome": Outcome.PASS,
        "phase": Phase.MEASURE,
        "wall_ns": int(wall_ms * MS),
        "cpu_ns": Cpu(engine=int(wall_ms * MS / 2), pods=0),
        **more,
    }
    return Record(
        subject=subject,
        engine=engine,
        client=client,
        handler=handler,
        suite="bench",
        test="cri",
        operation=operation,
        scenario=scenario,
        twin=twin,
        block=block,
        **fields,
    )


def execs(subject: str, *turns: tuple[float, ...]) -> list[Record]:
    """One block for each of `turns`, which has the times of the one engine and then of the other."""
    return [
        sample(subject, "exec", "exec", twin, block, wall_ms, iteration=0)
        for block, turn in enumerate(turns)
        for twin, wall_ms in enumerate(turn)
    ]


def result(*records: Record, names: tuple[str, ...] = (), bench: str = "cri") -> BenchResult:
    run = Run(
        run="20260102-030405-aaaa",
        seatrial="0",
        command=(),
        seed=1,
        quick=False,
        started="2026-01-02T03:04:05+00:00",
        ended="2026-01-02T03:05:05+00:00",
        subjects=(MINE, REFERENCE),
        bench=bench,
        reference=REFERENCE,
    )
    return find_bench(RunData(Path("/nowhere"), run, records), names)


def figure(found: BenchResult, name: str, subject: str = MINE) -> Comparison:
    (one,) = [it for it in found.comparisons if it.figure.name == name and it.subject == subject]
    return one


def test_a_clear_difference_counts() -> None:
    found = result(
        *execs(MINE, (10, 10.2), (10.1, 9.9), (10, 10.1), (9.8, 10)),
        *execs(REFERENCE, (40, 41), (39, 40), (40, 40.5), (41, 40)),
    )
    wall = figure(found, "exec.wall")
    assert wall.mine is not None and wall.theirs is not None and wall.ratio is not None
    assert (wall.mine.level.value, wall.theirs.level.value, wall.mine.samples) == (10, 40, 8)
    assert wall.ratio.value == 0.25
    assert wall.ratio.low is not None and wall.ratio.high is not None
    assert 0.23 < wall.ratio.low < 0.25 < wall.ratio.high < 0.27
    assert (wall.counts, wall.verdict, wall.sure) == (True, Verdict.WITHIN, True)
    assert wall.mine.twins is not None
    assert wall.mine.twins.value == pytest.approx(1, abs=0.03)
    assert figure(found, "exec.cpu").mine.level.value == 5  # type: ignore[union-attr]
    assert found.within


def test_a_difference_as_large_as_that_between_two_engines_of_a_subject_does_not_count() -> None:
    """Every turn of the one engine of ours takes 10, of the other 14: that the reference takes 15 says nothing."""
    found = result(*execs(MINE, *[(10, 14)] * 8), *execs(REFERENCE, *[(15, 15)] * 8))
    wall = figure(found, "exec.wall")
    assert wall.mine is not None and wall.ratio is not None
    assert wall.mine.chance == 4
    assert wall.ratio.excludes(1)
    assert not wall.counts


def test_above_its_limit() -> None:
    found = result(*execs(MINE, *[(30, 31)] * 4), *execs(REFERENCE, *[(40, 41)] * 4))
    assert figure(found, "exec.wall").verdict is Verdict.ABOVE
    assert not found.within


def test_no_difference_is_within_a_limit_of_one() -> None:
    lists = [
        sample(subject, "list", "list", twin, block, wall, iteration=0, load=200)
        for subject, walls in ((MINE, (10.2, 10.4, 9.9)), (REFERENCE, (10.1, 10.3, 9.8)))
        for block, wall in enumerate(walls)
        for twin in (0, 1)
    ]
    found = figure(result(*lists), "list.wall")
    assert found.ratio is not None
    assert found.ratio.value > 1
    assert (found.counts, found.verdict, found.sure) == (False, Verdict.WITHIN, False)


def test_what_does_not_count_as_a_sample() -> None:
    """Warm-up turns, failed steps, and voyages of which a call is missing."""
    voyage = [sample(MINE, "pod-host", call, 0, 1, 2) for call in POD_CALLS]
    found = result(
        *(replace(record, block=0, phase=Phase.CHECK, wall_ns=999 * MS) for record in voyage),
        *voyage,
        *(replace(record, block=2, wall_ns=999 * MS) for record in voyage[:5]),
        replace(voyage[5], block=2, outcome=Outcome.FAIL, reason="it broke"),
    )
    wall = figure(found, "pod-host.wall")
    assert wall.mine is not None
    assert (wall.mine.level.value, wall.mine.samples) == (16, 1)
    assert (wall.theirs, wall.verdict) == (None, Verdict.MISSING)
    assert [finding.reason for finding in found.findings] == ["it broke"]
    assert [call.operation for call in found.calls] == list(POD_CALLS)


def weighs(subject: str, start: float, pod: float, shim: float) -> list[Record]:
    return [
        sample(
            subject,
            "memory",
            operation,
            twin,
            block,
            0,
            wall_ns=None,
            load=pods,
            memory_bytes=Memory(
                pss_anon=int((start + pod * pods) * 1e6), file_alone=2_000_000, monitors=int(shim * pods * 1e6)
            ),
        )
        for block in (0, 1)
        for twin in (0, 1)
        for operation, pods in (("fresh", 0), ("weigh", 0), ("weigh", 5), ("weigh", 10), ("weigh", 20))
    ]


def test_memory() -> None:
    found = result(*weighs(MINE, 20, 0.1, 0), *weighs(REFERENCE, 48, 4, 2))
    idle, pod = figure(found, "memory.idle"), figure(found, "memory.pod")
    assert idle.mine is not None and idle.theirs is not None
    assert (idle.mine.level.value, idle.theirs.level.value) == (22, 50)
    assert pod.mine is not None and pod.theirs is not None and pod.ratio is not None
    assert pod.mine.level.value == pytest.approx(0.1)
    assert pod.mine.intercept == pytest.approx(22)
    assert pod.theirs.level.value == pytest.approx(2), "of the reference the shims alone count"
    assert pod.ratio.value == pytest.approx(0.05)


def test_load_is_compared_with_the_time_before_and_after() -> None:
    voyages = [
        sample(MINE, "load", call, twin, 0, wall, iteration=iteration, load=pods)
        for twin in (0, 1)
        for iteration, (wall, pods) in enumerate([(1, 0), (1.1, 0), (1.5, 200), (1.6, 200), (1, 0), (1.2, 0)])
        for call in POD_CALLS
    ]
    wall = figure(result(*voyages), "load.wall")
    assert wall.mine is not None and wall.theirs is not None and wall.ratio is not None
    assert (wall.mine.samples, wall.theirs.samples) == (4, 8)
    assert wall.ratio.value == pytest.approx(1.55 / 1.05)
    assert wall.theirs.twins is not None
    assert wall.theirs.twins.value == pytest.approx(1.1 / 1.05)
    assert wall.verdict is Verdict.ABOVE


def test_the_reference_is_not_judged() -> None:
    voyages = [
        sample(REFERENCE, "load", call, 0, 0, wall, iteration=iteration, load=pods)
        for iteration, (wall, pods) in enumerate([(1, 0), (9, 200), (1, 0)])
        for call in POD_CALLS
    ]
    assert figure(result(*voyages), "load.wall", REFERENCE).verdict is Verdict.NO_LIMIT


def test_a_figure_that_was_asked_for_and_is_not_there_is_missing() -> None:
    found = result(names=("exec.wall",))
    assert figure(found, "exec.wall").verdict is Verdict.MISSING
    assert not found.within
    assert result().comparisons == ()


def test_a_bench_that_is_not_known() -> None:
    with pytest.raises(StoreError, match="of a bench 'warp'"):
        result(bench="warp")


def test_statistics() -> None:
    level = find_level([1, 2, 3, 4, 100], seed=1)
    assert level == find_level([1, 2, 3, 4, 100], seed=1)
    assert level.value == 3 and level.low is not None and level.high is not None
    assert 1 <= level.low < 3 < level.high <= 100
    assert find_level([7], seed=1) == Interval(7)
    assert find_ratio([2], [4], seed=1) == Interval(0.5)
    assert find_ratio([], [4], seed=1) is None
    assert find_ratio([1], [0], seed=1) is None
    slope, intercept = find_slope([0, 5, 10, 20], [1, 11, 21, 41])
    assert (slope.value, intercept) == (2, 1)
    assert count_outliers([10, 10.1, 9.9, 10, 10.2, 30]) == 1
    assert count_outliers([10, 10, 10]) == count_outliers([1, 9]) == 0


@pytest.mark.parametrize("form", FORMATS)
def test_formats_of_the_golden_bench(form: str) -> None:
    text = render(form, [GOLDEN / "v2"], width=120)
    if form != "csv":
        assert "ListContainers" in text
        assert "CallTimeout: made up" in text
    if form in ("table", "markdown", "html"):
        assert "11 within, 1 above" in text
        assert "run_sandbox" in html.unescape(text)
        assert "~" in text or "&#126;" in text


@pytest.mark.parametrize("form", ["table", "markdown", "html"])
def test_formats_of_the_golden_bench_of_oci_runtimes(form: str) -> None:
    text = html.unescape(render(form, [GOLDEN / "v3"], width=120))
    for words in ("create: peak", "run starts a container: memory limit", "1.0 MB", "largest resident set", "cycle"):
        assert words in text
    assert "PSS" not in text


def test_junit_fails_what_is_above_its_limit() -> None:
    cases = {
        case.get("name"): case for case in ElementTree.fromstring(render("junit", [GOLDEN / "v2"])).iter("testcase")
    }
    (failure,) = cases["pull.wall"].findall("failure")
    assert "limit 1.0" in str(failure.get("message"))
    assert [name for name, case in cases.items() if case.find("failure") is not None] == ["pull.wall"]


def test_samples_of_memory_are_in_the_csv() -> None:
    head, *lines = render("csv", [GOLDEN / "v2"]).splitlines()
    assert {"scenario", "twin", "load", "memory_monitors"} <= set(head.split(","))
    assert sum(",weigh," in line for line in lines) == 32


def test_html_is_safe() -> None:
    text = render("html", [GOLDEN / "v2"])
    assert "<script" not in text
    assert text.count("<!DOCTYPE html>") == 1


def test_a_bench_stands_alone() -> None:
    with pytest.raises(UsageError, match="report of its own"):
        render("table", [GOLDEN / "v1", GOLDEN / "v2"])
