"""The process of a container: scheduler, I/O priority, CPUs, memory policy, capabilities, and a config that has none."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from minirt_bundle import CGROUP, Bundle, open_bundle

from harness.linux import syscalls
from harness.minirt.container import cgroup as cgroups
from harness.minirt.container.process import Process
from harness.minirt.container.reader import Reader
from harness.minirt.container.scheduling import (
    Affinity,
    MemoryPolicy,
    Scheduler,
    parse_affinity,
    parse_io_priority,
    parse_memory_policy,
    parse_numbers,
    parse_scheduler,
)
from harness.minirt.errors import SpecError

FACTS = "cat /proc/self/stat; echo"
_POLICY, _PRIORITY, _NICE = 38, 37, 16
"""fields of /proc/PID/stat after the name, from 0 (proc_pid_stat(5): 41, 40 and 19)"""


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[Bundle]:
    with open_bundle(tmp_path) as bundle:
        yield bundle


def allow_real_time(bundle: Bundle) -> None:
    """Where the kernel groups real-time tasks (v1), a cgroup has none of their time unless it is given some."""
    layout = cgroups.read_layout()
    parent = Path(f"{layout.v1['cpu'].folder}{CGROUP}") if "cpu" in layout.v1 else None
    if parent is not None and (parent.parent / "cpu.rt_runtime_us").exists():
        parent.mkdir(exist_ok=True)
        (parent / "cpu.rt_runtime_us").write_text("20000")
        bundle.config["linux"]["resources"]["cpu"] = {"realtimeRuntime": 10000}


def stat_fields(text: str) -> tuple[int, int, int]:
    """Policy, static priority and nice value."""
    fields = text.rpartition(")")[2].split()
    return int(fields[_POLICY]), int(fields[_PRIORITY]), int(fields[_NICE])


@pytest.mark.parametrize(
    ("scheduler", "policy", "priority", "nice"),
    [
        ({"policy": "SCHED_OTHER", "nice": 7}, 0, 0, 7),
        ({"policy": "SCHED_BATCH", "nice": 3}, 3, 0, 3),
        ({"policy": "SCHED_IDLE"}, 5, 0, 0),
        ({"policy": "SCHED_FIFO", "priority": 4}, 1, 4, None),
        ({"policy": "SCHED_RR", "priority": 9}, 2, 9, None),
        ({"policy": "SCHED_FIFO", "priority": 4, "flags": ["SCHED_FLAG_RESET_ON_FORK"]}, 1, 4, None),
        (
            {
                "policy": "SCHED_DEADLINE",
                "runtime": 1_000_000,
                "deadline": 90_000_000,
                "period": 100_000_000,
                "flags": ["SCHED_FLAG_RESET_ON_FORK"],
            },
            6,
            0,
            None,
        ),
    ],
)
@pytest.mark.parametrize("own_user_namespace", [False, True])
def test_scheduler(
    bundle: Bundle, scheduler: dict[str, Any], policy: int, priority: int, nice: int | None, own_user_namespace: bool
) -> None:
    """Also what only the machine's root may set, for a process whose root is another one."""
    bundle.config["process"]["scheduler"] = scheduler
    bundle.config["process"]["args"] = ["/bin/cat", "/proc/self/stat"]
    if priority:
        allow_real_time(bundle)
    if own_user_namespace:
        bundle.config["linux"]["namespaces"].append({"type": "user"})
        maps = [{"containerID": 0, "hostID": 0, "size": 10}]
        bundle.config["linux"] |= {"uidMappings": maps, "gidMappings": maps}
    fields = stat_fields(bundle.ok("run", "box"))
    assert fields[:2] == (policy, priority)
    assert nice is None or fields[2] == nice


def test_scheduler_and_io_priority_of_an_exec(bundle: Bundle) -> None:
    allow_real_time(bundle)
    bundle.sh("sleep 1000").create()
    bundle.ok("start", "box")
    process = {
        "args": ["/bin/cat", "/proc/self/stat"],
        "cwd": "/",
        "scheduler": {"policy": "SCHED_RR", "priority": 2},
        "ioPriority": {"class": "IOPRIO_CLASS_IDLE", "priority": 0},
    }
    (bundle.folder / "process.json").write_text(json.dumps(process))
    assert stat_fields(bundle.ok("exec", "--process", "process.json", "box"))[:2] == (2, 2)
    assert stat_fields(bundle.ok("exec", "box", "cat", "/proc/self/stat"))[0] == 0


def test_io_priority(bundle: Bundle) -> None:
    bundle.config["process"]["ioPriority"] = {"class": "IOPRIO_CLASS_BE", "priority": 6}
    (bundle.rootfs / "bin/ionice").hardlink_to(bundle.rootfs / "bin/busybox")
    bundle.config["process"]["args"] = ["/bin/ionice"]
    assert bundle.ok("run", "box") == "best-effort: prio 6\n"


def test_cpus_of_an_exec(bundle: Bundle) -> None:
    """Which the container's first process does not have: "not applicable to the container's init process"."""
    last = max(os.sched_getaffinity(0))
    bundle.config["process"]["execCPUAffinity"] = {"initial": "0", "final": f"{last}"}
    bundle.sh("grep Cpus_allowed_list /proc/self/status; exec sleep 1000").create()
    bundle.ok("start", "box")
    bundle.await_output("list")
    own = re.search(r"Cpus_allowed_list:\t(\S+)", Path("/proc/self/status").read_text())
    assert own is not None
    assert bundle.output().split()[1] == own[1]
    shown = bundle.ok("exec", "box", "grep", "Cpus_allowed_list", "/proc/self/status")
    assert shown.split()[1] == f"{last}"
    bundle.config["process"]["execCPUAffinity"] = {"initial": "4000"}
    refused = bundle.minirt("exec", "box", "true")
    assert refused.returncode != 0
    assert "set the initial CPU affinity" in refused.stderr


@pytest.mark.skipif(os.cpu_count() == 1, reason="there is one CPU, which is all of them")
def test_the_callers_cpus_are_not_the_containers(bundle: Bundle) -> None:
    own = os.sched_getaffinity(0)
    one = {min(own)}
    bundle.sh("grep Cpus_allowed: /proc/self/status; exec sleep 1000")
    try:
        os.sched_setaffinity(0, one)
        bundle.create()
        bundle.ok("start", "box")
        bundle.await_output("Cpus")
        shown = bundle.ok("exec", "box", "grep", "Cpus_allowed:", "/proc/self/status")
    finally:
        os.sched_setaffinity(0, own)
    for text in (bundle.output(), shown):
        assert int(text.split()[1].replace(",", ""), 16).bit_count() > 1


def test_memory_policy(bundle: Bundle) -> None:
    bundle.config["linux"]["memoryPolicy"] = {"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]}
    bundle.sh("cat /proc/self/numa_maps; exec sleep 1000").create()
    bundle.ok("start", "box")
    bundle.await_output("bind=static:0")
    assert "bind=static:0" in bundle.ok("exec", "box", "cat", "/proc/self/numa_maps")


def test_personality_of_an_exec(bundle: Bundle) -> None:
    bundle.config["linux"]["personality"] = {"domain": "LINUX32"}
    bundle.sh("cat /proc/self/personality; exec sleep 1000").create()
    bundle.ok("start", "box")
    bundle.await_output("00000008")
    assert bundle.ok("exec", "box", "cat", "/proc/self/personality") == "00000008\n"


def test_capabilities_that_cannot_be_granted_are_warned_of(bundle: Bundle) -> None:
    """They "MUST be logged as a warning", and "runtimes SHOULD NOT fail": one that nobody knows, and one that the runtime has not."""
    sets = ("bounding", "effective", "permitted", "inheritable")
    names = ["CAP_KILL", "CAP_NOBODY_KNOWS", "CAP_SYS_RESOURCE"]
    bundle.config["process"]["capabilities"] = dict.fromkeys(sets, names)
    bundle.sh("grep CapPrm /proc/self/status")
    done = bundle.minirt("--log", "log", "run", "box")
    assert done.returncode == 0, done.stderr
    own = syscalls.capget()[1]
    assert int(done.stdout.split()[1], 16) == (1 << 5 | 1 << 24) & own
    warnings = (bundle.folder / "log").read_text()
    assert "level=warning" in warnings
    assert "CAP_NOBODY_KNOWS is not known" in warnings
    assert ("CAP_SYS_RESOURCE cannot be granted" in warnings) == (not own >> 24 & 1)


def test_an_ambient_capability_that_is_not_inheritable_is_warned_of(bundle: Bundle) -> None:
    capabilities = bundle.config["process"]["capabilities"]
    capabilities["inheritable"], capabilities["ambient"] = ["CAP_KILL"], ["CAP_KILL", "CAP_AUDIT_WRITE"]
    done = bundle.sh("grep CapAmb /proc/self/status").minirt("run", "box")
    assert (done.returncode, done.stdout.split()) == (0, ["CapAmb:", f"{1 << 5:016x}"])
    assert "can't raise ambient capability CAP_AUDIT_WRITE: " in done.stderr
    assert "CAP_KILL" not in done.stderr


def test_a_container_without_a_process_can_be_created_and_not_started(bundle: Bundle) -> None:
    """It is start that "MUST generate an error if process was not set", and not create."""
    del bundle.config["process"]
    bundle.create()
    assert bundle.state()["status"] == "created"
    done = bundle.minirt("start", "box")
    assert done.returncode == 1
    assert "config.json has no process" in done.stderr
    bundle.await_status("stopped")
    bundle.ok("delete", "box")
    assert bundle.leftovers() == []


@pytest.mark.parametrize(
    ("part", "key", "module"),
    [
        ("process", "apparmorProfile", "/sys/kernel/security/apparmor"),
        ("process", "selinuxLabel", "/sys/fs/selinux/enforce"),
        ("linux", "mountLabel", "/sys/fs/selinux/enforce"),
    ],
)
def test_a_label_that_nobody_enforces_is_refused(bundle: Bundle, part: str, key: str, module: str) -> None:
    """What the runtime cannot apply "MUST generate an error and a new container MUST NOT be created" (runtime.md "Create")."""
    if Path(module).exists():
        pytest.skip(f"this kernel has {module}")
    bundle.config[part][key] = "some_label"
    done = bundle.sh("true").minirt("create", "box")
    assert done.returncode == 1
    assert f"{part}.{key} 'some_label': this kernel has no" in done.stderr
    assert bundle.leftovers() == []


def test_clocks_of_a_time_namespace(bundle: Bundle) -> None:
    bundle.config["linux"]["namespaces"].append({"type": "time"})
    bundle.config["linux"]["timeOffsets"] = {"boottime": {"secs": 1 << 30, "nanosecs": 5}, "monotonic": {"secs": -1}}
    shown = bundle.run("cat /proc/uptime /proc/self/timens_offsets").split()
    assert float(shown[0]) > 1 << 30
    assert shown[2:] == ["monotonic", "-1", "0", "boottime", f"{1 << 30}", "5"]
    bundle.config["linux"]["timeOffsets"] = {"monotonic": {"secs": -(1 << 31)}}
    done = bundle.minirt("create", "box")
    assert done.returncode == 1
    assert "set time offsets" in done.stderr
    assert bundle.leftovers() == []


def test_the_last_of_several_values_counts_and_an_empty_home_is_none(bundle: Bundle) -> None:
    bundle.config["process"]["env"] = ["A=1", "HOME=", "A=2=3", "PATH=/bin"]
    assert bundle.run('echo "$A $HOME"') == "2=3 /root\n"


def _read(parse: Any, content: dict[str, Any]) -> Any:
    return parse(Reader(content, "here"))


def test_what_is_read() -> None:
    assert _read(parse_scheduler, {"policy": "SCHED_OTHER"}) == Scheduler(0)
    flags = ["SCHED_FLAG_RECLAIM", "SCHED_FLAG_DL_OVERRUN"]
    asked = {"policy": "SCHED_DEADLINE", "runtime": 1024, "deadline": 2048, "flags": flags}
    assert _read(parse_scheduler, asked) == Scheduler(6, flags=6, runtime_ns=1024, deadline_ns=2048)
    assert _read(parse_io_priority, {"class": "IOPRIO_CLASS_RT", "priority": 7}) == 1 << 13 | 7
    assert _read(parse_affinity, {"initial": " 0-2 ,, 7", "final": ""}) == Affinity((0, 1, 2, 7), ())
    assert _read(parse_memory_policy, {"mode": "MPOL_LOCAL"}) == MemoryPolicy(4)
    flags = ["MPOL_F_RELATIVE_NODES", "MPOL_F_NUMA_BALANCING"]
    asked = {"mode": "MPOL_PREFERRED_MANY", "nodes": "1-2", "flags": flags}
    assert _read(parse_memory_policy, asked) == MemoryPolicy(5 | 3 << 13, (1, 2))


@pytest.mark.parametrize(
    ("parse", "content", "where"),
    [
        (parse_scheduler, {}, "here.policy"),
        (parse_scheduler, {"policy": "SCHED_FAIR"}, "here.policy"),
        (parse_scheduler, {"policy": "SCHED_OTHER", "nice": 20}, "here.nice"),
        (parse_scheduler, {"policy": "SCHED_OTHER", "nice": -21}, "here.nice"),
        (parse_scheduler, {"policy": "SCHED_OTHER", "priority": 1}, "here.priority"),
        (parse_scheduler, {"policy": "SCHED_FIFO"}, "here.priority"),
        (parse_scheduler, {"policy": "SCHED_FIFO", "priority": 100}, "here.priority"),
        (parse_scheduler, {"policy": "SCHED_RR", "priority": 1, "runtime": 5}, "here.runtime"),
        (parse_scheduler, {"policy": "SCHED_BATCH", "deadline": 5}, "here.deadline"),
        (parse_scheduler, {"policy": "SCHED_IDLE", "period": 5}, "here.period"),
        (parse_scheduler, {"policy": "SCHED_DEADLINE", "runtime": 1023, "deadline": 5000}, "here.runtime"),
        (parse_scheduler, {"policy": "SCHED_DEADLINE", "runtime": 5000, "deadline": 4000}, "here.deadline"),
        (
            parse_scheduler,
            {"policy": "SCHED_DEADLINE", "runtime": 5000, "deadline": 9000, "period": 8000},
            "here.deadline",
        ),
        (parse_scheduler, {"policy": "SCHED_DEADLINE", "runtime": 1 << 63, "deadline": 1 << 63}, "here.runtime"),
        (parse_scheduler, {"policy": "SCHED_OTHER", "flags": ["SCHED_FLAG_X"]}, "here.flags[0]"),
        (parse_io_priority, {"priority": 1}, "here.class"),
        (parse_io_priority, {"class": "IOPRIO_CLASS_RT", "priority": 8}, "here.priority"),
        (parse_affinity, {"initial": "3-1"}, "here.initial"),
        (parse_affinity, {"final": "a"}, "here.final"),
        (parse_affinity, {"final": "-3"}, "here.final"),
        (parse_affinity, {"final": "1-"}, "here.final"),
        (parse_affinity, {"final": ", ,"}, "here.final"),
        (parse_affinity, {"final": "65537"}, "here.final"),
        (parse_affinity, {"final": "9" * 4000}, "here.final"),
        (parse_affinity, {"final": "²"}, "here.final"),
        (parse_memory_policy, {"mode": "MPOL_NONE"}, "here.mode"),
        (parse_memory_policy, {"mode": "MPOL_BIND"}, "here.nodes"),
        (parse_memory_policy, {"mode": "MPOL_DEFAULT", "nodes": "0"}, "here.nodes"),
        (parse_memory_policy, {"mode": "MPOL_LOCAL", "flags": ["x"]}, "here.flags[0]"),
        (
            parse_memory_policy,
            {"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES", "MPOL_F_RELATIVE_NODES"]},
            "here.flags",
        ),
    ],
)
def test_what_is_refused(parse: Any, content: dict[str, Any], where: str) -> None:
    with pytest.raises(SpecError) as caught:
        _read(parse, content)
    assert caught.value.path == where


def test_numbers_are_sorted_and_each_is_there_once() -> None:
    assert parse_numbers(Reader({"x": "5,1-3,2"}), "x") == (1, 2, 3, 5)
    assert Process(("a",), "/").scheduler is None
