"""The meter of an arena: on fake folders, and on cgroups of this machine."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from harness.clock import wait_until
from harness.command import HostRunner
from harness.linux.cgroups import Layout, layout_of, path_of, read_layout, read_pids
from harness.meter import open_meter, spent
from harness.model.record import Cpu, Memory

CAPTURED = Path(__file__).parent / "captured"


def test_groups_that_are_not_named_are_absent_without_a_reason() -> None:
    with open_meter(read_layout(), {}) as meter:
        assert meter.cpu() == Cpu()
        assert meter.memory(detail=True) == Memory()
        assert meter.notes == ()
        assert meter.engine_pids() == []


def test_a_group_that_is_not_there_is_absent_with_a_reason() -> None:
    with open_meter(read_layout(), {"engine": "/no-such-cgroup"}) as meter:
        assert meter.cpu() == Cpu()
        assert meter.memory() == Memory()
        assert any("no-such-cgroup" in note for note in meter.notes)


def test_one_reason_for_three_groups_is_told_once(tmp_path: Path) -> None:
    text = (CAPTURED / "v1/mountinfo").read_text().replace("/sys/fs/cgroup", str(tmp_path))
    layout = layout_of(text, "")
    for name in ("engine", "client", "pods"):
        for controller, file in (("cpuacct", "cpuacct.usage"), ("memory", "memory.stat")):
            folder = path_of(layout, controller, f"/{name}")
            folder.mkdir(parents=True)
            (folder / file).write_bytes((CAPTURED / "v1" / file).read_bytes())
            (folder / "memory.kmem.usage_in_bytes").write_text("4096\n")
    with open_meter(layout, {name: f"/{name}" for name in ("engine", "client", "pods")}) as meter:
        before = meter.cpu()
        path = path_of(layout, "cpuacct", "/pods") / "cpuacct.usage"
        path.write_text(f"{(before.pods or 0) + 7}\n")
        assert spent(before, meter.cpu()) == Cpu(engine=0, client=0, pods=7)
        assert len(meter.notes) == len(set(meter.notes)) == 2
        memory = meter.memory()
        assert memory.engine == memory.pods == 80224256 + 9142272 + 4096


def test_difference_of_absent_values_is_absent() -> None:
    assert spent(Cpu(engine=1), Cpu(engine=3, client=4)) == Cpu(engine=2)


@contextlib.contextmanager
def cgroup(layout: Layout, path: str) -> Iterator[list[Path]]:
    """A cgroup of its own for accounting, gone afterwards together with its processes."""
    folders = sorted({path_of(layout, controller, path) for controller in ("cpuacct", "memory")})
    for folder in folders:
        folder.mkdir()
    try:
        yield folders
    finally:
        for folder in folders:
            wait_until(lambda folder=folder: not read_pids(folder), 10, f"{folder} to be empty")
            folder.rmdir()


def test_live(tmp_path: Path) -> None:
    """A process that burns 50 ms and holds 8 MiB is seen, and on nobody else's account."""
    layout = read_layout()
    name = f"/seatrial-test-report-{os.getpid()}"
    program = f"""
import os, time
from pathlib import Path
for folder in Path({str(tmp_path)!r}, "folders").read_text().splitlines():
    Path(folder, "cgroup.procs").write_text("0")
kept = bytearray(os.urandom(8 << 20))
while time.thread_time() < 0.05: pass
Path({str(tmp_path)!r}, "ready").touch()
time.sleep(60)
"""
    with (
        cgroup(layout, name) as folders,
        cgroup(layout, f"{name}-client"),
        open_meter(layout, {"engine": name, "client": f"{name}-client"}) as meter,
        (tmp_path / "log").open("wb") as log,
    ):
        (tmp_path / "folders").write_text("\n".join(map(str, folders)))
        before = meter.cpu()
        process = HostRunner().start([sys.executable, "-c", program], stdout_fd=log.fileno(), stderr_fd=log.fileno())
        try:
            wait_until((tmp_path / "ready").exists, 20, "the process to have burnt its time")
            cost = spent(before, meter.cpu())
            memory = meter.memory(detail=True)
            pids = meter.engine_pids()
        finally:
            process.stop(0.1)
        assert cost.engine is not None
        assert 20_000_000 < cost.engine < 20_000_000_000
        assert (cost.client, cost.pods) == (0, None)
        assert pids == [process.pid]
        assert memory.processes == 1
        assert memory.anon is not None and memory.engine is not None and memory.pss_anon is not None
        assert 8 << 20 <= memory.anon <= memory.engine < 1 << 30
        assert memory.pss_anon >= 8 << 20
        assert memory.pods is None
