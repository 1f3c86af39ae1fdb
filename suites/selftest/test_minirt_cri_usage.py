"""What a cgroup's files say, for v1 and v2: folders of such files, so that both are read on every machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from harness.linux.cgroups import Layout, Mode
from harness.minirt.cri.interfaces import parse_interfaces
from harness.minirt.cri.stats import Rates
from harness.minirt.cri.usage import Disk, Pressure, Stall, Usages

MB = 1 << 20
V2 = {
    "cpu.stat": "usage_usec 5000\nuser_usec 3000\nsystem_usec 2000\nnr_periods 9\nnr_throttled 4\nthrottled_usec 700\n",
    "cpu.pressure": "some avg10=1.50 avg60=0.25 avg300=0.00 total=77\nfull avg10=0.50 avg60=0.00 avg300=0.00 total=33\n",
    "memory.current": f"{10 * MB}\n",
    "memory.max": f"{64 * MB}\n",
    "memory.peak": f"{12 * MB}\n",
    "memory.stat": f"anon {6 * MB}\nfile {3 * MB}\nkernel 4096\nfile_mapped 8192\nactive_file 1\n"
    f"inactive_file {2 * MB}\npgfault 11\npgmajfault 2\n",
    "memory.events": "low 0\nhigh 0\nmax 5\noom 1\noom_kill 1\n",
    "memory.swap.current": "4096\n",
    "memory.swap.max": "max\n",
    "io.stat": "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n7:1 \n",
    "pids.current": "3\n",
    "pids.max": "100\n",
    "cgroup.procs": "12\n13\n",
}
V1 = {
    "cpuacct/cpuacct.usage": "5000000\n",
    "cpuacct/cpuacct.usage_user": "3000000\n",
    "cpuacct/cpuacct.usage_sys": "2000000\n",
    "cpu/cpu.stat": "nr_periods 9\nnr_throttled 4\nthrottled_time 700000\n",
    "memory/memory.usage_in_bytes": f"{10 * MB}\n",
    "memory/memory.limit_in_bytes": f"{64 * MB}\n",
    "memory/memory.memsw.limit_in_bytes": f"{80 * MB}\n",
    "memory/memory.max_usage_in_bytes": f"{12 * MB}\n",
    "memory/memory.stat": f"rss 1\ntotal_rss {6 * MB}\ntotal_cache {3 * MB}\ntotal_mapped_file 8192\n"
    f"total_active_file 1\ntotal_inactive_file {2 * MB}\ntotal_pgfault 11\ntotal_pgmajfault 2\ntotal_swap 4096\n",
    "memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
    "memory/memory.failcnt": "5\n",
    "memory/memory.kmem.usage_in_bytes": "4096\n",
    "blkio/blkio.throttle.io_service_bytes_recursive": "8:0 Read 10\n8:0 Write 20\n8:0 Total 30\nTotal 30\n",
    "blkio/blkio.throttle.io_serviced_recursive": "8:0 Read 1\n8:0 Write 2\n8:0 Total 3\nTotal 3\n",
    "pids/pids.current": "3\n",
    "pids/pids.max": "max\n",
    "pids/cgroup.procs": "12\n13\n",
}


def fill(files: Mapping[str, str], top: Path, cgroup: str) -> None:
    for name, text in files.items():
        controller, _, file = name.rpartition("/")
        path = top / controller / cgroup.lstrip("/") / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def v1(tmp_path: Path) -> Usages:
    fill(V1, tmp_path, "/pods/box")
    names = ("cpu", "cpuacct", "memory", "blkio", "pids")
    mounts = {name: tmp_path / name for name in names}
    return Usages(Layout(Mode.V1, mounts, None, {}, dict.fromkeys(mounts.values(), "/")))


@pytest.fixture
def v2(tmp_path: Path) -> Usages:
    fill(V2, tmp_path, "/pods/box")
    return Usages(Layout(Mode.V2, {}, tmp_path, {}, {tmp_path: "/"}))


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_both_versions_say_the_same(version: str, request: pytest.FixtureRequest) -> None:
    usages: Usages = request.getfixturevalue(version)
    cpu = usages.cpu("/pods/box")
    assert (cpu.used_ns, cpu.user_ns, cpu.system_ns) == (5_000_000, 3_000_000, 2_000_000)
    assert (cpu.periods, cpu.throttled_periods, cpu.throttled_ns) == (9, 4, 700_000)
    memory = usages.memory("/pods/box")
    assert (memory.used, memory.limit, memory.peak) == (10 * MB, 64 * MB, 12 * MB)
    assert (memory.working_set, memory.available) == (8 * MB, 56 * MB)
    assert (memory.rss, memory.cache, memory.mapped, memory.kernel) == (6 * MB, 3 * MB, 8192, 4096)
    assert (memory.active_file, memory.inactive_file) == (1, 2 * MB)
    assert (memory.faults, memory.major_faults, memory.limit_hits, memory.oom_kills) == (11, 2, 5, 1)
    assert memory.swap == 4096
    assert memory.swap_limit == (16 * MB if version == "v1" else 0)
    assert usages.disks("/pods/box") == [Disk(8, 0, 10, 20, 1, 2)]
    assert usages.threads("/pods/box") == (3, 0 if version == "v1" else 100)
    assert usages.processes("/pods/box") == [12, 13]


def test_only_v2_has_pressure(v2: Usages, tmp_path: Path) -> None:
    assert v2.cpu("/pods/box").pressure == Pressure(Stall(77_000, 1.5, 0.25, 0.0), Stall(33_000, 0.5, 0.0, 0.0))
    assert v2.memory("/pods/box").pressure is None
    assert v2.io_pressure("/pods/box") is None


def test_no_limit_leaves_nothing_to_count_down(v2: Usages, tmp_path: Path) -> None:
    (tmp_path / "pods/box/memory.max").write_text("max\n")
    memory = v2.memory("/pods/box")
    assert (memory.limit, memory.available) == (0, None)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_cgroup_that_is_gone(version: str, request: pytest.FixtureRequest) -> None:
    usages: Usages = request.getfixturevalue(version)
    for read in (usages.cpu, usages.memory, usages.threads):
        with pytest.raises(FileNotFoundError):
            read("/pods/other")


def test_a_rate_is_what_was_used_since_the_last_look() -> None:
    rates = Rates()
    second = 1_000_000_000
    assert rates.of("a", 5 * second, 100 * second) is None
    assert rates.of("a", 6 * second, 104 * second) == second // 4
    assert rates.of("a", 6 * second + 1, 104 * second + 1) == second // 4  # too soon to tell anything new
    assert rates.of("a", 8 * second, 105 * second) == 2 * second
    assert rates.of("b", 8 * second, 105 * second) is None
    rates.forget("a")
    assert rates.of("a", 9 * second, 106 * second) is None


def test_interfaces_without_the_loopback() -> None:
    text = (
        "Inter-|   Receive                                                |  Transmit\n"
        " face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls\n"
        "    lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0  0 0\n"
        "  eth0:    1000      10    1    2    0     0          0         0     2000      20    3    4    0     0  0 0\n"
    )
    [row] = parse_interfaces(text)
    assert row.name == "eth0"
    assert (row.received_bytes, row.received_packets, row.receive_errors, row.receive_drops) == (1000, 10, 1, 2)
    assert (row.sent_bytes, row.sent_packets, row.send_errors, row.send_drops) == (2000, 20, 3, 4)
