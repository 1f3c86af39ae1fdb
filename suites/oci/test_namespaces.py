"""Namespaces, user mappings and time offsets (config-linux.md, "Namespaces" and what follows)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from harness.linux.namespaces import identity
from harness.model.area import OciArea
from harness.session.oci import SLEEP, OciTrial
from harness.session.oci_box import Box
from harness.session.oci_breach import drops, puts, takes
from harness.session.oci_config import mount

pytestmark = [pytest.mark.operation(OciArea.NAMESPACES), pytest.mark.kernel]

KINDS = {"pid": "pid", "network": "net", "mount": "mnt", "ipc": "ipc", "uts": "uts", "cgroup": "cgroup"}
"""Types of the specification → names of the kernel."""
MAPPING = [{"containerID": 0, "hostID": 100000, "size": 65536}]


def inherits(kind: str):  # type: ignore[no-untyped-def]
    """A runtime that does not know a type of namespace."""

    def rewrite(config: Any) -> Any:
        rows = config["linux"]["namespaces"]
        config["linux"]["namespaces"] = [row for row in rows if row["type"] != kind]
        return config

    return takes(rewrite)


def without_path(config: Any) -> Any:
    """A runtime that makes a namespace in place of the one that it is pointed to."""
    for row in config["linux"]["namespaces"]:
        row.pop("path", None)
    return config


def everywhere(config: Any) -> Any:
    """A runtime that makes every namespace and joins none, whatever it is asked for."""
    asked = {row["type"] for row in config["linux"]["namespaces"]}
    for kind in ("network", "ipc", "uts", "cgroup"):
        config["linux"]["namespaces"] = [row for row in config["linux"]["namespaces"] if row["type"] != kind]
        if kind not in asked:
            config["linux"]["namespaces"].append({"type": kind})
    return config


def same(oci: OciTrial, box: Box, kind: str) -> bool:
    """Whether the container is in the runtime's own namespace."""
    return identity(oci.pid(box), KINDS[kind]) == identity(oci.trial.arena.keeper_pid, KINDS[kind])


@pytest.mark.breach(puts("linux.namespaces", [{"type": "mount"}]))
@pytest.mark.parametrize("kind", ["pid", "network", "ipc", "uts", "cgroup"])
def test_a_new_namespace(oci: OciTrial, kind: str) -> None:
    """Namespaces: "If path is not specified, the runtime MUST create a new container namespace of type type"."""
    box = oci.launch({"linux.namespaces": [{"type": "mount"}, {"type": kind}]})
    assert not same(oci, box, kind)


@pytest.mark.breach(takes(everywhere))
@pytest.mark.parametrize("kind", ["network", "ipc", "uts", "cgroup"])
def test_an_inherited_namespace(oci: OciTrial, kind: str) -> None:
    """Namespaces: "If a namespace type is not specified in the namespaces array, the container MUST inherit the runtime
    namespace of that type".
    """
    rows = [{"type": "mount"}, {"type": "pid"}]
    assert same(oci, oci.launch({"linux.namespaces": rows}), kind)


@pytest.mark.breach(takes(without_path))
@pytest.mark.parametrize("kind", ["network", "ipc", "uts"])
def test_a_namespace_by_path(oci: OciTrial, kind: str) -> None:
    """Namespaces: "The runtime MUST place the container process in the namespace associated with that path"."""
    other = oci.launch({"linux.namespaces": [{"type": each} for each in ("mount", "pid", "network", "ipc", "uts")]})
    path = f"/proc/{oci.pid(other)}/ns/{KINDS[kind]}"
    box = oci.launch({"linux.namespaces": [{"type": "mount"}, {"type": "pid"}, {"type": kind, "path": path}]})
    assert identity(oci.pid(box), KINDS[kind]) == identity(oci.pid(other), KINDS[kind])


@pytest.mark.breach(takes(without_path))
def test_a_pid_namespace_by_path(oci: OciTrial) -> None:
    """Namespaces: "The runtime MUST place the container process in the namespace associated with that path": of pid, too; the
    namespace's first process stays the one that it has.
    """
    other = oci.launch()
    path = f"/proc/{oci.pid(other)}/ns/pid"
    box = oci.launch({"linux.namespaces": [{"type": "mount"}, {"type": "pid", "path": path}]})
    assert identity(oci.pid(box), "pid") == identity(oci.pid(other), "pid")
    oci.end(box)
    assert oci.alive(other)


@pytest.mark.breach(takes(without_path))
def test_a_joined_namespace_stays_when_the_container_is_deleted(oci: OciTrial) -> None:
    """Delete: "resources associated with the container, but not created by this container, MUST NOT be deleted"."""
    other = oci.launch({"linux.namespaces.+": {"type": "network"}})
    path = f"/proc/{oci.pid(other)}/ns/net"
    box = oci.launch({"linux.namespaces.+": {"type": "network", "path": path}})
    joined = identity(oci.pid(box), "net")
    oci.end(box)
    oci.delete(box)
    assert identity(oci.pid(other), "net") == joined
    assert oci.status(other) == "running"


@pytest.mark.breach(inherits("uts"))
def test_the_name_of_the_machine_is_its_own(oci: OciTrial) -> None:
    """Namespaces: "uts the container will be able to have its own hostname and domain name"."""
    name = oci.shell("uname -n")
    said = oci.script("hostname renamed; uname -n", {"process.capabilities": all_capabilities()})
    try:
        assert said == "renamed\n"
        assert oci.shell("uname -n") == name
    finally:
        if oci.shell("uname -n") != name:
            oci.shell(f"hostname {name}")


@pytest.mark.breach(inherits("network"))
def test_a_new_network_has_a_loopback_and_no_more(oci: OciTrial) -> None:
    """Namespaces: "network the container will have its own network stack": runc brings its loopback up."""
    ping = "ping -c1 -W2 127.0.0.1"
    facts = oci.probe("ns", "file:/proc/net/dev", f"try:{ping}", changes={"linux.namespaces.+": {"type": "network"}})
    assert facts["ns"]["net"] != f"net:[{identity(oci.trial.arena.keeper_pid, 'net')[1]}]"
    rows = facts.text("file:/proc/net/dev").splitlines()
    assert [row.split(":")[0].strip() for row in rows if ":" in row] == ["lo"]
    assert facts.tried(ping)[0] == 0, "the loopback is down"


def all_capabilities() -> dict[str, list[str]]:
    names = [
        "CAP_SYS_ADMIN",
        "CAP_SYS_CHROOT",
        "CAP_SETUID",
        "CAP_SETGID",
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_NET_RAW",
    ]
    return dict.fromkeys(("bounding", "effective", "permitted"), names)


# User namespaces


def mapped(**more: Any) -> Mapping[Any, Any]:
    return {
        "linux.namespaces.+": {"type": "user"},
        "linux.uidMappings": MAPPING,
        "linux.gidMappings": MAPPING,
        **more,
    }


def owned(oci: OciTrial, box: Box) -> Box:
    """Give the root filesystem to the container's root, as an engine does."""
    oci.shell(f"chown -hR 100000:100000 {box.rootfs}")
    return box


@pytest.mark.breach(puts("linux.uidMappings.0.hostID", 200000), puts("linux.gidMappings.0.hostID", 200000))
def test_user_namespace(oci: OciTrial) -> None:
    """User namespace mappings: "uidMappings (array of objects, OPTIONAL) describes the user namespace uid mappings from the host
    to the container".
    """
    box = oci.launch(mapped())
    rows = [line.split() for line in oci.proc(box, "uid_map").splitlines()]
    assert rows == [["0", "100000", "65536"]]
    assert [line.split() for line in oci.proc(box, "gid_map").splitlines()] == rows
    assert oci.proc(box, "status").partition("Uid:")[2].split()[:4] == ["100000"] * 4
    assert identity(oci.pid(box), "user") != identity(oci.trial.arena.keeper_pid, "user")


@pytest.mark.breach(puts("process.user", {"uid": 0, "gid": 0}))
def test_users_are_those_of_the_namespace(oci: OciTrial) -> None:
    """User: uid "specifies the user ID in the container namespace"."""
    box = oci.launch(mapped(**{"process.user": {"uid": 1000, "gid": 1001}}))
    text = oci.proc(box, "status")
    assert text.partition("Uid:")[2].split()[0] == "101000"
    assert text.partition("Gid:")[2].split()[0] == "101001"


@pytest.mark.breach(puts("linux.uidMappings", MAPPING))
def test_several_mappings(oci: OciTrial) -> None:
    """User namespace mappings: each entry maps a range: "containerID", "hostID", "size"."""
    rows = [
        {"containerID": 0, "hostID": 100000, "size": 10},
        {"containerID": 10, "hostID": 300000, "size": 5},
        {"containerID": 1000, "hostID": 400000, "size": 1},
    ]
    box = oci.launch(mapped(**{"linux.uidMappings": rows}))
    found = [line.split() for line in oci.proc(box, "uid_map").splitlines()]
    assert found == [["0", "100000", "10"], ["10", "300000", "5"], ["1000", "400000", "1"]]


@pytest.mark.breach(takes(lambda config: {**config, "linux": {**config["linux"], "uidMappings": MAPPING[:0]}}))
def test_the_owners_of_the_root_stay(oci: OciTrial) -> None:
    """User namespace mappings: "The runtime SHOULD NOT modify the ownership of referenced filesystems to realize the mapping"."""
    box = oci.box()
    oci.probe("stat:/bin/true", changes=mapped(), box=owned(oci, box))
    assert (box.rootfs / "bin" / "true").stat().st_uid == 100000
    assert (box.rootfs / "etc").stat().st_uid == 100000
    node = oci.probe("stat:/etc/passwd", changes=mapped(), box=owned(oci, oci.box())).node("/etc/passwd")
    assert node is not None
    assert node.uid == 0


@pytest.mark.breach(drops("mounts.-1"))
def test_file_systems_in_a_user_namespace(oci: OciTrial) -> None:
    """Default Filesystems: proc, a tmpfs on /dev and a sysfs are made inside, by the container's own root."""
    changes = mapped(**{"mounts.+": mount("/sys", "sysfs", "sysfs", "nosuid", "noexec", "nodev", "ro")})
    box = owned(oci, oci.box({"linux.namespaces.+": {"type": "network"}}))
    facts = oci.probe("proc:mountinfo", "list:/sys", "write:/dev/null", "proc:uid_map", changes=changes, box=box)
    assert facts.mount("/sys").fstype == "sysfs"
    assert facts.mount("/dev").fstype == "tmpfs"
    assert facts["write:/dev/null"]


@pytest.mark.breach(takes(without_path), drops("linux.uidMappings", "linux.gidMappings"))
def test_a_user_namespace_by_path(oci: OciTrial) -> None:
    """Namespaces: by path, "MUST place the container process in the namespace associated with that path": of user, too."""
    oci.needs_spec("1.1.0")
    other = oci.launch(mapped())
    path = f"/proc/{oci.pid(other)}/ns/user"
    box = oci.launch({"linux.namespaces.+": {"type": "user", "path": path}})
    assert identity(oci.pid(box), "user") == identity(oci.pid(other), "user")


# Network devices


@pytest.mark.breach(drops("linux.netDevices"))
def test_a_network_device_is_moved(oci: OciTrial) -> None:
    """Network Devices: "netDevices (object, OPTIONAL) - A set of network devices that MUST be made available in the container"; it gets
    its new name, keeps its addresses, and "The runtime MUST set the network device state to "up" after moving it".
    """
    oci.needs_feature("linux.netDevices.enabled")
    making = "ip link add seatrial0 type veth peer name seatrial1 && ip addr add 10.9.8.7/24 dev seatrial0 && echo made"
    oci.needs(oci.shell(f"({making}) 2>/dev/null || true"), "no pair of network devices (veth) can be made")
    try:
        changes = {"linux.namespaces.+": {"type": "network"}, "linux.netDevices": {"seatrial0": {"name": "eth7"}}}
        facts = oci.probe("try:ip addr show eth7", "try:ip addr show seatrial0", changes=changes)
        status, said = facts.tried("ip addr show eth7")
        assert status == 0, said
        assert "10.9.8.7/24" in said
        assert "UP" in said
        assert facts.tried("ip addr show seatrial0")[0] != 0
    finally:
        oci.shell("ip link del seatrial1 2>/dev/null || true")


@pytest.mark.breach(drops("linux.netDevices"))
def test_a_network_device_that_is_not_there_is_an_error(oci: OciTrial) -> None:
    """Network Devices: what "MUST be made available" and is not there generates an error."""
    oci.needs_feature("linux.netDevices.enabled")
    changes = {"linux.namespaces.+": {"type": "network"}, "linux.netDevices": {"no-such-dev": {}}}
    assert oci.cannot_create(oci.box(changes, SLEEP))


# Time namespaces


@pytest.mark.breach(drops("linux.timeOffsets"))
def test_time_offsets(oci: OciTrial) -> None:
    """Offset for Time Namespace: "timeOffsets (object, OPTIONAL) sets the offset for Time Namespace": of monotonic and boottime."""
    oci.needs_feature("linux.namespaces", "time")
    offsets = {"monotonic": {"secs": 172800, "nanosecs": 500}, "boottime": {"secs": 604800, "nanosecs": 0}}
    box = oci.launch({"linux.namespaces.+": {"type": "time"}, "linux.timeOffsets": offsets})
    rows = {words[0]: words[1:] for words in map(str.split, oci.proc(box, "timens_offsets").splitlines())}
    assert rows == {"monotonic": ["172800", "500"], "boottime": ["604800", "0"]}


@pytest.mark.breach(inherits("time"))
def test_a_time_namespace(oci: OciTrial) -> None:
    """Namespaces: "time the container will be able to have its own clocks"."""
    oci.needs_feature("linux.namespaces", "time")
    box = oci.create(oci.box({"linux.namespaces.+": {"type": "time"}}, SLEEP))
    oci.start(box)
    assert identity(oci.pid(box), "time") != identity(oci.trial.arena.keeper_pid, "time")
