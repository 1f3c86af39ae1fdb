"""From CRI to config.json: what a container is asked to be, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cri_api.v1 import api_pb2 as api

from harness.linux.capabilities import BITS
from harness.linux.mounts import parse_mountinfo
from harness.minirt.container.spec import parse_spec
from harness.minirt.cri.host import HostFacts
from harness.minirt.cri.mounts import mount_of
from harness.minirt.cri.options import Options, parse_options
from harness.minirt.cri.podfacts import PodFacts
from harness.minirt.cri.resources import describe_resources, translate_resources
from harness.minirt.cri.security import DEFAULT_CAPABILITIES
from harness.minirt.cri.stopping import parse_signal, signal_of_number, stop_signal
from harness.minirt.cri.translate import translate
from harness.minirt.cri.users import Accounts, resolve_user
from harness.minirt.errors import InvalidArgument, Unsupported, UsageError

ACCOUNTS = Accounts(
    "root:x:0:0::/root:/bin/sh\nalice:x:1000:1001::/home/alice:/bin/sh\nbroken line\n",
    "root:x:0:\nsailors:x:2000:bob,alice\nstaff:x:50:alice\n",
)
HOST = HostFacts(capabilities=(1 << 41) - 1, cgroup_v2=False, lowest_oom_score=0)
NODE, CONTAINER, TARGET = api.NamespaceMode.NODE, api.NamespaceMode.CONTAINER, api.NamespaceMode.TARGET


def make(
    config: Any = None, image: Any = None, pod: Any = None, host: HostFacts = HOST, user: Any = None, **facts: Any
) -> dict[str, Any]:
    pod = pod or api.PodSandboxConfig()
    where = PodFacts(pod, "name", "/pods/p", "/state/p/ns", "/state/p/shm", user)
    config = config or api.ContainerConfig(command=["x"])
    places: dict[str, Any] = {
        "volumes": {},
        "layers": lambda _: ("/layers/2", "/layers/1"),
        "rootfs": "/r",
        "cgroup": "/c",
    }
    spec, _ = translate(config, {"config": image or {}}, ACCOUNTS, where, host, **places | facts)
    parse_spec(spec, "/bundle")  # the core takes whatever comes out of here
    return spec


def secured(**facts: Any) -> Any:
    security = api.LinuxContainerSecurityContext(**facts)
    return api.ContainerConfig(command=["x"], linux=api.LinuxContainerConfig(security_context=security))


@pytest.mark.parametrize(
    ("command", "args", "expected"),
    [
        ([], [], ["entry", "cmd"]),
        (["c"], [], ["c"]),
        ([], ["a"], ["entry", "a"]),
        (["c"], ["a"], ["c", "a"]),
    ],
)
def test_command(command: list[str], args: list[str], expected: list[str]) -> None:
    config = api.ContainerConfig(command=command, args=args)
    assert make(config, {"Entrypoint": ["entry"], "Cmd": ["cmd"]})["process"]["args"] == expected


def test_no_command() -> None:
    with pytest.raises(InvalidArgument, match="command"):
        make(api.ContainerConfig())


def test_environment_and_folder() -> None:
    config = api.ContainerConfig(command=["x"], envs=[api.KeyValue(key="B", value="config"), api.KeyValue(key="C")])
    process = make(config, {"Env": ["A=1", "B=image", "PATH=/bin"], "WorkingDir": "/work"})["process"]
    env = dict(entry.split("=", 1) for entry in process["env"])
    assert env == {"A": "1", "B": "config", "C": "", "PATH": "/bin", "HOSTNAME": "name", "HOME": "/root"}
    assert process["cwd"] == "/work"
    with pytest.raises(InvalidArgument, match="working_dir"):
        make(api.ContainerConfig(command=["x"], working_dir="relative"))


def test_capabilities() -> None:
    def granted(**facts: Any) -> set[str]:
        return set(make(secured(capabilities=api.Capability(**facts)))["process"]["capabilities"]["bounding"])

    assert granted() == set(DEFAULT_CAPABILITIES)
    assert granted(add_capabilities=["sys_admin"], drop_capabilities=["CAP_KILL"]) == (
        {*DEFAULT_CAPABILITIES, "CAP_SYS_ADMIN"} - {"CAP_KILL"}
    )
    assert granted(add_capabilities=["ALL"]) == {name for name, bit in BITS.items() if bit < 41}
    assert granted(drop_capabilities=["ALL"]) == set()
    assert granted(add_capabilities=["NET_ADMIN"], drop_capabilities=["ALL"]) == {"CAP_NET_ADMIN"}
    found = make(secured(capabilities=api.Capability(add_ambient_capabilities=["NET_RAW"])))["process"]["capabilities"]
    assert found["inheritable"] == found["ambient"] == ["CAP_NET_RAW"]
    assert set(found["permitted"]) == set(DEFAULT_CAPABILITIES)
    with pytest.raises(InvalidArgument, match="CAP_FLY"):
        granted(add_capabilities=["FLY"])


def test_privileged() -> None:
    config = secured(privileged=True)
    with pytest.raises(InvalidArgument, match="privileged pod"):
        make(config)
    pod = api.PodSandboxConfig(
        linux=api.LinuxPodSandboxConfig(security_context=api.LinuxSandboxSecurityContext(privileged=True))
    )
    spec = make(config, pod=pod)
    assert "maskedPaths" not in spec["linux"]
    assert {device["path"] for device in spec["linux"]["devices"]} >= {"/dev/null", "/dev/zero"}
    assert spec["linux"]["resources"]["devices"] == [{"allow": True, "access": "rwm"}]
    assert "rw" in next(mount for mount in spec["mounts"] if mount["destination"] == "/sys")["options"]


def test_namespaces() -> None:
    def found(of_pod: Any = None, **options: Any) -> dict[str, str]:
        pod = api.PodSandboxConfig()
        pod.linux.security_context.namespace_options.MergeFrom(of_pod or api.NamespaceOption())
        config = secured(namespace_options=api.NamespaceOption(**options))
        rows = make(config, pod=pod, target_pid=42)["linux"]["namespaces"]
        return {row["type"]: row.get("path", "") for row in rows}

    ns = "/state/p/ns"
    assert found(pid=CONTAINER) == {
        "mount": "", "pid": "", "ipc": f"{ns}/ipc", "network": f"{ns}/net", "uts": f"{ns}/uts",
    }  # fmt: skip
    shared = {"mount": "", "pid": f"{ns}/pid", "ipc": f"{ns}/ipc", "network": f"{ns}/net", "uts": f"{ns}/uts"}
    assert found() == shared
    # A container is where its pod is, whatever it says itself: so it is in containerd.
    assert found(pid=NODE, ipc=NODE, network=NODE) == shared
    on_host = api.NamespaceOption(network=NODE, pid=NODE, ipc=NODE)
    assert found(on_host) == {"mount": ""}
    assert found(on_host, pid=CONTAINER) == {"mount": "", "pid": ""}
    assert found(on_host, pid=TARGET, target_id="x") == {"mount": "", "pid": "/proc/42/ns/pid"}
    assert any(row["type"] == "cgroup" for row in make(host=HostFacts(0, True, None))["linux"]["namespaces"])


def test_mounts(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir()
    (tmp_path / "link").symlink_to(real)
    config = api.ContainerConfig(
        command=["x"],
        mounts=[
            api.Mount(container_path="/a/b", host_path=str(tmp_path / "link"), readonly=True, recursive_read_only=True),
            api.Mount(container_path="/a", host_path=str(tmp_path / "absent/below")),
            api.Mount(container_path="/etc/hosts", host_path=str(real)),
        ],
    )
    spec = make(config)
    mounts = {mount["destination"]: mount for mount in spec["mounts"]}
    assert mounts["/a/b"]["source"] == str(real)
    assert mounts["/a/b"]["options"] == ["rbind", "rprivate", "rro"]
    assert (tmp_path / "absent/below").is_dir()
    assert mounts["/a"]["options"] == ["rbind", "rprivate", "rw"]
    assert [row["destination"] for row in spec["mounts"]].count("/etc/hosts") == 1
    order = [row["destination"] for row in spec["mounts"]]
    assert order.index("/a") < order.index("/a/b")
    assert "rootfsPropagation" not in spec["linux"]


def test_mounts_over_defaults(tmp_path: Path) -> None:
    config = api.ContainerConfig(
        command=["x"],
        mounts=[api.Mount(container_path=path, host_path=str(tmp_path)) for path in ("/dev", "etc/", "/a/../b")],
    )
    order = [row["destination"] for row in make(config, volumes={"/b": "/volumes/0", "data": "/volumes/1"})["mounts"]]
    assert [path for path in order if path.startswith("/dev")] == ["/dev", "/dev/shm"]
    assert order.index("/etc") < order.index("/etc/hosts")
    assert order.count("/b") == 1  # what the client mounts wins over what the image declares
    assert "/data" in order


def test_images_as_mounts() -> None:
    def mount(**facts: Any) -> dict[str, Any]:
        image = api.ImageSpec(image="data")
        asked = api.Mount(**{"container_path": "/x", "readonly": True, "image": image, **facts})
        rows = make(api.ContainerConfig(command=["x"], mounts=[asked]))["mounts"]
        return next(row for row in rows if row["destination"] == "/x")

    assert mount(image_sub_path="a/b")["options"] == ["lowerdir=/layers/2:/layers/1", "ro", "X-mount.subdir=a/b"]
    refused: list[dict[str, Any]] = [
        {"readonly": False}, {"host_path": "/x"}, {"image_sub_path": "../x"}, {"image": api.ImageSpec()}
    ]  # fmt: skip
    for facts in refused:
        with pytest.raises(InvalidArgument):
            mount(**facts)


def test_the_mount_of_a_path() -> None:
    text = "".join(
        f"{number} 1 0:1 / {target} rw {marks}- tmpfs tmpfs rw\n"
        for number, (target, marks) in enumerate([("/", ""), ("/a", "shared:5 "), ("/a/b", "master:5 "), ("/a", "")])
    )
    mounts = parse_mountinfo(text)
    assert [mount_of(mounts, path).id for path in ("/ab", "/a/x", "/a/b/c", "/")] == [0, 3, 2, 0]


@pytest.mark.parametrize(
    "facts",
    [
        {"container_path": "", "host_path": "/x"},
        {"container_path": "/x", "host_path": "relative"},
        {"container_path": "/x", "host_path": "/etc", "recursive_read_only": True},
        {"container_path": "/x", "host_path": "/etc", "propagation": 9},
        {"container_path": "/", "host_path": "/etc"},
        {"container_path": "/x", "host_path": "/etc/passwd/below"},
        {"container_path": "/x", "host_path": "/etc", "readonly": True, "recursive_read_only": True, "propagation": 1},
        {"container_path": "/x", "host_path": "/etc", "image_sub_path": "y"},
        {"container_path": "/x\0", "host_path": "/etc"},
    ],
)
def test_mounts_that_are_refused(facts: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        make(api.ContainerConfig(command=["x"], mounts=[api.Mount(**facts)]))


def test_mapped_ids() -> None:
    rows = [api.IDMapping(container_id=0, host_id=70000, length=10)]
    mount = api.Mount(container_path="/x", host_path="/etc", uidMappings=rows)
    with pytest.raises(InvalidArgument, match="together"):
        make(api.ContainerConfig(command=["x"], mounts=[mount]))
    mount.gidMappings.extend(rows)
    spec = make(api.ContainerConfig(command=["x"], mounts=[mount]), user=((0, 70000, 10), (0, 80000, 10)))
    found = next(row for row in spec["mounts"] if row["destination"] == "/x")
    assert found["uidMappings"] == found["gidMappings"] == [{"containerID": 0, "hostID": 70000, "size": 10}]
    assert spec["linux"]["gidMappings"] == [{"containerID": 0, "hostID": 80000, "size": 10}]
    assert {"type": "user", "path": "/state/p/ns/user"} in spec["linux"]["namespaces"]


def test_resources() -> None:
    resources = api.LinuxContainerResources(
        cpu_shares=5, cpu_quota=6, cpu_period=7, memory_limit_in_bytes=8, oom_score_adj=-5, cpuset_cpus="0"
    )
    config = api.ContainerConfig(command=["x"], linux=api.LinuxContainerConfig(resources=resources))
    spec = make(config)
    assert spec["linux"]["resources"]["cpu"] == {"shares": 5, "quota": 6, "period": 7, "cpus": "0"}
    assert spec["linux"]["resources"]["memory"] == {"limit": 8, "swap": 8}
    assert spec["process"]["oomScoreAdj"] == 0  # as low as this machine lets us
    assert make(config, host=HostFacts(0, False, None))["process"]["oomScoreAdj"] == -5


def test_resources_change() -> None:
    asked = api.LinuxContainerResources
    huge = [api.HugepageLimit(page_size="2MB", limit=4)]
    first = translate_resources(asked(cpu_shares=5, memory_limit_in_bytes=8, hugepage_limits=huge), HOST)
    assert first == {
        "cpu": {"shares": 5}, "memory": {"limit": 8, "swap": 8}, "hugepageLimits": [{"pageSize": "2MB", "limit": 4}]
    }  # fmt: skip
    second = translate_resources(
        asked(cpu_quota=7, memory_limit_in_bytes=9, memory_swap_limit_in_bytes=20), HOST, first
    )
    assert second["cpu"] == {"shares": 5, "quota": 7}
    assert second["memory"] == {"limit": 9, "swap": 20}
    assert second["hugepageLimits"] == first["hugepageLimits"]
    told = describe_resources(second, -3)
    assert (told.cpu_shares, told.cpu_quota, told.memory_limit_in_bytes, told.memory_swap_limit_in_bytes) == (
        5,
        7,
        9,
        20,
    )
    assert (told.hugepage_limits[0].limit, told.oom_score_adj) == (4, -3)
    # kubelet asks for huge pages to be limited everywhere, also where the kernel cannot.
    plain = HostFacts(0, True, None, hugetlb=False, swap=False)
    assert translate_resources(asked(memory_limit_in_bytes=8, hugepage_limits=huge), plain) == {"memory": {"limit": 8}}
    unified = translate_resources(asked(unified={"memory.high": "5"}), plain, {"unified": {"cpu.idle": "1"}})
    assert unified == {"unified": {"cpu.idle": "1", "memory.high": "5"}}
    for resources, host in (
        (asked(unified={"memory.high": "5"}), HOST),
        (asked(unified={"cgroup.procs": "1"}), plain),
        (asked(unified={"../memory.high": "1"}), plain),
        (asked(memory_limit_in_bytes=-5), HOST),
        (asked(memory_limit_in_bytes=50, memory_swap_limit_in_bytes=20), HostFacts(0, True, None)),
        (asked(cpuset_cpus="0\0"), HOST),
    ):
        with pytest.raises(InvalidArgument):
            translate_resources(resources, host)


def test_devices() -> None:
    device = api.Device(container_path="/dev/mine", host_path="/dev/null", permissions="r")
    linux = make(api.ContainerConfig(command=["x"], devices=[device]))["linux"]
    assert [(row["path"], row["major"], row["minor"]) for row in linux["devices"]] == [("/dev/mine", 1, 3)]
    assert linux["resources"]["devices"][-1] == {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "r"}
    for path in ("/etc/passwd", "/dev/no-such-device"):
        with pytest.raises(InvalidArgument, match=path):
            make(api.ContainerConfig(command=["x"], devices=[api.Device(host_path=path)]))


def test_paths_and_root() -> None:
    linux = make()["linux"]
    assert (linux["maskedPaths"], linux["readonlyPaths"]) == ([], [])
    spec = make(secured(masked_paths=["/proc/own"], readonly_rootfs=True))
    assert spec["linux"]["maskedPaths"] == ["/proc/own"]
    assert spec["root"]["readonly"]


def test_seccomp(tmp_path: Path) -> None:
    kinds = api.SecurityProfile.ProfileType
    assert "seccomp" not in make(secured(seccomp=api.SecurityProfile(profile_type=kinds.Unconfined)))["linux"]
    assert "seccomp" in make(secured(seccomp=api.SecurityProfile(profile_type=kinds.RuntimeDefault)))["linux"]
    assert "seccomp" in make(secured(seccomp_profile_path="runtime/default"))["linux"]
    own = tmp_path / "profile.json"
    own.write_text('{"defaultAction": "SCMP_ACT_ALLOW"}')
    local = api.SecurityProfile(profile_type=kinds.Localhost, localhost_ref=str(own))
    assert make(secured(seccomp=local))["linux"]["seccomp"] == {"defaultAction": "SCMP_ACT_ALLOW"}
    own.write_text("{")
    with pytest.raises(InvalidArgument, match=r"profile\.json"):
        make(secured(seccomp=local))
    with pytest.raises(InvalidArgument):
        make(secured(seccomp_profile_path="nonsense"))
    for old in ("docker/default", "unconfined", f"localhost/{own}"):
        own.write_text('{"defaultAction": "SCMP_ACT_LOG"}')
        assert ("seccomp" in make(secured(seccomp_profile_path=old))["linux"]) is (old != "unconfined")
    for wrong in (
        api.SecurityProfile(profile_type=kinds.Localhost),
        api.SecurityProfile(profile_type=kinds.RuntimeDefault, localhost_ref="x"),
        api.SecurityProfile(profile_type=kinds.Localhost, localhost_ref=str(tmp_path / "absent.json")),
    ):
        with pytest.raises(InvalidArgument):
            make(secured(seccomp=wrong))


def test_selinux_options() -> None:
    config = secured(selinux_options=api.SELinuxOption(level="s0:c1,c2"))
    make(config)  # means nothing here
    with pytest.raises(Unsupported, match="selinux"):
        make(config, host=HostFacts(0, False, None, selinux=True))
    make(host=HostFacts(0, False, None, selinux=True))


def test_apparmor_where_there_is_none() -> None:
    kinds = api.SecurityProfile.ProfileType
    for facts in (
        {"apparmor": api.SecurityProfile(profile_type=kinds.Localhost, localhost_ref="mine")},
        {"apparmor": api.SecurityProfile(profile_type=kinds.RuntimeDefault)},
        {"apparmor_profile": "localhost/mine"},
        {"apparmor_profile": "runtime/default"},
    ):
        with pytest.raises(Unsupported, match="apparmor"):
            make(secured(**facts))
    assert (
        "apparmorProfile" not in make(secured(apparmor=api.SecurityProfile(profile_type=kinds.Unconfined)))["process"]
    )
    assert "apparmorProfile" not in make(secured(apparmor_profile="unconfined"))["process"]
    with pytest.raises(InvalidArgument):
        make(secured(apparmor_profile="nonsense"))


@pytest.mark.parametrize(
    ("user", "group", "expected"),
    [
        ("", "", (0, 0, (0,))),
        ("alice", "", (1000, 1001, (50, 1001, 2000))),
        ("1000", "", (1000, 1001, (50, 1001, 2000))),
        ("1000:2000", "", (1000, 2000, (50, 2000))),
        ("alice:sailors", "", (1000, 2000, (50, 2000))),
        ("4242", "", (4242, 0, (0,))),
        ("alice", "7", (1000, 7, (7, 50, 2000))),
    ],
)
def test_users(user: str, group: str, expected: tuple[int, int, tuple[int, ...]]) -> None:
    found = resolve_user(ACCOUNTS, user, group)
    assert (found.uid, found.gid, found.groups) == expected


def test_users_strict_and_unknown() -> None:
    assert resolve_user(ACCOUNTS, "alice", supplemental=[9], merge=False).groups == (9, 1001)
    for user in ("nobody-here", "-1", "99999999999", "alice:no-group"):
        with pytest.raises(InvalidArgument):
            resolve_user(ACCOUNTS, user)
    with pytest.raises(InvalidArgument, match="run_as_group"):
        make(secured(run_as_group=api.Int64Value(value=1)))


@pytest.mark.parametrize(
    ("text", "number"), [("SIGTERM", 15), ("term", 15), ("9", 9), ("SIGRTMIN+3", 37), ("RTMAX-1", 63), ("SIGPOLL", 29)]
)
def test_signals(text: str, number: int) -> None:
    assert parse_signal(text) == number


def test_signals_in_the_words_of_the_api() -> None:
    for number in range(1, 65):
        found = signal_of_number(number)
        if number in (32, 33):  # the C library's own
            assert found == api.Signal.RUNTIME_DEFAULT
        else:
            assert stop_signal(api.ContainerConfig(stop_signal=found), {}) == number
    assert stop_signal(api.ContainerConfig(), {"StopSignal": "USR1"}) == 10
    assert stop_signal(api.ContainerConfig(stop_signal=api.Signal.SIGHUP), {"StopSignal": "USR1"}) == 1


@pytest.mark.parametrize("text", ["", "SIGNOTHING", "0", "99", "SIG"])
def test_signals_that_are_none(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_signal(text)


def test_options(tmp_path: Path) -> None:
    config = tmp_path / "minirt.toml"
    config.write_text('root = "/r"\ncni-conf-dir = "/c"\nlog_level = "debug"\n')
    found = parse_options(["--config", str(config), "--root=/mine", "--state", "/s"])
    assert found == Options(root="/mine", state="/s", cni_conf_dir="/c", log_level="debug")
    for words in (
        ["--nothing"],
        ["--root"],
        ["--root", "relative"],
        ["--listen", "tcp://x"],
        ["--log-level", "loud"],
        ["--streaming-address", "nowhere"],
        ["word"],
    ):
        with pytest.raises(UsageError):
            parse_options(words)
    for text in ("unknown = 1", "root = 5", "= x"):
        config.write_text(text)
        with pytest.raises(UsageError, match=r"minirt\.toml"):
            parse_options(["--config", str(config)])
    with pytest.raises(UsageError):
        parse_options(["--config", str(tmp_path / "absent")])
