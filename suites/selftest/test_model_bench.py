"""Benches as data: scenarios, figures and limits fit together, and words choose among them."""

from __future__ import annotations

import pytest

from harness.errors import UsageError
from harness.model.bench import BENCHES, CRI, OCI, Bench
from harness.model.subject import parse_subject
from harness.session.bench import BY_BENCH


@pytest.mark.parametrize("bench", BENCHES.values(), ids=lambda bench: bench.name)
def test_a_bench_is_whole(bench: Bench) -> None:
    scenarios = [scenario.name for scenario in bench.scenarios]
    figures = [figure.name for figure in bench.figures]
    assert len(set(scenarios)) == len(scenarios)
    assert len(set(figures)) == len(figures)
    assert {figure.scenario for figure in bench.figures} == set(scenarios) == set(BY_BENCH[bench.name])
    assert all(scenario.quick <= scenario.blocks for scenario in bench.scenarios)
    for name in (*bench.subjects, bench.reference):
        assert parse_subject(name).client in bench.clients


def test_the_limits_of_cri() -> None:
    limits = {figure.name: figure.limit for figure in CRI.figures if figure.limit}
    assert limits == {
        "pod-host.wall": 0.25,
        "pod-host.cpu": 0.25,
        "pod-bridge.wall": 0.4,
        "pod-bridge.cpu": 0.4,
        "exec.wall": 0.35,
        "exec.cpu": 0.35,
        "list.wall": 1.0,
        "pull.wall": 1.0,
        "memory.fresh": 1.0,
        "memory.idle": 1.0,
        "memory.pod": 0.15,
        "load.wall": 1.3,
    }


def test_the_limits_of_oci() -> None:
    limits = {figure.name: figure.limit for figure in OCI.figures if figure.limit}
    assert limits == {"cycle.wall": 1.0, "peak.create": 1.0, "peak.start": 1.0, "peak.delete": 1.0}


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        ([], [scenario.name for scenario in CRI.scenarios]),
        (["exec"], ["exec"]),
        (["memory.pod", "exec.cpu", "exec.wall"], ["exec", "memory"]),
    ],
)
def test_choosing(names: list[str], chosen: list[str]) -> None:
    assert [scenario.name for scenario in CRI.choose(names)] == chosen


def test_choosing_what_is_not_there() -> None:
    with pytest.raises(UsageError, match=r"has no figure 'speed'; it has: pod-host\.wall"):
        CRI.choose(["speed"])
