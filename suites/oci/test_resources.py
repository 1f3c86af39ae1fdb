"""Limits, by what the kernel's control files say (config-linux.md, "Control groups" and what follows)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from harness.linux import cgroups
from harness.linux.cgroups import Mode
from harness.model.area import OciArea
from harness.session.oci import SLEEP, OciTrial
from harness.session.oci_box import Box
from harness.session.oci_breach import accepts, drops, pretends, puts, swallows, takes

pytestmark = [pytest.mark.operation(OciArea.RESOURCES), pytest.mark.kernel]

MB = 1 << 20
RESOURCES = "linux.resources"


def limited(oci: OciTrial, kind: str, **values: Any) -> Box:
    """A running container with these limits of one kind."""
    return oci.launch({f"{RESOURCES}.{kind}": values})


def is_v2(oci: OciTrial, controller: str) -> bool:
    return oci.trial.witness.layout.is_v2(controller)


def needs_v1(oci: OciTrial, controller: str) -> None:
    oci.needs_controller(controller)
    oci.needs(not is_v2(oci, controller), f"{controller} is of cgroup v2, which has no such limit")


# Where


@pytest.mark.breach(puts("linux.cgroupsPath", "/seatrial-elsewhere"))
def test_an_absolute_path(oci: OciTrial) -> None:
    """Cgroups Path: "In the case of an absolute path (starting with /), the runtime MUST take the path to be relative to the cgroups
    mount point".
    """
    oci.needs_controller("pids")
    box = oci.box(args=SLEEP)
    box.cgroup = f"{oci.trial.engine.cgroup_parent}/deep/down/{box.id}"
    box.set("linux.cgroupsPath", box.cgroup)
    oci.sail(box)
    layout = oci.trial.witness.layout
    assert cgroups.cgroup_of(layout, "pids", oci.pid(box)) == box.cgroup
    assert cgroups.cgroup_of(layout, "memory", oci.pid(box)) == box.cgroup


def gathered(config: Any) -> Any:
    config["linux"]["cgroupsPath"] = config["linux"]["cgroupsPath"].rpartition("/")[0] + "/gathered"
    return config


@pytest.mark.breach(takes(gathered))
def test_the_same_path_is_the_same_place(oci: OciTrial) -> None:
    """Cgroups Path: "If the value is specified, the runtime MUST consistently attach to the same place in the cgroups hierarchy given
    the same value of cgroupsPath".
    """
    oci.needs_controller("pids")
    box = oci.launch()
    first = cgroups.cgroup_of(oci.trial.witness.layout, "pids", oci.pid(box))
    oci.end(box)
    oci.delete(box)
    oci.sail(box)
    assert cgroups.cgroup_of(oci.trial.witness.layout, "pids", oci.pid(box)) == first == box.cgroup


@pytest.mark.breach(drops("linux.cgroupsPath"))
def test_a_cgroup_of_every_controller(oci: OciTrial) -> None:
    """Control groups: "The path to the cgroup [...] will be used to either control the cgroups hierarchy for containers or to run a new
    process in an existing container": runc's is one in each hierarchy that has controllers.
    """
    box = oci.launch()
    layout = oci.trial.witness.layout
    for controller in ("cpu", "memory", "pids", "freezer", "devices"):
        if controller in layout.controllers and (layout.mode is Mode.V2 or not layout.is_v2(controller)):
            assert cgroups.cgroup_of(layout, controller, oci.pid(box)) == box.cgroup, controller


# CPU


@pytest.mark.breach(drops(f"{RESOURCES}.cpu.shares"))
def test_cpu_shares(oci: OciTrial) -> None:
    """CPU: "shares (uint64, OPTIONAL) - specifies a relative share of CPU time available to the tasks in a cgroup"."""
    oci.needs_controller("cpu")
    few, many = (
        int(oci.control(limited(oci, "cpu", shares=value), "cpu", "cpu.shares", "cpu.weight")) for value in (512, 4096)
    )
    if is_v2(oci, "cpu"):
        assert few < 100 < many
    else:
        assert (few, many) == (512, 4096)


@pytest.mark.breach(drops(f"{RESOURCES}.cpu.quota", f"{RESOURCES}.cpu.period"))
def test_cpu_quota_and_period(oci: OciTrial) -> None:
    """CPU: "quota (int64, OPTIONAL) - specifies the total amount of time in microseconds for which all tasks in a cgroup can run during
    one period (as defined by period below)".
    """
    oci.needs_controller("cpu")
    box = limited(oci, "cpu", quota=30_000, period=60_000)
    found = [oci.control(box, "cpu", name, "cpu.max") for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")]
    assert " ".join(dict.fromkeys(found)) == "30000 60000"


@pytest.mark.breach(puts(f"{RESOURCES}.cpu.quota", 10_000))
def test_cpu_quota_of_minus_one_is_none(oci: OciTrial) -> None:
    """CPU: quota: -1 is no limit, as in the kernel's cpu.cfs_quota_us."""
    oci.needs_controller("cpu")
    found = oci.control(limited(oci, "cpu", quota=-1, period=50_000), "cpu", "cpu.cfs_quota_us", "cpu.max")
    assert found.split()[0] in ("-1", "max")


@pytest.mark.breach(drops(f"{RESOURCES}.cpu.burst"))
def test_cpu_burst(oci: OciTrial) -> None:
    """CPU: "burst (uint64, OPTIONAL) - specifies the maximum amount of accumulated time in microseconds for which all tasks in a cgroup
    can run additionally for burst during one period".
    """
    oci.needs_controller("cpu")
    oci.needs_spec("1.1.0")
    box = limited(oci, "cpu", quota=50_000, period=100_000, burst=10_000)
    assert oci.control(box, "cpu", "cpu.cfs_burst_us", "cpu.max.burst") == "10000"


@pytest.mark.breach(drops(f"{RESOURCES}.cpu.idle"))
def test_cpu_idle(oci: OciTrial) -> None:
    """CPU: "idle (int64, OPTIONAL) - cgroups are configured with minimum weight, 0: default behavior, 1: SCHED_IDLE"."""
    oci.needs_controller("cpu")
    oci.needs_spec("1.1.0")
    assert oci.control(limited(oci, "cpu", idle=1), "cpu", "cpu.idle", "cpu.idle") == "1"


@pytest.mark.breach(drops(f"{RESOURCES}.cpu.cpus"))
def test_cpuset(oci: OciTrial) -> None:
    """CPU: "cpus (string, OPTIONAL) - list of CPUs the container will run in": "mems" likewise."""
    oci.needs_controller("cpuset")
    own = sorted(os.sched_getaffinity(0))
    oci.needs(len(own) > 1, "there is one CPU")
    box = limited(oci, "cpu", cpus=str(own[-1]), mems="0")
    text = oci.proc(box, "status")
    assert text.partition("Cpus_allowed_list:")[2].split()[0] == str(own[-1])
    assert text.partition("Mems_allowed_list:")[2].split()[0] == "0"


# Memory


@pytest.mark.breach(drops(f"{RESOURCES}.memory.limit"))
def test_memory_limit(oci: OciTrial) -> None:
    """Memory: "limit (int64, OPTIONAL) - sets limit of memory usage"."""
    oci.needs_controller("memory")
    found = oci.control(limited(oci, "memory", limit=96 * MB), "memory", "memory.limit_in_bytes", "memory.max")
    assert int(found) == 96 * MB


@pytest.mark.breach(drops(f"{RESOURCES}.memory.limit"))
def test_memory_limit_is_kept_by_the_kernel(oci: OciTrial) -> None:
    """Memory: what a container uses beyond its limit ends it (SIGKILL, 128 + 9 to its shell)."""
    oci.needs_controller("memory")
    script = "tail -c 200m /dev/zero >/dev/null 2>&1; echo ended $?"
    box = oci.box({f"{RESOURCES}.memory": {"limit": 48 * MB, "swap": 48 * MB}}, ("/bin/sh", "-c", script))
    assert oci.run(box).strip() != "ended 0"


@pytest.mark.breach(puts(f"{RESOURCES}.memory.limit", 64 * MB))
def test_memory_limit_of_minus_one_is_none(oci: OciTrial) -> None:
    """Memory: "-1" is "unlimited"."""
    oci.needs_controller("memory")
    found = oci.control(limited(oci, "memory", limit=-1), "memory", "memory.limit_in_bytes", "memory.max")
    assert cgroups.parse_limit(found) is None


@pytest.mark.breach(drops(f"{RESOURCES}.memory.reservation"))
def test_memory_reservation(oci: OciTrial) -> None:
    """Memory: "reservation (int64, OPTIONAL) - sets soft limit of memory usage"."""
    oci.needs_controller("memory")
    found = oci.control(
        limited(oci, "memory", reservation=40 * MB), "memory", "memory.soft_limit_in_bytes", "memory.low"
    )
    assert int(found) == 40 * MB


@pytest.mark.breach(drops(f"{RESOURCES}.memory.swap"))
def test_memory_and_swap(oci: OciTrial) -> None:
    """Memory: "swap (int64, OPTIONAL) - sets limit of memory+Swap usage"; v2's file is of the swap alone."""
    oci.needs_controller("memory")
    box = limited(oci, "memory", limit=64 * MB, swap=96 * MB)
    found = oci.control(box, "memory", "memory.memsw.limit_in_bytes", "memory.swap.max")
    assert int(found) == (32 * MB if is_v2(oci, "memory") else 96 * MB)


@pytest.mark.breach(drops(f"{RESOURCES}.memory.swappiness"))
def test_memory_swappiness(oci: OciTrial) -> None:
    """Memory: "swappiness (uint64, OPTIONAL) - sets swappiness parameter of vmscan"."""
    needs_v1(oci, "memory")
    assert oci.control(limited(oci, "memory", swappiness=17), "memory", "memory.swappiness", "") == "17"


@pytest.mark.breach(drops(f"{RESOURCES}.memory.disableOOMKiller"))
def test_memory_without_a_killer(oci: OciTrial) -> None:
    """Memory: "disableOOMKiller (bool, OPTIONAL) - enables or disables the OOM killer"."""
    needs_v1(oci, "memory")
    found = oci.control(
        limited(oci, "memory", limit=64 * MB, disableOOMKiller=True), "memory", "memory.oom_control", ""
    )
    assert "oom_kill_disable 1" in found


# PIDs, block I/O, huge pages


@pytest.mark.breach(drops(f"{RESOURCES}.pids"))
def test_pids_limit(oci: OciTrial) -> None:
    """PIDs: "limit (int64, REQUIRED) - specifies the maximum number of tasks in the cgroup"."""
    oci.needs_controller("pids")
    assert oci.control(limited(oci, "pids", limit=37), "pids", "pids.max", "pids.max") == "37"


@pytest.mark.breach(puts(f"{RESOURCES}.pids.limit", 37))
def test_pids_limit_of_minus_one_is_none(oci: OciTrial) -> None:
    """PIDs: -1 is "unlimited"."""
    oci.needs_controller("pids")
    assert oci.control(limited(oci, "pids", limit=-1), "pids", "pids.max", "pids.max") == "max"


@pytest.mark.breach(drops(f"{RESOURCES}.pids"))
def test_pids_limit_is_kept_by_the_kernel(oci: OciTrial) -> None:
    """PIDs: beyond "the maximum number of tasks in the cgroup" none can be made."""
    oci.needs_controller("pids")
    script = "i=0; while [ $i -lt 30 ]; do (sleep 9) 2>/dev/null & i=$((i + 1)); done 2>/dev/null; echo all"
    box = oci.box({f"{RESOURCES}.pids.limit": 8}, ("/bin/sh", "-c", script))
    assert "all" not in oci.run(box)


@pytest.mark.breach(drops(f"{RESOURCES}.blockIO.weight"))
def test_block_io_weight(oci: OciTrial) -> None:
    """Block IO: "weight (uint16, OPTIONAL) - specifies per-cgroup weight", of 10 to 1000; io.weight of v2 has 1 to 10000."""
    layout = oci.trial.witness.layout
    oci.needs_controller("blkio" if "blkio" in layout.controllers else "io")
    top = layout.controllers.get("blkio") or layout.unified
    names = ("blkio.bfq.weight", "blkio.weight", "io.bfq.weight", "io.weight")
    pods = Path(f"{top}{oci.trial.engine.cgroup_parent}")
    there = [name for name in names if (pods / name).exists()]
    oci.needs(there, "no scheduler of this machine's disks knows weights")
    box = limited(oci, "blockIO", weight=321)
    found = [(Path(f"{top}{box.cgroup}") / name).read_text() for name in there]
    stretched = str(1 + (321 - 10) * 9999 // 990)
    assert {"321", stretched} & set(" ".join(found).split()), found


@pytest.mark.breach(drops(f"{RESOURCES}.blockIO"))
@pytest.mark.parametrize(
    ("field", "old", "new"),
    [
        ("throttleReadBpsDevice", "blkio.throttle.read_bps_device", "rbps"),
        ("throttleWriteBpsDevice", "blkio.throttle.write_bps_device", "wbps"),
        ("throttleReadIOPSDevice", "blkio.throttle.read_iops_device", "riops"),
        ("throttleWriteIOPSDevice", "blkio.throttle.write_iops_device", "wiops"),
    ],
)
def test_block_io_throttle(oci: OciTrial, field: str, old: str, new: str) -> None:
    """Block IO: throttle: "an array of per-device bandwidth rate limits", and of rates of operations."""
    controller = "blkio" if "blkio" in oci.trial.witness.layout.controllers else "io"
    oci.needs_controller(controller)
    disks = oci.shell(
        "cat /sys/block/vd*/dev /sys/block/sd*/dev /sys/block/nvme*/dev /sys/block/loop0/dev 2>/dev/null; true"
    ).split()
    oci.needs(disks, "there is no disk")
    major, minor = map(int, disks[0].split(":"))
    box = limited(oci, "blockIO", **{field: [{"major": major, "minor": minor, "rate": 6_000_000}]})
    found = oci.control(box, controller, old, "io.max")
    assert f"{major}:{minor}" in found
    assert (f"{new}=6000000" if is_v2(oci, controller) else "6000000") in found


@pytest.mark.breach(drops(f"{RESOURCES}.hugepageLimits"))
def test_huge_pages(oci: OciTrial) -> None:
    """Huge page limits: "hugepageLimits (array of objects, OPTIONAL) represents the hugetlb controller"."""
    oci.needs_controller("hugetlb")
    box = oci.launch({f"{RESOURCES}.hugepageLimits": [{"pageSize": "2MB", "limit": 8 * MB}]})
    assert int(oci.control(box, "hugetlb", "hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.max")) == 8 * MB


@pytest.mark.breach(drops(f"{RESOURCES}.unified"))
def test_unified(oci: OciTrial) -> None:
    """Unified: "Configuration unknown to the runtime MUST still be written to the relevant file"."""
    oci.needs(oci.trial.witness.layout.mode is Mode.V2, "there is no pure cgroup v2")
    box = oci.launch({f"{RESOURCES}.unified": {"memory.high": str(64 * MB), "pids.max": "55"}})
    assert oci.control(box, "memory", "", "memory.high") == str(64 * MB)
    assert oci.control(box, "pids", "", "pids.max") == "55"


@pytest.mark.breach(accepts("create"))
def test_unified_without_v2_is_an_error(oci: OciTrial) -> None:
    """Unified: "The runtime MUST generate an error when the configuration refers to a cgroup controller that is not present"."""
    controller = "memory.high" if oci.trial.witness.layout.mode is not Mode.V2 else "nonesuch.max"
    assert oci.cannot_create(oci.box({f"{RESOURCES}.unified": {controller: "1048576"}}, SLEEP))


# Changes of a running container


@pytest.mark.breach(swallows("update", "--memory"))
def test_update_by_flag(oci: OciTrial) -> None:
    """runc, update: "--memory value: Memory limit (in bytes)", and its like; what is not named stays."""
    oci.needs_verb("update")
    oci.needs_controller("memory")
    box = oci.launch({RESOURCES: {"memory": {"limit": 64 * MB}, "pids": {"limit": 44}}})
    oci.do("update", "--memory", str(96 * MB), box.id)
    assert int(oci.control(box, "memory", "memory.limit_in_bytes", "memory.max")) == 96 * MB
    assert oci.control(box, "pids", "pids.max", "pids.max") == "44"


@pytest.mark.breach(pretends("update"))
@pytest.mark.parametrize("source", ["-", "file"])
def test_update_by_document(oci: OciTrial, source: str) -> None:
    """runc, update: "--resources value, -r value: path to the file containing the resources to update or '-' to read from the standard
    input".
    """
    oci.needs_verb("update")
    oci.needs_controller("pids")
    box = oci.launch({f"{RESOURCES}.pids.limit": 44})
    document = json.dumps({"pids": {"limit": 66}, "cpu": {"shares": 700}})
    path = box.path / "resources.json"
    path.write_text(document)
    oci.do(
        "update",
        "--resources",
        "-" if source == "-" else str(path),
        box.id,
        input=document.encode() if source == "-" else b"",
    )
    assert oci.control(box, "pids", "pids.max", "pids.max") == "66"


@pytest.mark.breach(accepts("update"))
def test_update_of_an_unknown_container_is_an_error(oci: OciTrial) -> None:
    """Errors: an operation on a container that does not exist generates one."""
    oci.needs_verb("update")
    assert oci.refused("update", "--pids-limit", "10", "no-such-container")


@pytest.mark.breach(pretends("events"))
def test_events_tell_what_is_used(oci: OciTrial) -> None:
    """runc, events: "--stats: display the container's stats then exit": one JSON object with its type, id and data."""
    oci.needs_verb("events")
    box = oci.launch({f"{RESOURCES}.pids.limit": 44})
    said = oci.do("events", "--stats", box.id).text
    assert said, "nothing was printed"
    event = json.loads(said)
    assert (event["type"], event["id"]) == ("stats", box.id)
    assert event["data"]["pids"]["current"] >= 1
    assert event["data"]["pids"]["limit"] == 44
    assert event["data"]["memory"]["usage"]["usage"] > 0
    assert event["data"]["cpu"]["usage"]["total"] > 0
