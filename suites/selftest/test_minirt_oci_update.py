"""update: every option becomes what runc makes of it, all or nothing, and is remembered."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from minirt_bundle import CGROUP, Bundle, open_bundle

from harness.linux.cgroups import Mode, read_layout
from harness.minirt.container.cgroup import Cgroup
from harness.minirt.container.reader import Reader
from harness.minirt.container.resources import Resources, parse_resources
from harness.minirt.container.updating import complete, merge, update
from harness.minirt.errors import CgroupError, SpecError, UsageError
from harness.minirt.oci.arguments import parse_options
from harness.minirt.oci.updating import parse_flags, parse_size
from harness.minirt.oci.verbs import find_verb

MIB = 1 << 20
V1 = read_layout().mode is not Mode.V2
only_v1 = pytest.mark.skipif(not V1, reason="reads files of cgroup v1, which this machine does not have")


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[Bundle]:
    with open_bundle(tmp_path) as bundle:
        bundle.config["linux"]["resources"] |= {
            "memory": {"limit": 32 * MIB, "swap": 48 * MIB, "reservation": 24 * MIB},
            "cpu": {"shares": 100, "quota": 500000, "period": 1000000},
            "pids": {"limit": 20},
        }
        yield bundle.sh("sleep 1000")


def running(bundle: Bundle) -> Bundle:
    bundle.create()
    bundle.ok("start", "box")
    return bundle


def limit(controller: str, name: str) -> str:
    return Path(f"{read_layout().controllers[controller]}{CGROUP}/box/{name}").read_text().strip()


CASES = [
    (("--memory", "64M", "--memory-swap", "96M"), "memory.limit_in_bytes", str(64 * MIB)),
    (("--memory", "16M", "--memory-swap", "20M"), "memory.memsw.limit_in_bytes", str(20 * MIB)),
    (("--memory-swap", "40m"), "memory.memsw.limit_in_bytes", str(40 * MIB)),
    (("--memory", "-1"), "memory.limit_in_bytes", None),
    (("--memory", "-1"), "memory.memsw.limit_in_bytes", None),
    (("--memory-reservation", "10485760"), "memory.soft_limit_in_bytes", str(10 * MIB)),
    (("--cpu-share", "200"), "cpu.shares", "200"),
    (("--cpu-period", "900000"), "cpu.cfs_quota_us", "500000"),
    (("--cpu-period", "900000"), "cpu.cfs_period_us", "900000"),
    (("--cpu-quota", "-1"), "cpu.cfs_quota_us", "-1"),
    (("--cpu-quota", "-1", "--cpu-period", "100000"), "cpu.cfs_period_us", "100000"),
    (("--cpuset-cpus", "0"), "cpuset.cpus", "0"),
    (("--cpuset-mems", "0"), "cpuset.mems", "0"),
    (("--pids-limit", "10"), "pids.max", "10"),
    (("--pids-limit", "-1"), "pids.max", "max"),
]


@only_v1
@pytest.mark.parametrize("program", ["minirt", "runc"])
@pytest.mark.parametrize(("words", "name", "expected"), CASES, ids=[f"{' '.join(w)} {n}" for w, n, _ in CASES])
def test_options_as_runc_has_them(
    bundle: Bundle, program: str, words: tuple[str, ...], name: str, expected: str | None
) -> None:
    if program != "minirt":
        _be(bundle, program)
    running(bundle).ok("update", "box", *words)
    found = limit(name.split(".")[0], name)
    # No limit is the most that the counter can hold.
    assert found == expected if expected is not None else int(found) > 1 << 60


def _be(bundle: Bundle, program: str) -> None:
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is not installed")
    bundle.program = [found]
    # What older ones do not know.
    bundle.config["ociVersion"] = "1.0.2"


@only_v1
@pytest.mark.parametrize("state", ["created", "running", "paused"])
def test_works_in_every_state_that_has_a_process(bundle: Bundle, state: str) -> None:
    bundle.create()
    if state != "created":
        bundle.ok("start", "box")
    if state == "paused":
        bundle.ok("pause", "box")
    bundle.ok("update", "--pids-limit", "7", "box")
    assert limit("pids", "pids.max") == "7"
    assert bundle.state()["status"] == state


def test_stopped_and_missing_are_refused(bundle: Bundle) -> None:
    running(bundle).ok("kill", "box", "KILL")
    bundle.await_status("stopped")
    done = bundle.minirt("update", "box", "--pids-limit", "7")
    assert (done.returncode, done.stderr) == (1, "minirt: container not running\n")
    assert 'container "gone" does not exist' in bundle.minirt("update", "gone", "--pids-limit", "7").stderr


@only_v1
@pytest.mark.parametrize("stdin", [True, False])
def test_resources_of_a_file_and_of_standard_input(bundle: Bundle, stdin: bool) -> None:
    running(bundle)
    content = {
        "memory": {"limit": 64 * MIB, "swap": 70 * MIB},
        "cpu": {"cpus": "0"},
        "pids": {"limit": 9},
        "blockIO": None,
    }
    path = bundle.folder / "resources.json"
    path.write_text(json.dumps(content))
    with path.open() as file:
        named: dict[str, Any] = {"stdin": file} if stdin else {}
        # Options beside a file are ignored.
        bundle.ok("update", "-r", "-" if stdin else str(path), "box", "--cpu-share", "999", **named)
    assert limit("memory", "memory.memsw.limit_in_bytes") == str(70 * MIB)
    assert (limit("cpuset", "cpuset.cpus"), limit("pids", "pids.max"), limit("cpu", "cpu.shares")) == ("0", "9", "100")


@only_v1
def test_all_or_nothing(bundle: Bundle) -> None:
    """The last of the limits is refused by the kernel: the others are as they were, also in what is remembered."""
    running(bundle)
    before = json.loads((bundle.states / "box/state.json").read_text())["resources"]
    done = bundle.minirt(
        "update", "box", "--memory", "16M", "--memory-swap", "17M", "--cpu-share", "777", "--cpuset-cpus", "4000"
    )
    assert done.returncode == 1
    assert "cpuset.cpus" in done.stderr
    assert limit("memory", "memory.limit_in_bytes") == str(32 * MIB)
    assert limit("memory", "memory.memsw.limit_in_bytes") == str(48 * MIB)
    assert limit("cpu", "cpu.shares") == "100"
    assert json.loads((bundle.states / "box/state.json").read_text())["resources"] == before


@only_v1
def test_memory_below_what_is_used_is_refused_with_the_figures(bundle: Bundle) -> None:
    bundle.config["linux"]["resources"]["memory"] = {"limit": 64 * MIB}
    # A shell that keeps ten million characters.
    script = "x=0123456789; while [ ${#x} -lt 10000000 ]; do x=$x$x; done; echo up; while :; do sleep 1; done"
    bundle.sh(script)
    running(bundle).await_output("up")
    done = bundle.minirt("update", "box", "--memory", "2M")
    assert done.returncode == 1
    assert "unable to set memory limit to 2097152 (current usage: " in done.stderr
    assert limit("memory", "memory.limit_in_bytes") == str(64 * MIB)


@only_v1
def test_what_was_updated_is_remembered(bundle: Bundle) -> None:
    running(bundle).ok("update", "box", "--memory", "64M", "--memory-swap", "80M")
    bundle.ok("update", "box", "--cpu-share", "300")
    kept = json.loads((bundle.states / "box/state.json").read_text())["resources"]
    assert kept["memory"] == {"limit": 64 * MIB, "swap": 80 * MIB, "reservation": 24 * MIB}
    assert kept["cpu"] == {"shares": 300, "quota": 500000, "period": 1000000}
    assert kept["pids"] == {"limit": 20}


@only_v1
def test_controllers_that_were_not_used_are_joined_and_go_with_the_container(bundle: Bundle) -> None:
    running(bundle).ok("update", "box", "--cpuset-cpus", "0")
    pid = bundle.state()["pid"]
    assert f":cpuset:{CGROUP}/box" in Path(f"/proc/{pid}/cgroup").read_text()
    bundle.ok("delete", "--force", "box")
    assert bundle.leftovers() == []


@only_v1
def test_devices_change_while_they_are_in_use(bundle: Bundle) -> None:
    """The device is allowed, then not; the container's null device is never away."""
    loop = "while :; do echo x >/dev/null || echo broken; done"
    running(bundle.sh(loop))
    allowed = {"devices": [{"allow": True, "type": "b", "major": 7, "minor": 0, "access": "rw"}]}
    listed = limit("devices", "devices.list").splitlines()
    for _ in range(5):
        bundle.ok("update", "-r", "-", "box", stdin=None, input=json.dumps(allowed))
        assert "b 7:0 rw" in limit("devices", "devices.list").splitlines()
        bundle.ok(
            "update", "-r", "-", "box", stdin=None, input=json.dumps({"devices": [{"allow": False, "access": "rwm"}]})
        )
        assert sorted(limit("devices", "devices.list").splitlines()) == sorted(listed)
    assert bundle.output() == ""


def test_devices_stay_where_nothing_is_said_of_them(bundle: Bundle) -> None:
    running(bundle)
    before = limit("devices", "devices.list") if V1 else ""
    bundle.ok("update", "box", "--pids-limit", "9")
    assert (limit("devices", "devices.list") if V1 else "") == before


def test_kernel_memory_is_ignored_with_a_warning(bundle: Bundle) -> None:
    running(bundle)
    done = bundle.minirt("update", "box", "--kernel-memory", "10M")
    assert (done.returncode, done.stderr) == (
        0,
        "minirt: warning: Kernel memory settings are ignored and will be removed\n",
    )


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--memory", "1q"), "invalid value for memory: invalid size: '1q'"),
        (("--cpu-share", "-5"), "invalid value for cpu-share"),
        (("--cpu-quota", "much"), "invalid value for cpu-quota"),
        (("--pids-limit", "x"), "invalid value for pids-limit"),
        (("--blkio-weight", "5000"), "linux.resources.blockIO.weight"),
        (("--resources", "/nowhere"), "/nowhere: no such file or directory"),
        (("--l3-cache-schema", "L3:0=f"), "Intel RDT/CAT: l3 cache schema is not enabled"),
        (("--mem-bw-schema", "MB:0=20"), "Intel RDT/MBA: memory bandwidth schema is not enabled"),
    ],
)
def test_invalid_values_are_told(bundle: Bundle, words: tuple[str, ...], reason: str) -> None:
    running(bundle)
    done = bundle.minirt("update", "box", *words)
    assert done.returncode == 1
    assert reason in done.stderr


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("67108864", 64 * MIB),
        ("64m", 64 * MIB),
        ("64MiB", 64 * MIB),
        ("64 MB", 64 * MIB),
        ("0.5g", 512 * MIB),
        ("10b", 10),
        ("1p", 1 << 50),
        ("-1", -1),
        ("", None),
        ("m", None),
        ("-5", None),
        ("1.2.3k", None),
        ("1kk", None),
        ("1i", None),
        ("0x10", None),
    ],
)
def test_sizes(text: str, size: int | None) -> None:
    assert parse_size(text) == size


def test_every_option_has_its_field() -> None:
    """What runc reads of its options; 0 as a weight is none."""
    numbers = {
        "cpu-period": ("cpu", "period"),
        "cpu-quota": ("cpu", "quota"),
        "cpu-burst": ("cpu", "burst"),
        "cpu-share": ("cpu", "shares"),
        "cpu-rt-period": ("cpu", "realtimePeriod"),
        "cpu-rt-runtime": ("cpu", "realtimeRuntime"),
        "cpu-idle": ("cpu", "idle"),
        "blkio-weight": ("blockIO", "weight"),
        "pids-limit": ("pids", "limit"),
        "memory": ("memory", "limit"),
        "memory-swap": ("memory", "swap"),
        "memory-reservation": ("memory", "reservation"),
        "kernel-memory": ("memory", "kernel"),
        "kernel-memory-tcp": ("memory", "kernelTCP"),
    }
    options = find_verb("update").options
    for number, (name, (part, key)) in enumerate(numbers.items(), 11):
        assert parse_flags(parse_options([f"--{name}", str(number)], options)) == {part: {key: number}}
    for name, key in (("cpuset-cpus", "cpus"), ("cpuset-mems", "mems")):
        assert parse_flags(parse_options([f"--{name}=0-1"], options)) == {"cpu": {key: "0-1"}}
    assert parse_flags(parse_options(["--blkio-weight", "0"], options)) == {}
    with pytest.raises(UsageError):
        parse_flags(parse_options(["--cpu-burst", "-1"], options))


def test_merging_keeps_what_is_not_said() -> None:
    old = {
        "memory": {"limit": 5, "swap": 7},
        "blockIO": {"weight": 10, "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1}]},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 1}],
        "unified": {"memory.high": "5"},
        "devices": [{"allow": False}],
    }
    new = {
        "memory": {"limit": 6, "swap": None},
        "blockIO": {
            "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 2}, {"major": 8, "minor": 16, "rate": 3}],
        },
        "hugepageLimits": [{"pageSize": "1GB", "limit": 2}],
        "unified": {"pids.max": "3"},
        "cpu": None,
    }
    assert merge(old, new) == {
        "memory": {"limit": 6, "swap": 7},
        "blockIO": {
            "weight": 10,
            "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 2}, {"major": 8, "minor": 16, "rate": 3}],
        },
        "hugepageLimits": [{"pageSize": "2MB", "limit": 1}, {"pageSize": "1GB", "limit": 2}],
        "unified": {"memory.high": "5", "pids.max": "3"},
        "devices": [{"allow": False}],
    }


FRESH = {
    "memory.max": "33554432",
    "memory.swap.max": "16777216",
    "memory.low": "0",
    "memory.current": "5000000",
    "cpu.max": "500000 1000000",
    "cpu.max.burst": "0",
    "cpu.weight": "4",
    "cpu.idle": "0",
    "pids.max": "20",
    "cpuset.cpus": "",
    "io.weight": "default 100",
    "io.max": "8:0 rbps=100 wbps=max riops=max wiops=max",
}
CONFIG = {
    "memory": {"limit": 32 * MIB, "swap": 48 * MIB},
    "cpu": {"quota": 500000, "period": 1000000, "shares": 100},
    "pids": {"limit": 20},
}


@pytest.fixture
def v2(tmp_path: Path) -> Path:
    """A folder with the files of a v2 cgroup."""
    for name, text in FRESH.items():
        (tmp_path / name).write_text(f"{text}\n")
    return tmp_path


def change(folder: Path, asked: dict[str, Any]) -> dict[str, str]:
    """What an update writes there: the files that it changes."""
    merged = merge(CONFIG, asked)
    resources = parse_resources(Reader(complete(asked, merged, together=True), "linux.resources"))
    for name in FRESH:
        # The kernel replaces the whole; a file keeps what is longer.
        (folder / name).write_text("")
    try:
        update(Cgroup(2, {"": str(folder)}), resources)
    finally:
        found = {name: (folder / name).read_text() for name in FRESH}
    return {name: text for name, text in found.items() if text}


@pytest.mark.parametrize(
    ("asked", "written"),
    [
        ({"cpu": {"period": 900000}}, {"cpu.max": "500000 900000"}),
        ({"cpu": {"quota": -1}}, {"cpu.max": "max 1000000"}),
        ({"cpu": {"shares": 262144}}, {"cpu.weight": "10000"}),
        ({"cpu": {"idle": 1}}, {"cpu.idle": "1"}),
        ({"cpu": {"burst": 9}}, {"cpu.max.burst": "9"}),
        ({"memory": {"limit": 40 * MIB}}, {"memory.max": str(40 * MIB), "memory.swap.max": str(8 * MIB)}),
        ({"memory": {"swap": 40 * MIB}}, {"memory.max": str(32 * MIB), "memory.swap.max": str(8 * MIB)}),
        ({"memory": {"limit": -1, "swap": 0}}, {"memory.max": "max", "memory.swap.max": "max"}),
        ({"memory": {"reservation": 5}}, {"memory.low": "5"}),
        ({"memory": {"limit": 0, "swap": 0}, "cpu": {"quota": 0, "shares": 0}}, {}),
        ({"pids": {"limit": 0}}, {"pids.max": "1"}),
        ({"blockIO": {"weight": 500}}, {"io.weight": str(1 + 490 * 9999 // 990)}),
        (
            {"blockIO": {"throttleWriteIOPSDevice": [{"major": 8, "minor": 16, "rate": 7}]}},
            {"io.max": "8:16 wiops=7"},
        ),
        ({"unified": {"memory.low": "77"}}, {"memory.low": "77"}),
    ],
)
def test_v2_files(v2: Path, asked: dict[str, Any], written: dict[str, str]) -> None:
    assert change(v2, asked) == written


def test_v2_refuses_swap_below_memory_before_it_writes(v2: Path) -> None:
    with pytest.raises(SpecError, match=r"memory\+swap limit should be >= memory limit"):
        change(v2, {"memory": {"limit": 64 * MIB}})
    assert {name: (v2 / name).read_text() for name in FRESH} == dict.fromkeys(FRESH, "")


def test_v2_looks_at_the_usage_first_where_it_is_asked_to(v2: Path) -> None:
    resources = Resources(memory_limit=4_000_000, check_before_update=True)
    with pytest.raises(CgroupError, match="rejecting memory limit 4000000 <= usage 5000000"):
        update(Cgroup(2, {"": str(v2)}), resources)
    assert (v2 / "memory.max").read_text() == "33554432\n"


def test_v2_is_all_or_nothing(v2: Path) -> None:
    """The kernel refuses a file: here one that is a folder."""
    (v2 / "pids.max").unlink()
    (v2 / "pids.max").mkdir()
    with pytest.raises(CgroupError, match=r"pids\.max"):
        update(
            Cgroup(2, {"": str(v2)}),
            Resources(memory_limit=99, cpu_quota=7, cpu_period=9, block_weight=10, pids_limit=3),
        )
    assert (v2 / "memory.max").read_text().startswith("33554432")
    assert (v2 / "cpu.max").read_text().startswith("500000 1000000")


def test_what_older_kernels_lack_is_no_error_where_it_asks_for_nothing(v2: Path) -> None:
    (v2 / "memory.swap.max").unlink()
    update(Cgroup(2, {"": str(v2)}), Resources(memory_limit=5, memory_swap=5))
    assert (v2 / "memory.max").read_text().startswith("5")
    with pytest.raises(CgroupError, match=r"memory\.swap\.max"):
        update(Cgroup(2, {"": str(v2)}), Resources(memory_limit=6, memory_swap=8))
