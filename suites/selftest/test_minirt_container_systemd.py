"""Containers as units of systemd: the wire, the properties, and what is asked for when, against a stand-in for systemd."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from minirt_bundle import Bundle, open_bundle
from minirt_fake_systemd import FakeSystemd, fake_systemd

from harness.clock import wait_until
from harness.linux.cgroups import Mode, read_layout
from harness.minirt.container import bus, systemd
from harness.minirt.container.cgroup import parse_layout, place_of
from harness.minirt.container.resources import DeviceRule, Resources
from harness.minirt.container.unit_properties import (
    bits_of,
    device_properties,
    parse_annotations,
    properties_v1,
    properties_v2,
    rounded,
)
from harness.minirt.errors import CgroupError, SpecError, TimedOut, Unavailable

INFINITY = (1 << 64) - 1
V1 = read_layout().mode is not Mode.V2


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSystemd]:
    path = tmp_path / "bus"
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={path}")
    with fake_systemd(path) as found:
        yield found


@pytest.mark.parametrize(
    ("signature", "value", "encoded"),
    [
        ("y", 7, b"\7"),
        ("b", True, b"\1\0\0\0"),
        ("s", "hä", b"\3\0\0\0h\xc3\xa4\0"),
        ("g", "a(ss)", b"\5a(ss)\0"),
        ("as", ["a", "b"], b"\x0e\0\0\0\1\0\0\0a\0\0\0\1\0\0\0b\0"),
        # The padding to the first item does not count in an array's length.
        ("at", [], b"\0\0\0\0\0\0\0\0"),
        ("at", [1], b"\x08\0\0\0\0\0\0\0\1\0\0\0\0\0\0\0"),
        ("(yt)", (1, 2), b"\1\0\0\0\0\0\0\0\2\0\0\0\0\0\0\0"),
        ("v", ("u", 9), b"\1u\0\0\x09\0\0\0"),
    ],
)
def test_wire_format(signature: str, value: Any, encoded: bytes) -> None:
    assert bytes(bus.marshal(signature, [value])) == encoded
    assert bus.unmarshal(signature, encoded) == ([value], len(encoded))


def test_messages_go_there_and_back() -> None:
    fields = {1: ("o", "/a"), 3: ("s", "Do")}
    values = ["name", [("Slice", ("s", "a.slice")), ("PIDs", ("au", [1, 2]))], [("x", [("y", ("b", False))])]]
    packed = bus.pack(1, 5, fields, "sa(sv)a(sa(sv))", values)
    assert bus.size_of(packed[:16]) == len(packed)
    message = bus.unpack(packed)
    assert (message.serial, message.member, message.body) == (5, "Do", values)


@pytest.mark.parametrize("signature", ["z", "a", "(y", "{sv", "ay)"])
def test_what_is_no_signature_is_refused(signature: str) -> None:
    with pytest.raises(ValueError, match="signature"):
        bus.split(signature)


def test_addresses() -> None:
    text = "tcp:host=x;unix:path=/run/a%20b,guid=1;unix:abstract=/x"
    assert bus.parse_addresses(text) == ["/run/a b", "\0/x"]


@pytest.mark.parametrize(
    ("path", "unit", "slice", "place"),
    [
        ("", "minirt-box.scope", "system.slice", "/system.slice/minirt-box.scope"),
        ("system.slice:docker:1234", "docker-1234.scope", "system.slice", "/system.slice/docker-1234.scope"),
        (":crio:x", "crio-x.scope", "system.slice", "/system.slice/crio-x.scope"),
        (
            "kubepods-besteffort-pod1.slice:cri:x",
            "cri-x.scope",
            "kubepods-besteffort-pod1.slice",
            "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1.slice/cri-x.scope",
        ),
        ("-.slice:a:b", "a-b.scope", "-.slice", "/a-b.scope"),
        ("a.slice::b.slice", "b.slice", "a.slice", "/a.slice/b.slice"),
    ],
)
def test_units_of_paths(path: str, unit: str, slice: str, place: str) -> None:
    found = systemd.unit_of(path, "box", systemd.SYSTEM, {}, {})
    assert (found.name, found.slice, systemd.path_of(found)) == (unit, slice, place)


@pytest.mark.parametrize("path", ["/a/b", "a:b", "a:b:c:d", "a.slice:b/c:d"])
def test_what_names_no_unit_is_refused(path: str) -> None:
    with pytest.raises(CgroupError):
        systemd.unit_of(path, "box", systemd.SYSTEM, {}, {})


@pytest.mark.parametrize("slice", ["a", ".slice", "a--b.slice", "-a.slice", "a/b.slice"])
def test_what_names_no_slice_is_refused(slice: str) -> None:
    with pytest.raises(CgroupError, match="invalid slice name"):
        systemd.expand_slice(slice)


def test_properties_of_annotations() -> None:
    annotations = {
        "org.systemd.property.TimeoutStopUSec": "uint64 123456789",
        "org.systemd.property.StopTimeoutSec": "1.5",
        "org.systemd.property.CollectMode": "'inactive-or-failed'",
        "org.systemd.property.After": "['a.service', 'b.service']",
        "org.systemd.property.Delegate": "false",
        "else": "x",
    }
    assert list(parse_annotations(annotations)) == [
        ("TimeoutStopUSec", ("t", 123456789)),
        ("StopTimeoutUSec", ("t", 1500000)),
        ("CollectMode", ("s", "inactive-or-failed")),
        ("After", ("as", ["a.service", "b.service"])),
        ("Delegate", ("b", False)),
    ]
    for name, value in (("X1", "true"), ("Good", "bare words"), ("Good", "uint32 'text'"), ("Good", "['a', 1]")):
        with pytest.raises(SpecError):
            list(parse_annotations({f"org.systemd.property.{name}": value}))


FULL = Resources(
    memory_limit=1000,
    memory_reservation=500,
    memory_swap=1500,
    cpu_shares=1024,
    cpu_quota=50_000,
    cpu_period=100_000,
    cpuset_cpus="0-1,9",
    cpuset_mems="0",
    pids_limit=0,
    block_weight=10,
)


def test_properties_of_v1() -> None:
    assert dict(properties_v1(FULL, lambda: 252)) == {
        "MemoryLimit": ("t", 1000),
        "CPUShares": ("t", 1024),
        "CPUQuotaPeriodUSec": ("t", 100_000),
        "CPUQuotaPerSecUSec": ("t", 500_000),
        "BlockIOWeight": ("t", 10),
        "TasksMax": ("t", 1),
        "AllowedCPUs": ("ay", b"\3\2"),
        "AllowedMemoryNodes": ("ay", b"\1"),
    }
    old = dict(properties_v1(FULL, lambda: 239))
    assert not {"CPUQuotaPeriodUSec", "AllowedCPUs", "AllowedMemoryNodes"} & set(old)


def test_properties_of_v2() -> None:
    assert dict(properties_v2(FULL, lambda: 252)) == {
        "MemoryMax": ("t", 1000),
        "MemoryLow": ("t", 500),
        "MemorySwapMax": ("t", 500),
        "CPUWeight": ("t", 39),
        "CPUQuotaPeriodUSec": ("t", 100_000),
        "CPUQuotaPerSecUSec": ("t", 500_000),
        "TasksMax": ("t", 1),
        "AllowedCPUs": ("ay", b"\3\2"),
        "AllowedMemoryNodes": ("ay", b"\1"),
    }
    unlimited = Resources(memory_limit=-1, cpu_quota=-1, pids_limit=-1, cpu_idle=1, cpu_shares=5)
    assert dict(properties_v2(unlimited, lambda: 252)) == {
        "MemoryMax": ("t", INFINITY),
        "MemorySwapMax": ("t", INFINITY),
        "CPUWeight": ("t", 0),
        "CPUQuotaPerSecUSec": ("t", INFINITY),
        "TasksMax": ("t", INFINITY),
    }
    assert dict(properties_v2(unlimited, lambda: 251))["CPUWeight"] == ("t", 1)


def test_properties_of_unified() -> None:
    files = {
        "memory.high": "max",
        "memory.min": "7",
        "cpu.max": "20000 100000",
        "cpuset.cpus": "3",
        "pids.max": "0",
        "cpu.weight": "50",
        "memory.oom.group": "1",
    }
    assert dict(properties_v2(Resources(unified=files), lambda: 252)) == {
        "MemoryHigh": ("t", INFINITY),
        "MemoryMin": ("t", 7),
        "CPUQuotaPeriodUSec": ("t", 100_000),
        "CPUQuotaPerSecUSec": ("t", 200_000),
        "AllowedCPUs": ("ay", b"\x08"),
        "TasksMax": ("t", 1),
        "CPUWeight": ("t", 50),
    }
    both = {"cpu.idle": "1", "cpu.weight": "50"}
    assert list(properties_v2(Resources(unified=both), lambda: 252)) == [("CPUWeight", ("t", 0))]
    with pytest.raises(SpecError, match=r"unified\['cpu.max'\]"):
        list(properties_v2(Resources(unified={"cpu.max": "much"}), lambda: 252))


def test_quota_is_rounded_up_to_whole_percents() -> None:
    """What is written to the file is what systemd makes of it, or the next reload of systemd would change it."""
    assert rounded(Resources(cpu_quota=123_456, cpu_period=1_000_000)).cpu_quota == 130_000
    assert rounded(Resources(cpu_quota=50_000)).cpu_quota == 50_000
    assert rounded(Resources(cpu_quota=-1, cpu_period=7)) == Resources(cpu_quota=-1, cpu_period=7)


@pytest.mark.parametrize("text", ["", ",", "3-1", "a", "1-"])
def test_what_is_no_list_of_cpus_is_refused(text: str) -> None:
    if text == "1-":
        assert bits_of(text) == b"\2"
        return
    with pytest.raises(SpecError):
        bits_of(text)


def test_properties_of_device_rules() -> None:
    rules = (
        DeviceRule(True, "c", 10, None, "rw"),
        DeviceRule(True, "b", 8, 0, "r"),
        DeviceRule(True, "c", None, 5, "r"),
    )
    found = list(device_properties(Resources(devices=rules), lambda: 252))
    assert found[:2] == [("DeviceAllow", ("a(ss)", [])), ("DevicePolicy", ("s", "strict"))]
    allowed = found[2][1][1]
    assert {("char-10", "rw"), ("/dev/block/8:0", "r"), ("char-*", "m"), ("/dev/char/1:3", "rwm")} <= set(allowed)
    # systemd has no word for a minor number of any major one.
    assert not [path for path, _ in allowed if path.endswith(":5") and "*" in path]
    everything = Resources(devices=(DeviceRule(True, "a", None, None, "rwm"),))
    assert list(device_properties(everything, lambda: 252)) == [
        ("DeviceAllow", ("a(ss)", [])),
        ("DevicePolicy", ("s", "auto")),
    ]
    # Before 240 a whole major number goes by its name in /proc/devices.
    assert ("char-pts", "rwm") in list(device_properties(Resources(), lambda: 239))[2][1][1]


def test_container_is_in_the_hierarchies_that_systemd_looks_at() -> None:
    mountinfo = (
        "1 0 0:1 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
        "2 0 0:2 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n"
        "3 0 0:3 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
    )
    own = "2:name=systemd:/\n1:memory:/\n0::/\n"
    place = place_of(parse_layout(mountinfo, own, named=True), "/a.slice/b.scope", "", Resources())
    assert place.folders == {
        "memory": "/sys/fs/cgroup/memory/a.slice/b.scope",
        "name=systemd": "/sys/fs/cgroup/systemd/a.slice/b.scope",
        "": "/sys/fs/cgroup/unified/a.slice/b.scope",
    }
    assert place.join_files()[-2:] == (
        "/sys/fs/cgroup/systemd/a.slice/b.scope/tasks",
        "/sys/fs/cgroup/unified/a.slice/b.scope/cgroup.procs",
    )
    assert set(place_of(parse_layout(mountinfo, own), "/a", "", Resources()).folders) == {"memory"}


def test_unit_is_started_with_a_process_and_awaited(fake: FakeSystemd) -> None:
    unit = systemd.unit_of("a.slice:b:c", "box", systemd.SYSTEM, {"org.systemd.property.X": "true"}, {})
    systemd.start(unit, v2=True)
    try:
        assert fake.names() == ["Subscribe", "StartTransientUnit"]
        name, mode, _, others = fake.calls[-1][1]
        assert (name, mode, others) == ("b-c.scope", "replace", [])
        properties = dict(fake.properties("StartTransientUnit"))
        pids = properties.pop("PIDs")
        assert properties == {
            "Description": "minirt container b-c",
            "Slice": "a.slice",
            "Delegate": True,
            "MemoryAccounting": True,
            "CPUAccounting": True,
            "IOAccounting": True,
            "TasksAccounting": True,
            "DefaultDependencies": False,
            "X": True,
        }
        assert fake.processes == [True]
    finally:
        systemd.settle(unit)
    assert not Path(f"/proc/{pids[0]}").exists()


def test_leftover_of_a_failed_unit_is_reset_once(fake: FakeSystemd) -> None:
    unit = systemd.Unit("b.scope", "a.slice")
    exists = "org.freedesktop.systemd1.UnitExists"
    fake.errors["StartTransientUnit"] = [exists]
    systemd.start(unit, v2=True)
    systemd.settle(unit)
    assert fake.names()[1:] == ["StartTransientUnit", "ResetFailedUnit", "StartTransientUnit"]
    fake.errors["StartTransientUnit"] = [exists, exists]
    with pytest.raises(CgroupError, match=r"does not make the unit b\.scope: StartTransientUnit cannot be done"):
        systemd.start(unit, v2=True)


def test_unit_that_does_not_come_up_is_an_error_and_leaves_no_process(fake: FakeSystemd) -> None:
    fake.result = "failed"
    with pytest.raises(CgroupError, match="the job ended with 'failed'"):
        systemd.start(systemd.Unit("b.scope", "a.slice"), v2=True)
    assert fake.names()[-1] == "ResetFailedUnit"
    (pid,) = dict(fake.properties("StartTransientUnit"))["PIDs"]
    assert not Path(f"/proc/{pid}").exists()


def test_silence_ends_in_time(fake: FakeSystemd, tmp_path: Path) -> None:
    fake.silent = True
    connection = bus.Bus(str(tmp_path / "bus"), timeout_s=0.2)
    with connection, pytest.raises(TimedOut, match="about Subscribe"):
        systemd.call(connection, "Subscribe")


def test_no_bus_and_a_bus_without_systemd_are_told(
    fake: FakeSystemd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.errors["Subscribe"] = ["org.freedesktop.DBus.Error.ServiceUnknown"]
    with pytest.raises(Unavailable, match="no systemd is on the bus"):
        systemd.start(systemd.Unit("b.scope", "a.slice"), v2=True)
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={tmp_path}/none")
    with pytest.raises(Unavailable, match="none: no such file or directory; systemd cgroups need a systemd"):
        systemd.start(systemd.Unit("b.scope", "a.slice"), v2=True)
    monkeypatch.delenv("DBUS_SESSION_BUS_ADDRESS", raising=False)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    with pytest.raises(Unavailable, match="neither DBUS_SESSION_BUS_ADDRESS nor XDG_RUNTIME_DIR"):
        systemd.open_bus(systemd.USER)


def test_units_of_a_user_are_below_that_users_systemd(
    fake: FakeSystemd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DBUS_SESSION_BUS_ADDRESS", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    unit = systemd.unit_of("", "box", systemd.USER, {}, {})
    assert systemd.path_of(unit) == "/user.slice/user-5.slice/user@5.service/user.slice/minirt-box.scope"


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[Bundle]:
    with open_bundle(tmp_path) as bundle:
        bundle.config["linux"]["cgroupsPath"] = f"seatrial{os.getpid()}.slice:test:box"
        bundle.config["linux"]["resources"] |= {"memory": {"limit": 64 << 20}, "pids": {"limit": 50}}
        try:
            yield bundle.sh("trap 'exit 0' TERM; echo up; while :; do sleep 0.05; done")
        finally:
            bundle.ok("delete", "--force", "box")
            layout = read_layout()
            for top in {*layout.controllers.values(), *([layout.unified] if layout.unified else []), _named()}:
                shutil.rmtree(top / f"seatrial{os.getpid()}.slice", ignore_errors=True)
                folder = top / f"seatrial{os.getpid()}.slice"
                if folder.exists():
                    folder.rmdir()


def _named() -> Path:
    return Path("/sys/fs/cgroup/systemd")


def test_life_of_a_container(bundle: Bundle, fake: FakeSystemd) -> None:
    place = f"/seatrial{os.getpid()}.slice/test-box.scope"
    with (bundle.folder / "out").open("w") as out:
        bundle.ok("--systemd-cgroup", "create", "box", stdout=out, stderr=out, capture_output=False)
    assert fake.names() == ["Subscribe", "StartTransientUnit", "SetUnitProperties"]
    name, runtime, _ = fake.calls[-1][1]
    assert (name, runtime) == ("test-box.scope", True)
    limits = dict(fake.properties("SetUnitProperties"))
    assert limits["TasksMax"] == 50
    assert limits["MemoryLimit" if V1 else "MemoryMax"] == 64 << 20
    assert limits["DevicePolicy"] == "strict"
    # Its own process is in the unit, the one that held its place is gone.
    pid = bundle.state()["pid"]
    assert f":{place}\n" in Path(f"/proc/{pid}/cgroup").read_text()
    assert json.loads(bundle.ok("ps", "--format", "json", "box")) == [pid]
    (holder,) = dict(fake.properties("StartTransientUnit"))["PIDs"]
    assert not Path(f"/proc/{holder}").exists()
    bundle.ok("start", "box")
    bundle.await_output("up")
    # Later commands need not be told.
    bundle.ok("update", "box", "--pids-limit", "9")
    assert fake.properties("SetUnitProperties") == [("TasksMax", 9)]
    fake.calls.clear()
    bundle.ok("kill", "box", "TERM")
    bundle.await_status("stopped")
    bundle.ok("delete", "box")
    assert fake.names() == ["Subscribe", "StopUnit", "ResetFailedUnit"]
    assert fake.calls[1][1] == ["test-box.scope", "replace"]
    assert not [top for top in Path("/sys/fs/cgroup").iterdir() if Path(f"{top}{place}").exists()]


def test_update_is_all_or_nothing_for_the_unit_too(bundle: Bundle, fake: FakeSystemd) -> None:
    with (bundle.folder / "out").open("w") as out:
        bundle.ok("--systemd-cgroup", "create", "box", stdout=out, stderr=out, capture_output=False)
    fake.calls.clear()
    done = bundle.minirt("update", "box", "--pids-limit", "9", "--cpuset-cpus", "4000")
    assert done.returncode == 1
    assert len(fake.names()) == 2
    first, last = (dict(arguments[2]) for _, arguments in fake.calls)
    assert (first["TasksMax"][1], last["TasksMax"][1]) == (9, 50)
    refused = bundle.minirt("update", "box", "--pids-limit", "8")
    assert refused.returncode == 0
    fake.errors["SetUnitProperties"] = ["org.freedesktop.DBus.Error.InvalidArgs"]
    refused = bundle.minirt("update", "box", "--pids-limit", "7")
    assert "systemd does not set the limits of test-box.scope: SetUnitProperties cannot be done" in refused.stderr


def test_without_systemd_create_says_so_and_leaves_nothing(bundle: Bundle, tmp_path: Path) -> None:
    env = {**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={tmp_path}/none"}
    done = bundle.minirt("--systemd-cgroup", "create", "box", env=env)
    assert done.returncode == 1
    assert "cannot connect to the bus" in done.stderr
    assert not (bundle.states / "box").exists()
    wrong = bundle.minirt("create", "box")
    assert "is meant for systemd's cgroups: --systemd-cgroup asks for them" in wrong.stderr


def test_a_program_that_cannot_be_found_takes_the_unit_with_it(bundle: Bundle, fake: FakeSystemd) -> None:
    bundle.config["process"]["args"] = ["nope"]
    done = bundle.minirt("--systemd-cgroup", "create", "box")
    assert "executable file not found" in done.stderr
    assert fake.names()[-3:] == ["Subscribe", "StopUnit", "ResetFailedUnit"]
    (holder,) = dict(fake.properties("StartTransientUnit"))["PIDs"]
    assert not Path(f"/proc/{holder}").exists()


@pytest.mark.skipif(shutil.which("dbus-daemon") is None, reason="dbus-daemon is not installed")
def test_against_a_real_bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bus itself answers: authentication, names, properties, errors and signals are as it has them."""
    config = tmp_path / "bus.conf"
    config.write_text(
        "<!DOCTYPE busconfig PUBLIC '-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN'\n"
        " 'http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd'>\n"
        f"<busconfig><listen>unix:path={tmp_path}/real</listen><auth>EXTERNAL</auth><policy context='default'>"
        "<allow send_destination='*' eavesdrop='true'/><allow eavesdrop='true'/><allow own='*'/></policy></busconfig>"
    )
    argv = ["dbus-daemon", f"--config-file={config}", "--nofork", "--nopidfile"]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL) as daemon:
        try:
            wait_until((tmp_path / "real").exists, 20, "the bus to listen")
            monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", f"unix:path={tmp_path}/real")
            with systemd.open_bus(systemd.SYSTEM) as first, bus.Bus(str(tmp_path / "real")) as second:
                (uid,) = second.call(bus.BUS_NAME, "/", bus.BUS_NAME, "GetConnectionUnixUser", "s", bus.BUS_NAME)
                assert uid == os.geteuid()
                with pytest.raises(Unavailable, match="no systemd is on the bus"):
                    systemd.read_version(first)
                rule = "type='signal',member='NameOwnerChanged'"
                first.call(bus.BUS_NAME, "/", bus.BUS_NAME, "AddMatch", "s", rule)
                (granted,) = second.call(bus.BUS_NAME, "/", bus.BUS_NAME, "RequestName", "su", "org.example.X", 0)
                assert granted == 1
                body = first.await_signal("NameOwnerChanged", lambda body: body[0] == "org.example.X", 10)
                assert body[2].startswith(":")
                with pytest.raises(bus.BusError) as caught:
                    first.call(bus.BUS_NAME, "/", bus.BUS_NAME, "Nonsense")
                assert caught.value.name == "org.freedesktop.DBus.Error.UnknownMethod"
        finally:
            daemon.send_signal(signal.SIGTERM)
