"""From CRI to config.json: what a container is asked to be, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cri_api.v1 import api_pb2 as api

from harness.linux.capabilities import BITS
from harness.minirt.container.spec import parse_spec
from harness.minirt.cri.containers import parse_signal
from harness.minirt.cri.options import Options, parse_options
from harness.minirt.cri.translate import DEFAULT_CAPABILITIES, MASKED_PATHS, HostFacts, PodFacts, translate
from harness.minirt.cri.users import Accounts, resolve_user
from harness.minirt.errors import InvalidArgument, Unsupported, UsageError

ACCOUNTS = Accounts(
    "root:x:0:0::/root:/bin/sh\nalice:x:1000:1001::/home/alice:/bin/sh\nbroken line\n",
    "root:x:0:\nsailors:x:2000:bob,alice\nstaff:x:50:alice\n",
)
HOST = HostFacts(capabilities=(1 << 41) - 1, cgroup_v2=False, lowest_oom_score=0)
NODE, CONTAINER, TARGET = api.NamespaceMode.NODE, api.NamespaceMode.CONTAINER, api.NamespaceMode.TARGET


def make(
    config: Any = None, image: Any = None, pod: Any = None, host: HostFacts = HOST, **facts: Any
) -> dict[str, Any]:
    pod = pod or api.PodSandboxConfig()
    where = PodFacts(pod, "name", "/pods/p", "/state/p/ns", "/state/p/shm")
    config = config or api.ContainerConfig(command=["x"])
    spec, _ = translate(config, {"config": image or {}}, ACCOUNTS, where, host, rootfs="/r", cgroup="/c", **facts)
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
    def found(pod_network: int = 0, **options: Any) -> dict[str, str]:
        pod = api.PodSandboxConfig()
        pod.linux.security_context.namespace_options.network = pod_network  # type: ignore[assignment]
        config = secured(namespace_options=api.NamespaceOption(**options))
        rows = make(config, pod=pod, target_pid=42)["linux"]["namespaces"]
        return {row["type"]: row.get("path", "") for row in rows}

    ns = "/state/p/ns"
    assert found(pid=CONTAINER) == {
        "mount": "", "pid": "", "ipc": f"{ns}/ipc", "network": f"{ns}/net", "uts": f"{ns}/uts",
    }  # fmt: skip
    assert found(NODE, pid=NODE, ipc=NODE) == {"mount": ""}
    assert found(NODE, pid=TARGET, target_id="x") == {"mount": "", "pid": "/proc/42/ns/pid", "ipc": f"{ns}/ipc"}
    assert any(row["type"] == "cgroup" for row in make(host=HostFacts(0, True, None))["linux"]["namespaces"])


def test_mounts(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir()
    (tmp_path / "link").symlink_to(real)
    config = api.ContainerConfig(
        command=["x"],
        mounts=[
            api.Mount(container_path="/a/b", host_path=str(tmp_path / "link"), readonly=True, recursive_read_only=True),
            api.Mount(container_path="/a", host_path=str(tmp_path / "absent/below"), propagation=1),
            api.Mount(container_path="/etc/hosts", host_path=str(real), propagation=2),
        ],
    )
    spec = make(config)
    mounts = {mount["destination"]: mount for mount in spec["mounts"]}
    assert mounts["/a/b"]["source"] == str(real)
    assert mounts["/a/b"]["options"] == ["rbind", "rprivate", "ro", "rro"]
    assert (tmp_path / "absent/below").is_dir()
    assert mounts["/a"]["options"] == ["rbind", "rslave", "rw"]
    assert [row["destination"] for row in spec["mounts"]].count("/etc/hosts") == 1
    order = [row["destination"] for row in spec["mounts"]]
    assert order.index("/a") < order.index("/a/b")
    assert spec["linux"]["rootfsPropagation"] == "rshared"


@pytest.mark.parametrize(
    "facts",
    [
        {"container_path": "", "host_path": "/x"},
        {"container_path": "/x", "host_path": "relative"},
        {"container_path": "/x", "host_path": "/etc", "recursive_read_only": True},
        {"container_path": "/x", "host_path": "/etc", "propagation": 9},
    ],
)
def test_mounts_that_are_refused(facts: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        make(api.ContainerConfig(command=["x"], mounts=[api.Mount(**facts)]))


def test_id_mapped_mounts_are_not_there_yet() -> None:
    mount = api.Mount(container_path="/x", host_path="/etc", uidMappings=[api.IDMapping(length=1)])
    with pytest.raises(Unsupported):
        make(api.ContainerConfig(command=["x"], mounts=[mount]))


def test_resources() -> None:
    resources = api.LinuxContainerResources(
        cpu_shares=5, cpu_quota=6, cpu_period=7, memory_limit_in_bytes=8, oom_score_adj=-5, cpuset_cpus="0"
    )
    config = api.ContainerConfig(command=["x"], linux=api.LinuxContainerConfig(resources=resources))
    spec = make(config)
    assert spec["linux"]["resources"]["cpu"] == {"shares": 5, "quota": 6, "period": 7, "cpus": "0"}
    assert spec["linux"]["resources"]["memory"] == {"limit": 8}
    assert spec["process"]["oomScoreAdj"] == 0  # as low as this machine lets us
    assert make(config, host=HostFacts(0, False, None))["process"]["oomScoreAdj"] == -5


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
    assert linux["maskedPaths"] == list(MASKED_PATHS)
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


@pytest.mark.parametrize(
    ("user", "group", "expected"),
    [
        ("", "", (0, 0, (0,))),
        ("alice", "", (1000, 1001, (1001, 2000, 50))),
        ("1000", "", (1000, 1001, (1001, 2000, 50))),
        ("1000:2000", "", (1000, 2000, (2000, 50))),
        ("alice:sailors", "", (1000, 2000, (2000, 50))),
        ("4242", "", (4242, 0, (0,))),
        ("alice", "7", (1000, 7, (7, 2000, 50))),
    ],
)
def test_users(user: str, group: str, expected: tuple[int, int, tuple[int, ...]]) -> None:
    found = resolve_user(ACCOUNTS, user, group)
    assert (found.uid, found.gid, found.groups) == expected


def test_users_strict_and_unknown() -> None:
    assert resolve_user(ACCOUNTS, "alice", supplemental=[9], merge=False).groups == (1001, 9)
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
