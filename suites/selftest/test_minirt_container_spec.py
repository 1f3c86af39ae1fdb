"""config.json: what is valid becomes a spec, what is not is refused with its path."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from typing import Any

import pytest

from harness.linux import syscalls
from harness.minirt.container import document
from harness.minirt.container.cgroup import Layout, parse_layout, place_of
from harness.minirt.container.limits import limits_v1, limits_v2, swap_v2, weight_of_shares
from harness.minirt.container.options import Attributes, parse_options
from harness.minirt.container.reader import Reader
from harness.minirt.container.record import Record, changed
from harness.minirt.container.resources import Resources, parse_resources
from harness.minirt.container.seccomp import parse_profile
from harness.minirt.container.signals import parse_signal
from harness.minirt.container.spec import parse_spec
from harness.minirt.container.state import check_id
from harness.minirt.errors import CgroupError, InvalidArgument, SpecError, UsageError
from harness.minirt.oci.about import default_config, features


def _with(path: str, value: Any) -> dict[str, Any]:
    """The default config with one value changed; ``a.b[0].c``."""
    config: Any = copy.deepcopy(default_config())
    here = config
    words = path.replace("[", ".[").split(".")
    for word, following in zip(words, [*words[1:], ""], strict=True):
        key: Any = int(word[1:-1]) if word[0] == "[" else word
        if not following:
            here[key] = value
        elif isinstance(here, dict):
            here = here.setdefault(key, [{}] if following[0] == "[" else {})
        else:
            here = here[key]
    return config  # type: ignore[no-any-return]


def test_default_config_is_valid() -> None:
    spec = parse_spec(default_config(), "/bundle")
    assert spec.root == "/bundle/rootfs"
    assert spec.process is not None
    assert spec.process.args == ("sh",)
    assert [entry.kind for entry in spec.namespaces] == ["pid", "net", "ipc", "uts", "mnt", "cgroup"]


def test_unknown_fields_and_nulls_are_ignored() -> None:
    config = _with("linux.somethingNew", {"x": 1}) | {"hooks": None, "annotations": None, "vm": {"kernel": {}}}
    assert parse_spec(config, "/b") == parse_spec(default_config(), "/b")


@pytest.mark.parametrize(
    ("path", "value", "where"),
    [
        ("ociVersion", "one", "ociVersion"),
        ("ociVersion", "2.0.0", "ociVersion"),
        ("ociVersion", "0.9.0", "ociVersion"),
        ("ociVersion", "1.0", "ociVersion"),
        ("ociVersion", "1.00.0", "ociVersion"),
        ("ociVersion", "1.0.0-", "ociVersion"),
        ("ociVersion", "1.0.0-01", "ociVersion"),
        ("ociVersion", "1.0.0-a..b", "ociVersion"),
        ("ociVersion", "1.0.0+", "ociVersion"),
        ("ociVersion", "1.0.0+a_b", "ociVersion"),
        ("ociVersion", "1.0.²", "ociVersion"),
        ("ociVersion", None, "ociVersion"),
        ("root.path", "", "root.path"),
        ("root", None, "root"),
        ("process.args", [], "process.args"),
        ("process.args", [""], "process.args"),
        ("process.args", ["sh", 1], "process.args[1]"),
        ("process.args", ["s\0h"], "process.args[0]"),
        ("process.args", ["s\ud800h"], "process.args[0]"),
        ("process.cwd", "relative", "process.cwd"),
        ("process.env", ["A=1", "B"], "process.env[1]"),
        ("process.env", ["=1"], "process.env[0]"),
        ("process.env", [""], "process.env[0]"),
        ("process.user", {"additionalGids": [-1]}, "process.user.additionalGids[0]"),
        ("process.scheduler", {"policy": "x"}, "process.scheduler.policy"),
        ("process.ioPriority", {"class": "IOPRIO_CLASS_BE", "priority": 9}, "process.ioPriority.priority"),
        ("process.execCPUAffinity", {"final": "x"}, "process.execCPUAffinity.final"),
        ("hostname", 65 * "x", "hostname"),
        ("domainname", 33 * "ä", "domainname"),
        ("annotations", {"": "x"}, "annotations"),
        ("annotations", {"a": 1}, "annotations['a']"),
        ("process.user", {"uid": -1}, "process.user.uid"),
        ("process.user", {"umask": 0o1000}, "process.user.umask"),
        ("process.oomScoreAdj", 1001, "process.oomScoreAdj"),
        ("process.rlimits", [{"type": "RLIMIT_X"}], "process.rlimits[0].type"),
        ("process.rlimits", [{"type": "RLIMIT_CPU", "soft": 2, "hard": 1}], "process.rlimits[0].soft"),
        ("process.rlimits", [{"type": "RLIMIT_CPU"}] * 2, "process.rlimits[1].type"),
        ("process.noNewPrivileges", "yes", "process.noNewPrivileges"),
        ("mounts", [{"type": "tmpfs"}], "mounts[0].destination"),
        ("mounts", [{"destination": "/x"}], "mounts[0].type"),
        ("mounts", [{"destination": "/x", "type": "bind"}], "mounts[0].source"),
        ("hooks", {"prestart": [{"path": "true"}]}, "hooks.prestart[0].path"),
        ("hooks", {"poststop": [{"path": "/x", "timeout": 0}]}, "hooks.poststop[0].timeout"),
        ("linux.namespaces", [{"type": "nothing"}], "linux.namespaces[0].type"),
        ("linux.namespaces", [{"type": "uts"}, {"type": "mount"}, {"type": "uts"}], "linux.namespaces[2].type"),
        ("linux.namespaces", [{"type": "mount"}], "hostname"),
        ("linux.namespaces[0].type", "user", "linux.uidMappings"),
        ("linux.namespaces[0].path", "relative", "linux.namespaces[0].path"),
        ("linux.uidMappings", [{"containerID": 0, "hostID": 0, "size": 0}], "linux.uidMappings[0].size"),
        ("linux.uidMappings", [{"containerID": 0, "hostID": 4294967295, "size": 2}], "linux.uidMappings[0].size"),
        ("linux.uidMappings", [{"containerID": 0, "hostID": 0, "size": 1}], "linux.uidMappings"),
        ("linux.gidMappings", [{"containerID": 0, "hostID": 0, "size": 1}], "linux.gidMappings"),
        ("linux.gidMappings", [{"containerID": n, "hostID": n, "size": 1} for n in range(341)], "linux.gidMappings"),
        ("linux.uidMappings", [{"containerID": 0, "hostID": n * 9, "size": 2} for n in (0, 1)], "linux.uidMappings"),
        ("linux.uidMappings", [{"containerID": n * 9, "hostID": 5, "size": 2} for n in (0, 1)], "linux.uidMappings"),
        ("linux.timeOffsets", {"monotonic": {"secs": 1}}, "linux.timeOffsets"),
        ("linux.netDevices", {"a b": {}}, "linux.netDevices.a b"),
        ("linux.memoryPolicy", {"mode": "MPOL_BIND"}, "linux.memoryPolicy.nodes"),
        ("linux.devices", [{"path": "/dev/x", "type": "c", "minor": 1}], "linux.devices[0].major"),
        ("linux.devices", [{"path": "/dev/x", "type": "b", "major": 1}], "linux.devices[0].minor"),
        ("linux.devices", [{"path": "/dev/x", "type": "b", "major": 4096, "minor": 1}], "linux.devices[0].major"),
        ("linux.devices", [{"path": "/dev/..", "type": "p"}], "linux.devices[0].path"),
        ("linux.devices", [{"path": "/dev/x", "type": "z"}], "linux.devices[0].type"),
        ("linux.devices", [{"path": "x", "type": "c"}], "linux.devices[0].path"),
        ("linux.rootfsPropagation", "wild", "linux.rootfsPropagation"),
        ("linux.maskedPaths", ["relative"], "linux.maskedPaths[0]"),
        ("linux.sysctl", {"kernel.panic": "1"}, "linux.sysctl['kernel.panic']"),
        ("linux.sysctl", {"net.../../kernel/panic": "1"}, "linux.sysctl['net.../../kernel/panic']"),
        ("linux.sysctl", {"net/../kernel/panic": "1"}, "linux.sysctl['net/../kernel/panic']"),
        ("linux.sysctl", {"kernel.hostname": "x"}, "linux.sysctl['kernel.hostname']"),
        ("linux.sysctl", {"user.max_pid_namespaces": "1"}, "linux.sysctl['user.max_pid_namespaces']"),
        ("linux.sysctl", {"": "1"}, "linux.sysctl['']"),
        ("linux.intelRdt", {"closID": "a/b"}, "linux.intelRdt.closID"),
        ("linux.personality", {"domain": "BSD"}, "linux.personality.domain"),
        ("linux.resources.devices", [{"access": "rx"}], "linux.resources.devices[0].access"),
        ("linux.resources.unified", {"../x.y": "1"}, "linux.resources.unified['../x.y']"),
        ("linux.resources.memory", {"limit": "1G"}, "linux.resources.memory.limit"),
        ("linux.resources.hugepageLimits", [{"pageSize": "2 MB"}], "linux.resources.hugepageLimits[0].pageSize"),
    ],
)
def test_invalid_configs_are_refused_with_their_path(path: str, value: Any, where: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(_with(path, value), "/bundle")
    assert caught.value.path == where


NEW_USER = [{"type": "user"}, {"type": "mount"}, {"type": "uts"}, {"type": "time", "path": "/proc/self/ns/time"}]
MAPS = [{"containerID": 0, "hostID": 1000, "size": 10}]


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"linux.uidMappings": [{"containerID": 1, "hostID": 1000, "size": 9}]}, "linux.uidMappings"),
        ({"process.user": {"uid": 10}}, "linux.uidMappings"),
        ({"process.user": {"gid": 10}}, "linux.gidMappings"),
        ({"process.user": {"additionalGids": [4, 11]}}, "linux.gidMappings"),
        ({"linux.gidMappings": []}, "linux.uidMappings"),
        ({"linux.timeOffsets": {"monotonic": {"secs": 1}}}, "linux.timeOffsets"),
        ({"linux.netDevices": {"eth0": {}}}, "linux.netDevices"),
        ({"linux.sysctl": {"net.core.somaxconn": "1"}}, "linux.sysctl['net.core.somaxconn']"),
        ({"linux.sysctl": {"kernel.shmmax": "1"}}, "linux.sysctl['kernel.shmmax']"),
    ],
)
def test_what_namespaces_demand(changes: dict[str, Any], where: str) -> None:
    config = _with("linux.namespaces", NEW_USER)
    config["linux"] |= {"uidMappings": MAPS, "gidMappings": MAPS}
    assert parse_spec(config, "/bundle").uid_maps
    for path, value in changes.items():
        part, key = path.split(".")
        config[part][key] = value
    with pytest.raises(SpecError) as caught:
        parse_spec(config, "/bundle")
    assert caught.value.path == where


def test_propagation_of_the_root_needs_a_mount_namespace() -> None:
    config = _with("linux", {"namespaces": [{"type": "uts"}]}) | {"mounts": [], "root": {"path": "rootfs"}}
    parse_spec(config, "/bundle")
    config["linux"]["rootfsPropagation"] = "private"
    with pytest.raises(SpecError, match="without a mount namespace") as caught:
        parse_spec(config, "/bundle")
    assert caught.value.path == "linux.rootfsPropagation"


@pytest.mark.parametrize("version", ["1.0.0", "1.0.0-rc1", "1.0.2-dev", "1.3.0+dev", "1.2.3-0.x-y+01.a", "1.99.0"])
def test_versions_that_are_taken(version: str) -> None:
    assert parse_spec(_with("ociVersion", version), "/b").version == version


def test_console_size_counts_with_a_terminal_only() -> None:
    config = _with("process.consoleSize", {"height": -1})
    config["process"]["terminal"] = False
    assert parse_spec(config, "/b").process is not None
    config["process"]["terminal"] = True
    with pytest.raises(SpecError):
        parse_spec(config, "/b")


def test_what_is_warned_of() -> None:
    config = _with("process.capabilities", {"bounding": ["CAP_NEW", "CAP_KILL"], "ambient": ["CAP_NEW"]})
    config["linux"]["personality"] = {"domain": "LINUX", "flags": ["ADDR_NO_RANDOMIZE"]}
    capability, flags = parse_spec(config, "/b").warnings
    assert "CAP_NEW" in capability
    assert "personality" in flags


def test_features_tell_what_is_understood() -> None:
    """What stands in features MUST be recognized in a config, each of it (features.md)."""
    told = features()
    for word in told["mountOptions"]:
        assert parse_options([word]).data == ""
    linux = told["linux"]
    rules = [{"names": ["read"], "action": action} for action in linux["seccomp"]["actions"]]
    argument = {"index": 0, "value": 1}
    rules += [
        {"names": ["read"], "action": "SCMP_ACT_LOG", "args": [argument | {"op": operator}]}
        for operator in linux["seccomp"]["operators"]
    ]
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": linux["seccomp"]["archs"],
        "flags": linux["seccomp"]["knownFlags"],
        "listenerPath": "/agent",
        "syscalls": rules,
    }
    assert len(parse_profile(profile).rules) == len(rules)
    for mode in linux["memoryPolicy"]["modes"]:
        needs = "" if mode in ("MPOL_DEFAULT", "MPOL_LOCAL") else "0"
        assert parse_spec(_with("linux.memoryPolicy", {"mode": mode, "nodes": needs}), "/b").memory_policy is not None
    for version in (told["ociVersionMin"], told["ociVersionMax"]):
        parse_spec(_with("ociVersion", version), "/b")


def test_what_a_container_does_not_ask_for_is_not_imported() -> None:
    rare = ("scheduling", "listener", "netdevices", "rdt", "sysctl", "copying")
    code = (
        "import sys; from harness.minirt.oci import creation; from harness.minirt.container import document; "
        "creation.parse_spec(document.parse(sys.argv[1]), '/b'); print(*sys.modules)"
    )
    argv = [sys.executable, "-c", code, json.dumps(default_config())]
    done = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60)
    loaded = set(done.stdout.split())
    assert "harness.minirt.container.launch" in loaded
    assert not {f"harness.minirt.container.{name}" for name in rare} & loaded


def test_sysctls_by_either_separator() -> None:
    names = {"net.ipv4.conf.eth0/5.mtu": "1", "net/ipv4/conf/eth0.6/mtu": "2", "kernel/shmmax": "3"}
    spec = parse_spec(_with("linux.sysctl", names), "/b")
    paths = {"net/ipv4/conf/eth0.5/mtu": "1", "net/ipv4/conf/eth0.6/mtu": "2", "kernel/shmmax": "3"}
    assert spec.sysctl == paths


def test_a_sysctl_of_the_machines_own_namespace_is_refused() -> None:
    """Also where it is given as if it were another one."""
    config = _with("linux.sysctl", {"net.core.somaxconn": "1"})
    for entry in config["linux"]["namespaces"]:
        if entry["type"] == "network":
            entry["path"] = "/proc/self/ns/net"
    with pytest.raises(SpecError, match="of the container's own"):
        parse_spec(config, "/b")


@pytest.mark.parametrize("document", [None, [], "text", 3])
def test_what_is_no_object_is_refused(document: Any) -> None:
    with pytest.raises(SpecError):
        parse_spec(document, "/bundle")


def test_mount_options() -> None:
    options = parse_options(["rbind", "ro", "nosuid", "rro", "noatime", "rslave", "size=5", "mode=1777"])
    assert options.bind
    assert options.read_only
    assert options.attributes.set == (
        syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NOATIME
    )
    assert options.attributes.clear == syscalls.MOUNT_ATTR__ATIME
    assert options.recursive == Attributes(syscalls.MOUNT_ATTR_RDONLY, 0)
    assert options.propagation == (syscalls.MS_SLAVE | syscalls.MS_REC,)
    assert options.data == "size=5,mode=1777"


def test_later_mount_option_wins() -> None:
    assert not parse_options(["ro", "rw"]).read_only
    assert parse_options(["rw", "ro"]).attributes == Attributes(syscalls.MOUNT_ATTR_RDONLY, 0)


def test_limits_of_both_versions() -> None:
    resources = Resources(
        memory_limit=100,
        memory_swap=150,
        cpu_shares=1024,
        cpu_quota=-1,
        cpu_period=1000,
        pids_limit=-1,
        hugepages=(("2MB", 4),),
    )
    v1 = {name: text for _, name, text in limits_v1(resources) if not name.startswith("devices")}
    assert v1 == {
        "memory.limit_in_bytes": "100",
        "memory.memsw.limit_in_bytes": "150",
        "cpu.shares": "1024",
        "cpu.cfs_period_us": "1000",
        "cpu.cfs_quota_us": "-1",
        "pids.max": "max",
        "hugetlb.2MB.limit_in_bytes": "4",
        "hugetlb.2MB.rsvd.limit_in_bytes": "4",
    }
    assert dict(limits_v2(resources)) == {
        "memory.max": "100",
        "memory.swap.max": "50",
        "cpu.weight": "39",
        "cpu.max": "max 1000",
        "pids.max": "max",
        "hugetlb.2MB.max": "4",
        "hugetlb.2MB.rsvd.max": "4",
    }


def test_swap_and_weight_of_v2() -> None:
    assert swap_v2(-1, 5) == "max"
    assert swap_v2(5, 5) == "0"
    for total, memory in ((4, 5), (4, None)):
        with pytest.raises(SpecError, match="swap"):
            swap_v2(total, memory)
    assert (weight_of_shares(2), weight_of_shares(262144)) == (1, 10000)


def test_devices_begin_with_nothing() -> None:
    content = {"devices": [{"allow": True, "type": "c", "major": 10, "minor": -1, "access": "rw"}]}
    rules = [
        (name, text)
        for controller, name, text in limits_v1(parse_resources(Reader(content)))
        if controller == "devices"
    ]
    assert rules[:2] == [("devices.deny", "a"), ("devices.allow", "c 10:* rw")]


MOUNTINFO = """\
26 25 0:23 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
27 25 0:24 /outer /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
28 25 0:25 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
"""


def _layout(mode: str) -> Layout:
    if mode == "v2":
        return parse_layout("28 25 0:25 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", "0::/me\n")
    return parse_layout(MOUNTINFO, "2:memory:/outer/me\n1:cpu,cpuacct:/me\n0::/\n")


def test_places_of_cgroups() -> None:
    mixed = _layout("hybrid")
    assert mixed.version == 1
    assert place_of(mixed, "/a/b", "id", Resources()).folders == {
        "cpu": "/sys/fs/cgroup/cpu,cpuacct/a/b",
        "cpuacct": "/sys/fs/cgroup/cpu,cpuacct/a/b",
        "memory": "/sys/fs/cgroup/memory/a/b",
    }
    assert "cpu" in place_of(mixed, "/a/b", "id", Resources(), ("blkio",)).folders  # which has no mount here
    assert place_of(mixed, "", "id", Resources()).folders["memory"] == "/sys/fs/cgroup/memory/me/id"
    pure = _layout("v2")
    assert pure.version == 2
    assert place_of(pure, "a", "id", Resources()).folders == {"": "/sys/fs/cgroup/me/a"}
    assert place_of(pure, "/a", "id", Resources()).join_files() == ("/sys/fs/cgroup/a/cgroup.procs",)


@pytest.mark.parametrize("path", ["system.slice:docker:abc", "/a/../../b"])
def test_cgroup_paths_that_are_refused(path: str) -> None:
    with pytest.raises(CgroupError):
        place_of(_layout("v2"), path, "id", Resources())


@pytest.mark.parametrize(
    ("content", "where"),
    [
        ({}, "linux.seccomp.defaultAction"),
        ({"defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 5}, "linux.seccomp.defaultErrnoRet"),
        ({"defaultAction": "SCMP_ACT_ALLOW", "flags": ["X"]}, "linux.seccomp.flags[0]"),
        (
            {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"action": "SCMP_ACT_LOG"}]},
            "linux.seccomp.syscalls[0].names",
        ),
    ],
)
def test_invalid_seccomp_profiles(content: dict[str, Any], where: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_profile(content)
    assert caught.value.path == where


@pytest.mark.parametrize(
    ("word", "number"),
    [("9", 9), ("KILL", 9), ("SIGKILL", 9), ("sigterm", 15), ("RTMIN+3", 37), ("SIGRTMAX-1", 63), ("0", 0)],
)
def test_signals(word: str, number: int) -> None:
    assert parse_signal(word) == number


@pytest.mark.parametrize("word", ["", "65", "-1", "NOTHING", "TERM+x", "SIG"])
def test_signals_that_there_are_not(word: str) -> None:
    with pytest.raises(UsageError):
        parse_signal(word)


@pytest.mark.parametrize("id", ["", ".", "..", "a/b", "a b", "ä", "x" * 300, "a\n"])
def test_ids_that_could_not_be_file_names(id: str) -> None:
    with pytest.raises(InvalidArgument):
        check_id(id)


@pytest.mark.parametrize("value", [{}, [], [1, -2.5, "x\n\u00e9\u2028", None, True, {"a": [{}]}], "", 0])
@pytest.mark.parametrize("indent", ["", "  "])
def test_documents_survive_a_round_trip(value: Any, indent: str) -> None:
    assert document.parse(f" {document.render(value, indent)}\n") == value


@pytest.mark.parametrize("text", ["", "{", '{"a" 1}', "[1] 2", "nul", "[" * 100000])
def test_what_is_not_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        document.parse(text)


class Point(Record):
    x: int
    y: int = 2


def test_records() -> None:
    assert Point(1) == Point(1, y=2) != Point(1, 3)
    assert changed(Point(1), y=5) == Point(1, 5)
    assert repr(Point(1)) == "Point(x=1, y=2)"
    assert hash(Point(1)) == hash(Point(1, 2))
    with pytest.raises(AttributeError):
        Point(1).x = 3  # type: ignore[misc]
    for values, named in (((), {}), ((1, 2, 3), {}), ((1,), {"z": 1})):
        with pytest.raises(TypeError):
            Point(*values, **named)
