"""Pods with a container each, made and removed thousands of times: what an engine holds does not grow.

On demand: ``seatrial run --suite soak minirt:grpc``, and for a shorter one ``... -- --cycles 200``.
"""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from harness.meter.processes import read_total_pss
from harness.model.capability import Capability
from harness.session.trial import SLEEPER, Trial

SPARE = {"descriptors": 16, "threads": 8, "processes": 0, "mounts": 0, "cgroups": 0}
"""that may be there more at the end: pools of connections and threads grow to a size, and stay"""
PSS_GROWTH = 1.2
PSS_SPARE_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Holding:
    """What an engine holds while it has no pods."""

    descriptors: int
    threads: int
    processes: int
    mounts: int
    cgroups: int
    pss_bytes: int


def holding(trial: Trial) -> Holding:
    pids = trial.arena.pids("engine")
    pss = read_total_pss(pids)
    return Holding(
        descriptors=sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids),
        threads=sum(len(list(Path(f"/proc/{pid}/task").iterdir())) for pid in pids),
        processes=len(pids) + len(trial.arena.pids("pods")),
        mounts=len(trial.witness.mounts()),
        cgroups=sum(len(folders) for tree in trial.arena.cgroups.trees() for _, folders, _ in os.walk(tree)),
        pss_bytes=pss.anon + pss.file if pss is not None else 0,
    )


def cycle(trial: Trial) -> float:
    """One pod with one container; the seconds that it took."""
    begun = time.perf_counter()
    client = trial.client
    pod = trial.run_sandbox()
    container = trial.create(trial.spec(SLEEPER, sandbox=pod))
    client.start(container)
    assert client.exec(container, ("/bin/true",)).exit_code == 0
    trial.discard(container, pod, paused=False)
    assert not client.sandbox_exists(pod)
    return time.perf_counter() - begun


@pytest.mark.exclusive
@pytest.mark.needs(Capability.SANDBOX)
@pytest.mark.operation("remove_sandbox")
def test_what_an_engine_holds_does_not_grow(
    trial: Trial, pytestconfig: pytest.Config, record_property: pytest.RecordProperty
) -> None:
    cycles = pytestconfig.getoption("--cycles")
    trial.client.pull(trial.image())
    for _ in range(max(10, cycles // 20)):
        cycle(trial)
    before = holding(trial)
    times = [cycle(trial) for _ in range(cycles)]
    after = holding(trial)
    tenth = max(1, cycles // 10)
    early, late = statistics.median(times[:tenth]), statistics.median(times[-tenth:])
    grown = {name: f"{value} → {asdict(after)[name]}" for name, value in asdict(before).items()}
    words = ", ".join(f"{name.replace('_', ' ')} {text}" for name, text in grown.items())
    record_property(
        "note", f"{trial.subject.name}, {cycles} cycles: {words}, ms a cycle {early * 1e3:.1f} → {late * 1e3:.1f}"
    )
    for name, spare in SPARE.items():
        assert getattr(after, name) <= getattr(before, name) + spare, f"{name} grew: {grown[name]}"
    assert after.pss_bytes <= max(before.pss_bytes * PSS_GROWTH, before.pss_bytes + PSS_SPARE_BYTES), grown["pss_bytes"]
