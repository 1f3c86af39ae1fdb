"""Gauges of cgroup v1 and v2 on folders of fake kernel files, and what they say of values that cannot be had."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.meter import Reading, v1, v2
from harness.meter.null import NullGauge
from harness.meter.v1 import V1_NOTES, V1Gauge
from harness.meter.v2 import V2Gauge

CAPTURED = Path(__file__).parent / "captured"


def fill(folder: Path, version: str, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes((CAPTURED / version / name).read_bytes())
    return folder


def test_v2_memory() -> None:
    reading = v2.parse_memory((CAPTURED / "v2/memory.stat").read_text())
    assert reading == Reading(anon=30310400, shmem=4096, kernel=131072 + 397312, slab=170976, file=86552576 - 4096)
    assert reading.headline == 30310400 + 4096 + 170976 + 131072 + 397312


def test_v2_memory_of_a_kernel_without_pagetables() -> None:
    text = (CAPTURED / "v2/memory.stat").read_text().replace("pagetables 397312\n", "", 1)
    assert v2.parse_memory(text).kernel == 131072


def test_v1_memory() -> None:
    stat = (CAPTURED / "v1/memory.stat").read_text()
    reading = v1.parse_memory(stat, "141926400\n")
    assert reading == Reading(anon=80224256, shmem=9142272, kernel=141926400, slab=None, file=883191808 - 9142272), (
        "the totals, which count what is below too"
    )
    assert reading.headline == 80224256 + 9142272 + 141926400
    assert v1.parse_memory(stat, None).headline == 80224256 + 9142272


def test_nothing_read_is_no_zero() -> None:
    assert Reading().headline is None
    assert Reading(anon=0).headline == 0


def test_v2_gauge(tmp_path: Path) -> None:
    folder = fill(tmp_path / "engine", "v2", "cpu.stat", "memory.stat")
    (folder / "cgroup.procs").write_text("5\n6\n")
    gauge = V2Gauge(folder)
    assert gauge.cpu_ns() == 13806793000
    (folder / "cpu.stat").write_text("user_usec 1\nusage_usec 9000000\n")
    assert gauge.cpu_ns() == 9_000_000_000, "the file is read again, and not by its first line alone"
    assert gauge.memory().anon == 30310400
    assert gauge.pids() == [5, 6]
    assert gauge.notes == ()
    gauge.close()
    gauge.close()


def test_v2_gauge_without_a_memory_controller(tmp_path: Path) -> None:
    gauge = V2Gauge(fill(tmp_path / "engine", "v2", "cpu.stat"))
    assert gauge.memory() == Reading()
    assert gauge.cpu_ns() == 13806793000
    assert gauge.notes == (f"{tmp_path}/engine/memory.stat cannot be opened: No such file or directory",)
    gauge.close()


def test_v1_gauge(tmp_path: Path) -> None:
    cpuacct = fill(tmp_path / "cpuacct", "v1", "cpuacct.usage")
    memory = fill(tmp_path / "memory", "v1", "memory.stat", "memory.kmem.usage_in_bytes")
    (memory / "cgroup.procs").write_text("5\n")
    gauge = V1Gauge(cpuacct, memory)
    assert gauge.cpu_ns() == int((CAPTURED / "v1/cpuacct.usage").read_text())
    assert gauge.memory().kernel == int((CAPTURED / "v1/memory.kmem.usage_in_bytes").read_text())
    assert gauge.pids() == [5]
    assert gauge.notes == V1_NOTES
    gauge.close()


def test_v1_gauge_without_kernel_memory_accounting(tmp_path: Path) -> None:
    gauge = V1Gauge(fill(tmp_path / "cpuacct", "v1", "cpuacct.usage"), fill(tmp_path / "memory", "v1", "memory.stat"))
    assert gauge.memory().kernel is None
    assert gauge.memory().headline == 80224256 + 9142272
    assert "memory.kmem.usage_in_bytes cannot be opened" in gauge.notes[-1]
    gauge.close()


def test_v1_gauge_without_a_controller(tmp_path: Path) -> None:
    gauge = V1Gauge(fill(tmp_path / "cpuacct", "v1", "cpuacct.usage"), None)
    assert gauge.memory() == Reading()
    assert gauge.cpu_ns() is not None
    assert "the controller memory is not mounted" in gauge.notes[-1]
    gauge.close()


@pytest.mark.parametrize("reason", ["", "nobody told where the engine is"])
def test_null_gauge(reason: str) -> None:
    gauge = NullGauge(reason)
    assert (gauge.cpu_ns(), gauge.memory(), gauge.pids()) == (None, Reading(), [])
    assert gauge.notes == ((reason,) if reason else ())
    gauge.close()
