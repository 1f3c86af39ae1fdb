"""Limits of containers as the kernel has them: set, told, changed while they run, kept, and what happens beyond them."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from cri_api.v1 import api_pb2 as api
from minirt_daemon import CGROUP, Daemon, running_with_image

from harness.clock import wait_until
from harness.linux.cgroups import Mode, read_layout
from harness.minirt.container.cgroup import Cgroup
from harness.minirt.container.resources import Resources as ContainerResources
from harness.minirt.errors import CgroupError

MIB = 1 << 20
FOREVER = "while :; do sleep 0.1; done"
V2 = read_layout().mode is Mode.V2
FILES = {
    "shares": "cpu.weight" if V2 else "cpu.shares",
    "quota": "cpu.max" if V2 else "cpu.cfs_quota_us",
    "memory": "memory.max" if V2 else "memory.limit_in_bytes",
    "swap": "memory.swap.max" if V2 else "memory.memsw.limit_in_bytes",
    "cpus": "cpuset.cpus",
}
Resources = api.LinuxContainerResources


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, str]]:
    with running_with_image(tmp_path_factory.mktemp("minirt")) as found:
        yield found


@pytest.fixture
def image(started: tuple[Daemon, str]) -> str:
    return started[1]


@pytest.fixture
def daemon(started: tuple[Daemon, str]) -> Daemon:
    return started[0]


@pytest.fixture
def pod(daemon: Daemon, request: pytest.FixtureRequest) -> Iterator[str]:
    id = daemon.pod(re.sub(r"\W", "-", request.node.name))
    yield id
    daemon.remove_pod(id)
    assert folders("*") == []
    assert not [path for path in Path("/sys/fs/cgroup").glob(f"*{CGROUP}/*") if path.is_dir()]


def folders(id: str) -> list[Path]:
    """The folders of a container's cgroup: in the v2 tree, and in each hierarchy of v1."""
    tops = [Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").iterdir()]
    return [path for top in tops for path in Path(f"{top}{CGROUP}").glob(f"*/{id}") if path.is_dir()]


def read(id: str, what: str) -> str:
    """A limit's file in the container's cgroup; empty where the container is in none that has it."""
    found = [folder / FILES[what] for folder in folders(id) if (folder / FILES[what]).is_file()]
    return found[0].read_text().strip() if found else ""


def update(daemon: Daemon, id: str, **facts: object) -> None:
    resources = Resources(**facts)  # type: ignore[arg-type]
    daemon.runtime.UpdateContainerResources(api.UpdateContainerResourcesRequest(container_id=id, linux=resources))


def told(daemon: Daemon, id: str) -> api.LinuxContainerResources:
    found: api.LinuxContainerResources = daemon.status(id).resources.linux
    return found


def test_limits_are_set_and_told(daemon: Daemon, image: str, pod: str) -> None:
    resources = Resources(
        cpu_shares=512, cpu_quota=50000, cpu_period=100000, memory_limit_in_bytes=64 * MIB, oom_score_adj=900,
        cpuset_cpus="0", hugepage_limits=[api.HugepageLimit(page_size="2MB", limit=0)],
    )  # fmt: skip
    id = daemon.run(pod, image, FOREVER, resources=resources)
    assert read(id, "memory") == str(64 * MIB)
    assert read(id, "quota") == ("50000 100000" if V2 else "50000")
    assert read(id, "cpus") == "0"
    if not V2:
        assert read(id, "shares") == "512"
    assert read(id, "swap") in ("", "0" if V2 else str(64 * MIB))  # no swap unless it is asked for
    assert daemon.exec(id, "cat", "/proc/self/oom_score_adj").stdout == b"900\n"
    found = told(daemon, id)
    assert (found.cpu_shares, found.cpu_quota, found.cpu_period, found.cpuset_cpus) == (512, 50000, 100000, "0")
    assert (found.memory_limit_in_bytes, found.oom_score_adj) == (64 * MIB, 900)


def test_limits_change_while_it_runs_and_are_kept(daemon: Daemon, image: str, pod: str) -> None:
    id = daemon.run(pod, image, FOREVER, resources=Resources(cpu_shares=512, memory_limit_in_bytes=64 * MIB))
    later = daemon.create(pod, image, FOREVER, "later")
    update(daemon, id, memory_limit_in_bytes=128 * MIB, cpu_quota=20000, cpu_period=100000)
    assert read(id, "memory") == str(128 * MIB)
    assert read(id, "quota") == ("20000 100000" if V2 else "20000")
    update(daemon, id, memory_limit_in_bytes=32 * MIB)
    assert read(id, "memory") == str(32 * MIB)
    # On v1 it was not in a cpuset of its own so far.
    update(daemon, id, cpuset_cpus="0")
    assert read(id, "cpus") == "0"
    assert b"Cpus_allowed_list:\t0\n" in daemon.exec(id, "cat", "/proc/1/status").stdout
    assert b"Cpus_allowed_list:\t0\n" in daemon.exec(id, "cat", "/proc/self/status").stdout
    update(daemon, later, memory_limit_in_bytes=16 * MIB)
    daemon.end(signal.SIGKILL)
    daemon.start()
    found = told(daemon, id)
    assert (found.cpu_shares, found.cpu_quota, found.memory_limit_in_bytes, found.cpuset_cpus) == (
        512,
        20000,
        32 * MIB,
        "0",
    )
    assert told(daemon, later).memory_limit_in_bytes == 16 * MIB
    daemon.start_container(later)
    assert read(later, "memory") == str(16 * MIB)
    update(daemon, id, cpu_shares=1024)
    assert told(daemon, id).cpu_shares == 1024
    daemon.stop(id)
    update(daemon, id, cpu_shares=2048)  # changes nothing any more, and is no error


def test_a_change_that_the_kernel_refuses_changes_nothing(daemon: Daemon, image: str, pod: str) -> None:
    id = daemon.run(pod, image, FOREVER, resources=Resources(cpu_quota=50000, cpu_period=100000, cpuset_cpus="0"))
    with pytest.raises(grpc.RpcError) as error:
        update(daemon, id, cpu_quota=20000, cpuset_cpus="4095")
    assert "cpuset.cpus" in error.value.details()  # type: ignore[attr-defined]
    assert read(id, "quota") == ("50000 100000" if V2 else "50000")
    assert (read(id, "cpus"), told(daemon, id).cpu_quota, told(daemon, id).cpuset_cpus) == ("0", 50000, "0")
    for facts in ({"memory_limit_in_bytes": -7}, {"cpuset_cpus": "0\0"}):
        with pytest.raises(grpc.RpcError) as error:
            update(daemon, id, **facts)
        assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]
    with pytest.raises(grpc.RpcError) as error:
        update(daemon, "0" * 64, cpu_shares=5)
    assert error.value.code() == grpc.StatusCode.NOT_FOUND  # type: ignore[attr-defined]


def test_unified_limits(daemon: Daemon, image: str, pod: str) -> None:
    resources = Resources(unified={"memory.high": str(64 * MIB)})
    if V2:
        id = daemon.run(pod, image, FOREVER, resources=resources)
        assert daemon.exec(id, "cat", "/sys/fs/cgroup/memory.high").stdout == f"{64 * MIB}\n".encode()
        assert told(daemon, id).unified == {"memory.high": str(64 * MIB)}
        return
    with pytest.raises(grpc.RpcError) as error:
        daemon.create(pod, image, FOREVER, resources=resources)
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]
    assert "v2" in error.value.details()  # type: ignore[attr-defined]


def test_out_of_memory(daemon: Daemon, image: str, pod: str) -> None:
    limit = Resources(memory_limit_in_bytes=16 * MIB)
    eat = "x=1234567890; while :; do x=$x$x; done"
    first = daemon.run(pod, image, eat, "first", resources=limit)
    # Only a child is killed, and the first process goes on; the second dies with it.
    child = daemon.run(pod, image, f"sh -c '{eat}'; echo survived; exit 0", "child", resources=limit)
    healthy = daemon.run(pod, image, "exit 3", "healthy", resources=limit)
    ends = {id: daemon.wait_exited(id) for id in (first, child, healthy)}
    assert (ends[first].exit_code, ends[first].reason) == (137, "OOMKilled")
    assert (ends[child].exit_code, ends[child].reason) == (0, "OOMKilled")
    assert ("stdout", "F", "survived") in daemon.log_lines("child")
    assert (ends[healthy].exit_code, ends[healthy].reason) == (3, "Error")


def test_exit_codes(daemon: Daemon, image: str, pod: str) -> None:
    expected = {"exit 0": (0, "Completed"), "exit 200": (200, "Error"), "kill -HUP $$; exit 5": (5, "Error")}
    ids = {script: daemon.run(pod, image, script, f"n{number}") for number, script in enumerate(expected)}
    # The first process of a pid namespace cannot be killed from inside: so one in the machine's.
    options = api.NamespaceOption(network=api.NamespaceMode.NODE, pid=api.NamespaceMode.NODE)
    killed = daemon.run(pod, image, "kill -USR1 $$", "killed", namespaces=options)
    assert daemon.wait_exited(killed).exit_code == 128 + signal.SIGUSR1
    for script, (code, reason) in expected.items():
        end = daemon.wait_exited(ids[script])
        assert (end.exit_code, end.reason) == (code, reason)
        assert end.created_at <= end.started_at <= end.finished_at


def test_a_refused_change_is_undone_file_by_file(tmp_path: Path) -> None:
    for name in ("memory.max", "cpu.weight", "cpu.max"):
        (tmp_path / name).write_text(f"old {name}")
    (tmp_path / "cpuset.cpus").mkdir()  # which cannot be written
    cgroup = Cgroup(2, {"": str(tmp_path)})
    with pytest.raises(CgroupError, match=r"cpuset\.cpus"):
        cgroup.update(ContainerResources(memory_limit=5, cpu_shares=1024, cpu_quota=7, cpuset_cpus="0"))
    assert (tmp_path / "memory.max").read_text() == "old memory.max"
    assert (tmp_path / "cpu.max").read_text() == "old cpu.max"
    cgroup.update(ContainerResources(memory_limit=5, cpu_quota=7))
    assert (tmp_path / "memory.max").read_text().startswith("5")


def test_a_limit_that_came_later_outlives_the_supervisor(daemon: Daemon, image: str, pod: str) -> None:
    id = daemon.run(pod, image, FOREVER)
    update(daemon, id, cpuset_cpus="0")
    daemon.kill_supervisor()

    def answers() -> bool:
        try:
            update(daemon, id, cpu_shares=600)
        except grpc.RpcError:
            return False
        return True

    wait_until(answers, 20, "another supervisor")
    assert read(id, "cpus") == "0"
    daemon.remove(id)
    assert folders(id) == []
