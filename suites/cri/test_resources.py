"""Limits, by what the kernel's control files say (cri-api v1, ``LinuxContainerResources``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.errors import NotExpressible, RuntimeRefusal
from harness.linux import cgroups
from harness.linux.cgroups import Mode
from harness.model.area import Area
from harness.session.breach import accepts, answers, drops, pretends, swaps
from harness.session.cri import EXITED, Box, CriTrial

pytestmark = pytest.mark.operation(Area.RESOURCES)

RESOURCES = "CreateContainer.config.linux.resources"
MB = 1 << 20


def limited(**resources: Any) -> dict[str, Any]:
    return {"resources": resources}


def control(cri: CriTrial, box: Box, controller: str, old: str, new: str) -> str:
    """A control file of the container's cgroup: `old` in v1, `new` in v2."""
    layout = cri.trial.witness.layout
    pid = cri.init(box)
    folder = cgroups.path_of(layout, controller, cgroups.cgroup_of(layout, controller, pid))
    return (Path(folder) / (new if is_v2(cri, controller) else old)).read_text().strip()


def is_v2(cri: CriTrial, controller: str) -> bool:
    return cri.trial.witness.layout.is_v2(controller)


def cpu(cri: CriTrial, box: Box) -> tuple[int, int]:
    """Quota and period, in microseconds."""
    if is_v2(cri, "cpu"):
        quota, period = control(cri, box, "cpu", "", "cpu.max").split()
        return int(quota), int(period)
    old = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
    return int(control(cri, box, "cpu", old[0], "")), int(control(cri, box, "cpu", old[1], ""))


def shares(cri: CriTrial, box: Box) -> int:
    """As cpu.shares of v1; a weight of v2 is turned back (runc's conversion, which loses a little)."""
    if is_v2(cri, "cpu"):
        return int(control(cri, box, "cpu", "", "cpu.weight"))
    return int(control(cri, box, "cpu", "cpu.shares", ""))


def memory(cri: CriTrial, box: Box) -> int:
    return int(control(cri, box, "memory", "memory.limit_in_bytes", "memory.max"))


@pytest.mark.breach(drops(f"{RESOURCES}.cpu_quota", f"{RESOURCES}.cpu_period"))
def test_cpu_quota_and_period(cri: CriTrial) -> None:
    """cpu_period and cpu_quota of the CFS."""
    assert cpu(cri, cri.launch(linux=limited(cpu_quota=30_000, cpu_period=60_000))) == (30_000, 60_000)


@pytest.mark.breach(drops(f"{RESOURCES}.cpu_shares"))
def test_cpu_shares(cri: CriTrial) -> None:
    """cpu_shares: "relative weight vs. other containers"."""
    few, many = (shares(cri, cri.launch(linux=limited(cpu_shares=value))) for value in (512, 4096))
    if is_v2(cri, "cpu"):
        assert few < many
    else:
        assert (few, many) == (512, 4096)


@pytest.mark.breach(drops(f"{RESOURCES}.cpuset_cpus"))
def test_cpuset(cri: CriTrial) -> None:
    """cpuset_cpus "constrains the allowed set of logical CPUs"."""
    allowed = Path("/proc/self/status").read_text().partition("Cpus_allowed_list:")[2].split()[0]
    last = allowed.replace("-", ",").split(",")[-1]
    if last == allowed:
        raise NotExpressible("this machine", "has one CPU only")
    box = cri.launch(linux=limited(cpuset_cpus=last))
    assert cri.said(box, "grep Cpus_allowed_list: /proc/1/status").split()[1] == last


@pytest.mark.breach(drops(f"{RESOURCES}.memory_limit_in_bytes"))
def test_memory_limit(cri: CriTrial) -> None:
    """memory_limit_in_bytes: "Memory limit in bytes"."""
    assert memory(cri, cri.launch(linux=limited(memory_limit_in_bytes=64 * MB))) == 64 * MB


@pytest.mark.breach(answers("ContainerStatus.status.reason", "Error"))
def test_out_of_memory(cri: CriTrial) -> None:
    """ContainerStatus.reason: "Must be set to "OOMKilled" for containers terminated by cgroup-based Out-of-Memory killer"."""
    hungry = ("/bin/sh", "-c", "exec tail -c 200000000 /dev/zero")
    limits = limited(memory_limit_in_bytes=24 * MB, memory_swap_limit_in_bytes=24 * MB)
    ran = cri.run(*hungry, linux=limits)
    assert (ran.status.state, ran.status.exit_code) == (EXITED, 137)
    # An engine may learn of the end first, and of what it came from in the next moment.
    cri.wait(lambda: cri.status(ran.box).reason == "OOMKilled", f"the reason of {ran.box.name}'s end to be OOMKilled")


@pytest.mark.breach(drops(f"{RESOURCES}.oom_score_adj"))
def test_oom_score(cri: CriTrial) -> None:
    """oom_score_adj "adjusts the oom-killer score"."""
    box = cri.launch(linux=limited(oom_score_adj=789))
    assert Path(f"/proc/{cri.init(box)}/oom_score_adj").read_text().strip() == "789"


@pytest.mark.breach(drops(f"{RESOURCES}.hugepage_limits"))
def test_huge_pages(cri: CriTrial) -> None:
    """hugepage_limits: the file ``hugetlb.<hugepagesize>.limit_in_bytes``, ``.max`` in v2."""
    layout = cri.trial.witness.layout
    if "hugetlb" not in layout.controllers or (layout.mode is Mode.HYBRID and layout.is_v2("hugetlb")):
        raise NotExpressible("this machine", "has no controller hugetlb where engines look for it")
    box = cri.launch(linux=limited(hugepage_limits=[{"page_size": "2MB", "limit": 4 * MB}]))
    assert int(control(cri, box, "hugetlb", "hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.max")) == 4 * MB


@pytest.mark.breach(drops(f"{RESOURCES}.unified"))
def test_unified(cri: CriTrial) -> None:
    """unified: "Each key/value in the map refers to the cgroup v2"."""
    if not is_v2(cri, "memory"):
        raise NotExpressible("this machine", "has cgroup v1, for which there is no unified")
    box = cri.launch(linux=limited(unified={"memory.high": str(50 * MB), "pids.max": "77"}))
    assert int(control(cri, box, "memory", "", "memory.high")) == 50 * MB
    assert control(cri, box, "pids", "", "pids.max") == "77"


@pytest.mark.breach(accepts("CreateContainer", "StartContainer"))
def test_limit_that_cannot_be_is_refused(cri: CriTrial) -> None:
    """A quota below the kernel's least (1 ms)."""
    with pytest.raises(RuntimeRefusal):
        cri.launch(linux=limited(cpu_quota=10, cpu_period=100_000))


# Updates


def updated(cri: CriTrial, box: Box, **resources: Any) -> None:
    cri.call("UpdateContainerResources", container_id=box.id, linux=resources)


@pytest.mark.breach(pretends("UpdateContainerResources"))
def test_update_of_a_running_container(cri: CriTrial) -> None:
    """UpdateContainerResources "updates ContainerConfig of the container synchronously"; what is not named stays."""
    first = {"memory_limit_in_bytes": 64 * MB, "cpu_quota": 30_000, "cpu_period": 60_000}
    box = cri.launch(linux=limited(**first))
    updated(cri, box, memory_limit_in_bytes=96 * MB)
    assert memory(cri, box) == 96 * MB
    assert cpu(cri, box) == (30_000, 60_000)
    updated(cri, box, cpu_quota=20_000, cpu_period=50_000)
    assert (memory(cri, box), cpu(cri, box)) == (96 * MB, (20_000, 50_000))
    assert cri.said(box, "echo", "afloat") == "afloat"


@pytest.mark.breach(pretends("UpdateContainerResources"))
def test_update_of_shares_and_cpus(cri: CriTrial) -> None:
    box = cri.launch(linux=limited(cpu_shares=512))
    before = shares(cri, box)
    updated(cri, box, cpu_shares=2048, cpuset_cpus="0")
    assert shares(cri, box) > before
    assert cri.said(box, "grep Cpus_allowed_list: /proc/1/status").split()[1] == "0"


@pytest.mark.breach(pretends("UpdateContainerResources"))
def test_update_of_a_created_container(cri: CriTrial) -> None:
    """What is changed before the start counts from it on."""
    box = cri.create(linux=limited(memory_limit_in_bytes=64 * MB))
    updated(cri, box, memory_limit_in_bytes=96 * MB)
    cri.start(box)
    assert memory(cri, box) == 96 * MB


@pytest.mark.breach(accepts("UpdateContainerResources"))
def test_update_of_an_unknown_container_is_refused(cri: CriTrial) -> None:
    """UpdateContainerResources: "If runtime fails to transactionally update the requested resources, an error is returned"."""
    with pytest.raises(RuntimeRefusal):
        cri.call("UpdateContainerResources", container_id="no-such-container", linux={"cpu_shares": 512})


@pytest.mark.breach(
    accepts("UpdateContainerResources"),
    swaps("UpdateContainerResources", lambda request, call: call(_half(request, call))),
)
def test_update_is_whole_or_not_at_all(cri: CriTrial) -> None:
    """UpdateContainerResources is to be transactional: what was good in a bad request does not stay."""
    box = cri.launch(linux=limited(memory_limit_in_bytes=64 * MB, cpu_shares=512))
    before = (memory(cri, box), shares(cri, box))
    with pytest.raises(RuntimeRefusal):
        updated(cri, box, memory_limit_in_bytes=96 * MB, cpu_shares=2048, cpuset_cpus="4096")
    assert (memory(cri, box), shares(cri, box)) == before


def _half(request: dict[str, Any], call: Any) -> dict[str, Any]:
    good = {key: value for key, value in request["linux"].items() if key != "cpuset_cpus"}
    call({**request, "linux": good})
    return request


@pytest.mark.breach(answers("ContainerStatus.status.resources"))
def test_status_has_the_resources(cri: CriTrial) -> None:
    """ContainerStatus.resources: "Resource limits configuration of the container", also after an update."""
    cri.since("1.26")
    box = cri.launch(linux=limited(memory_limit_in_bytes=64 * MB, cpu_shares=512))
    assert cri.status(box).resources.linux.memory_limit_in_bytes == 64 * MB
    assert cri.status(box).resources.linux.cpu_shares == 512
    updated(cri, box, memory_limit_in_bytes=96 * MB)
    found = cri.status(box).resources.linux
    assert (found.memory_limit_in_bytes, found.cpu_shares) == (96 * MB, 512)
