"""What a container is given, seen from inside it: its user, folders, mounts, devices and privileges."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cri_api.v1 import api_pb2 as api
from minirt_daemon import Daemon, running
from minirt_registry import busybox_layer, entry, serving_registry, tar_of

from harness.clock import wait_until
from harness.linux import syscalls
from harness.linux.capabilities import BITS, parse_status

FOREVER = "echo up; while :; do sleep 0.1; done"
IMAGES: dict[str, str] = {}
CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {"Cmd": ["sh", "-c", "echo cmd"]},
    "entry": {"Entrypoint": ["echo", "entry"], "Cmd": ["cmd"], "WorkingDir": "/made/by/image"},
    "alice": {"User": "alice", "StopSignal": "SIGUSR1"},
    "alice-sailors": {"User": "alice:sailors"},
    "1000": {"User": "1000"},
    "4242-7": {"User": "4242:7"},
    "nobody": {"User": "nobody-here"},
    "no-group": {"User": "alice:no-group"},
    "volumes": {"Volumes": {"/data": {}, "fresh": {}}},
    "two-layers": {"Labels": {"to": "be removed"}},
}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon for all tests, with `IMAGES` in it."""
    data = tar_of(
        entry("data", b"5", uid=1000, gid=2000, mode=0o750), entry("data/link", b"2", linkname="file"),
        ("data/file", b"of the image"), ("data/below/", b""), ("data/below/deep", b"deep"),
    )  # fmt: skip
    with running(Daemon(tmp_path_factory.mktemp("minirt"))) as daemon:
        with serving_registry() as registry:
            for name, config in CONFIGS.items():
                registry.add_image(name, "1", [busybox_layer(), data], {"Env": ["PATH=/bin"], **config})
            registry.add_image("single", "1", [data])
            registry.add_image(
                "one-layer",
                "1",
                [tar_of(("data/below/", b""), ("data/below/deep", b"deep"), ("data/file", b"of the image"))],
            )
            for name in (*CONFIGS, "single", "one-layer"):
                IMAGES[name] = daemon.pull(f"{registry.address}/{name}:1")
        yield daemon
        for pod in daemon.runtime.ListPodSandbox(api.ListPodSandboxRequest()).items:
            daemon.remove_pod(pod.id)


@pytest.fixture
def pod(daemon: Daemon, request: pytest.FixtureRequest) -> Iterator[str]:
    """A pod on the machine's network, gone afterwards with all that its containers had."""
    id = daemon.pod(re.sub(r"\W", "-", request.node.name))
    yield id
    daemon.remove_pod(id)
    left = {row.id for row in daemon.runtime.ListContainers(api.ListContainersRequest()).containers}
    for folder in (daemon.root, daemon.state):
        assert {path.name for path in (folder / "containers").iterdir()} == left


@pytest.fixture
def privileged_pod(daemon: Daemon) -> Iterator[str]:
    config = daemon.pod_config("privileged")
    config.linux.security_context.privileged = True
    id = daemon.runtime.RunPodSandbox(api.RunPodSandboxRequest(config=config)).pod_sandbox_id
    yield str(id)
    daemon.remove_pod(id)


def box(daemon: Daemon, pod: str, image: str = "plain", script: str = FOREVER, **facts: Any) -> str:
    return daemon.run(pod, IMAGES[image], script, **facts)


def said(daemon: Daemon, id: str, script: str) -> str:
    """What a script prints in a running container; it has to succeed."""
    done = daemon.exec(id, "sh", "-c", script)
    assert done.exit_code == 0, done.stderr.decode()
    return str(done.stdout.decode())


def fails(daemon: Daemon, id: str, script: str) -> bool:
    return bool(daemon.exec(id, "sh", "-c", script).exit_code)


def refused(call: Any, *words: Any, **facts: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as error:
        call(*words, **facts)
    return error.value.code(), error.value.details()  # type: ignore[attr-defined]


# -- the process ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "args", "expected"),
    [([], [], "entry cmd"), ([], ["arg"], "entry arg"), (["echo", "x"], [], "x"), (["echo"], ["y"], "y")],
)
def test_command_and_arguments(daemon: Daemon, pod: str, command: list[str], args: list[str], expected: str) -> None:
    config = api.ContainerConfig(
        metadata=api.ContainerMetadata(name="box"), image=api.ImageSpec(image=IMAGES["entry"]), log_path="args.log",
        command=command, args=args,
    )  # fmt: skip
    config.linux.security_context.namespace_options.CopyFrom(api.NamespaceOption(network=2, pid=1))
    request = api.CreateContainerRequest(pod_sandbox_id=pod, config=config)
    id = daemon.runtime.CreateContainer(request).container_id
    daemon.start_container(id)
    assert daemon.wait_exited(id).reason == "Completed"
    assert daemon.log_lines("args") == [("stdout", "F", expected)]
    (daemon.logs / "args.log").unlink()


def test_the_working_folder_is_made(daemon: Daemon, pod: str) -> None:
    assert said(daemon, box(daemon, pod, "entry"), "busybox pwd") == "/made/by/image\n"
    own = box(daemon, pod, "entry", name="own", working_dir="/also/made")
    assert said(daemon, own, "busybox pwd; ls -ld .").startswith("/also/made\ndrwxr-xr-x")


@pytest.mark.parametrize(
    ("image", "security", "expected"),
    [
        ("plain", {}, (0, 0, [0])),
        ("alice", {}, (1000, 1000, [1000, 2000])),
        ("1000", {}, (1000, 1000, [1000, 2000])),
        ("alice-sailors", {}, (1000, 2000, [2000])),
        ("4242-7", {}, (4242, 7, [7])),
        ("plain", {"run_as_username": "alice"}, (1000, 1000, [1000, 2000])),
        ("alice", {"run_as_user": api.Int64Value(value=0)}, (0, 0, [0])),
        (
            "plain",
            {"run_as_user": api.Int64Value(value=1000), "run_as_group": api.Int64Value(value=5)},
            (1000, 5, [5, 2000]),
        ),
        ("alice", {"supplemental_groups": [9, 8]}, (1000, 1000, [8, 9, 1000, 2000])),
        (
            "alice",
            {"supplemental_groups": [9], "supplemental_groups_policy": api.SupplementalGroupsPolicy.Strict},
            (1000, 1000, [9, 1000]),
        ),
    ],
)
def test_users(
    daemon: Daemon, pod: str, image: str, security: dict[str, Any], expected: tuple[int, int, list[int]]
) -> None:
    id = box(daemon, pod, image, security=security)
    status = Path(f"/proc/{info(daemon, id)['pid']}/status").read_text()
    facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    inside = (int(facts["Uid"].split()[0]), int(facts["Gid"].split()[0]), sorted(map(int, facts["Groups"].split())))
    assert inside == expected
    user = daemon.status(id).user.linux
    assert (user.uid, user.gid, list(user.supplemental_groups)) == expected
    assert said(daemon, id, "id -u").strip() == str(expected[0])


def info(daemon: Daemon, id: str) -> dict[str, Any]:
    answer = daemon.runtime.ContainerStatus(api.ContainerStatusRequest(container_id=id, verbose=True))
    found: dict[str, Any] = json.loads(answer.info["info"])
    return found


def test_users_that_are_not_there(daemon: Daemon, pod: str) -> None:
    for image, security in (
        ("nobody", {}),
        ("no-group", {}),
        ("plain", {"run_as_username": "nobody-here"}),
        ("plain", {"run_as_user": api.Int64Value(value=-1)}),
        ("plain", {"run_as_group": api.Int64Value(value=1)}),
        ("plain", {"supplemental_groups": [-1]}),
    ):
        code, _ = refused(daemon.create, pod, IMAGES[image], "true", security=security)
        assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert list((daemon.root / "containers").iterdir()) == []


# -- mounts --------------------------------------------------------------------------------------------------------------


def test_volumes_that_an_image_declares(daemon: Daemon, pod: str, tmp_path: Path) -> None:
    id = box(daemon, pod, "volumes", security={"readonly_rootfs": True})
    assert said(daemon, id, "cat /data/link /data/below/deep") == "of the imagedeep"
    assert said(daemon, id, "busybox stat -c '%u:%g %a' /data") == "1000:2000 750\n"
    assert said(daemon, id, "echo mine > /data/file; echo x > /fresh/x; cat /data/file") == "mine\n"
    assert fails(daemon, id, "echo x > /etc/x")
    other = box(daemon, pod, "volumes", name="other")
    assert said(daemon, other, "cat /data/file") == "of the image"
    own = [api.Mount(container_path="/data", host_path=str(tmp_path))]
    covered = box(daemon, pod, "volumes", name="covered", mounts=own)
    assert said(daemon, covered, "ls /data") == ""


@pytest.mark.parametrize("image", ["one-layer", "two-layers"])
def test_an_image_as_a_mount(daemon: Daemon, pod: str, image: str) -> None:
    spec = api.ImageSpec(image=IMAGES[image])
    mounts = [
        api.Mount(container_path="/whole", image=spec, readonly=True),
        api.Mount(container_path="/part", image=spec, readonly=True, image_sub_path="data/below"),
    ]
    id = box(daemon, pod, mounts=mounts)
    assert said(daemon, id, "cat /whole/data/file /part/deep; ls /part") == "of the imagedeepdeep\n"
    for path in ("/whole/data/file", "/part/deep", "/part/new"):
        assert fails(daemon, id, f"echo x > {path}")
    assert len(daemon.status(id).mounts) == 2
    # What is mounted stays, whatever becomes of the image's name and of the daemon.
    later = daemon.create(pod, IMAGES["plain"], FOREVER, "later", mounts=mounts)
    name = daemon.images.ImageStatus(api.ImageStatusRequest(image=spec)).image.repo_tags[0]
    daemon.images.RemoveImage(api.RemoveImageRequest(image=api.ImageSpec(image=name)))
    daemon.end(signal.SIGKILL)
    daemon.start()
    daemon.start_container(later)
    assert said(daemon, later, "cat /part/deep") == "deep"
    absent = [api.Mount(container_path="/x", image=api.ImageSpec(image="localhost:1/absent:1"), readonly=True)]
    assert refused(daemon.create, pod, IMAGES["plain"], "true", "absent", mounts=absent)[0] == grpc.StatusCode.NOT_FOUND
    outside = [api.Mount(container_path="/x", image=spec, readonly=True, image_sub_path="no/such/folder")]
    with pytest.raises(grpc.RpcError):
        daemon.run(pod, IMAGES["plain"], "true", "outside", mounts=outside)


def test_images_in_a_user_namespace(daemon: Daemon) -> None:
    (daemon.top / "net.d").mkdir()
    plugins = [{"type": "loopback"}]
    (daemon.top / "net.d/10.conflist").write_text(json.dumps({"cniVersion": "1.0.0", "name": "lo", "plugins": plugins}))
    mapping = [api.IDMapping(container_id=0, host_id=200000, length=65536)]
    user = api.UserNamespace(mode=api.NamespaceMode.POD, uids=mapping, gids=mapping)
    config = daemon.pod_config("user", network=api.NamespaceMode.POD)
    config.linux.security_context.namespace_options.userns_options.CopyFrom(user)
    pod = daemon.runtime.RunPodSandbox(api.RunPodSandboxRequest(config=config)).pod_sandbox_id
    options = api.NamespaceOption(pid=api.NamespaceMode.CONTAINER, userns_options=user)
    mounts = [
        api.Mount(
            container_path=f"/{name}", image=api.ImageSpec(image=IMAGES[name]), image_sub_path=part, readonly=True
        )
        for name, part in (("single", ""), ("volumes", "data"))
    ]
    id = box(daemon, pod, "volumes", namespaces=options, mounts=mounts)
    assert said(daemon, id, "cat /proc/self/uid_map").split() == ["0", "200000", "65536"]
    paths = "/data /data/file /single/data /single/data/file /volumes /volumes/file"
    assert said(daemon, id, f"busybox stat -c %u:%g {paths}").split() == ["1000:2000", "0:0"] * 3
    assert said(daemon, id, "cat /data/file /single/data/link /volumes/below/deep") == "of the imageof the imagedeep"
    assert said(daemon, id, "echo mine > /data/mine; busybox stat -c %u /data/mine") == "0\n"
    for path in ("/single/data/file", "/volumes/file", "/volumes/new"):
        assert fails(daemon, id, f"echo x > {path}")
    daemon.remove_pod(pod)


@pytest.fixture
def shared_folder(tmp_path: Path) -> Iterator[Path]:
    """A mount of its own that is shared."""
    folder = tmp_path / "shared"
    folder.mkdir()
    syscalls.mount("minirt-test", str(folder), "tmpfs", 0, "size=64k")
    try:
        syscalls.mount(None, str(folder), None, syscalls.MS_SHARED)
        (folder / "host").mkdir()
        (folder / "inside").mkdir()
        yield folder
    finally:
        syscalls.umount2(str(folder), syscalls.MNT_DETACH)


def test_mounts_that_propagate(daemon: Daemon, privileged_pod: str, shared_folder: Path, tmp_path: Path) -> None:
    names = {api.PROPAGATION_PRIVATE: "private", api.PROPAGATION_HOST_TO_CONTAINER: "slave"}
    names[api.PROPAGATION_BIDIRECTIONAL] = "shared"
    ids = {
        name: box(
            daemon, privileged_pod, name=name, security={"privileged": True},
            mounts=[api.Mount(container_path="/m", host_path=str(shared_folder), propagation=kind)],
        )
        for kind, name in names.items()
    }  # fmt: skip
    syscalls.mount("minirt-test", str(shared_folder / "host"), "tmpfs", 0, "size=64k")
    (shared_folder / "host/file").write_text("x")
    seen = {name for name, id in ids.items() if not fails(daemon, id, "cat /m/host/file")}
    assert seen == {"slave", "shared"}
    for name in ("private", "slave", "shared"):
        script = f"mount -t tmpfs none /m/inside && echo {name} > /m/inside/file"
        assert not fails(daemon, ids[name], script)
        assert (shared_folder / "inside/file").exists() is (name == "shared")
    syscalls.umount2(str(shared_folder / "inside"), syscalls.MNT_DETACH)
    syscalls.umount2(str(shared_folder / "host"), syscalls.MNT_DETACH)
    alone = tmp_path / "alone"
    alone.mkdir()
    syscalls.mount("minirt-test", str(alone), "tmpfs", 0, "size=64k")
    try:
        syscalls.mount(None, str(alone), None, syscalls.MS_PRIVATE)
        for kind in (api.PROPAGATION_HOST_TO_CONTAINER, api.PROPAGATION_BIDIRECTIONAL):
            mounts = [api.Mount(container_path="/m", host_path=str(alone), propagation=kind)]
            code, text = refused(daemon.create, privileged_pod, IMAGES["plain"], "true", "alone", mounts=mounts)
            assert code == grpc.StatusCode.FAILED_PRECONDITION
            assert "it is not a shared" in text
    finally:
        syscalls.umount2(str(alone), syscalls.MNT_DETACH)


def test_where_mounts_lead(daemon: Daemon, pod: str, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/file").write_text("real")
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "hosts").write_text("own hosts")
    mounts = [
        api.Mount(container_path="/a/b/c", host_path=str(tmp_path / "real"), readonly=True),
        api.Mount(container_path="/a", host_path=str(tmp_path / "outer"), selinux_relabel=True),
        api.Mount(container_path="/linked", host_path=str(tmp_path / "link")),
        api.Mount(container_path="/etc/hosts", host_path=str(tmp_path / "hosts")),
        api.Mount(container_path="/data/link", host_path=str(tmp_path / "hosts")),
        api.Mount(container_path="/../../up", host_path=str(tmp_path / "real")),
        api.Mount(container_path="/dev/shm", host_path=str(tmp_path / "real")),
    ]
    id = box(daemon, pod, mounts=mounts)
    assert said(daemon, id, "cat /a/b/c/file /linked/file /up/file /dev/shm/file") == "real" * 4
    assert said(daemon, id, "cat /etc/hosts") == "own hosts"
    assert said(daemon, id, "cat /data/file") == "own hosts"  # through the image's own link, inside its root
    assert fails(daemon, id, "echo x > /a/b/c/new")
    assert (tmp_path / "outer/b/c").is_dir()


# -- devices and paths ---------------------------------------------------------------------------------------------------


def test_devices(daemon: Daemon, pod: str) -> None:
    devices = [
        api.Device(host_path="/dev/fuse", container_path="/dev/mine", permissions="r"),
        api.Device(host_path="/dev/tty0", container_path="/nodes/tty0", permissions="rwm"),
    ]
    id = box(daemon, pod, devices=devices)
    host = Path("/dev/fuse").stat().st_rdev
    shown = said(daemon, id, "busybox stat -c '%F %t %T' /dev/mine /nodes/tty0").splitlines()
    assert shown[0] == f"character special file {os.major(host):x} {os.minor(host):x}"
    assert shown[1] == "character special file 4 0"
    assert not fails(daemon, id, ": < /dev/mine")
    assert fails(daemon, id, ": > /dev/mine")
    # A node of another device can be made, but not opened.
    assert fails(daemon, id, "busybox mknod /kmsg c 1 11 && : < /kmsg")
    for name in ("null", "zero", "full", "random", "urandom", "tty"):
        assert not fails(daemon, id, f"busybox test -c /dev/{name}")


def test_paths_are_masked_as_asked(daemon: Daemon, pod: str) -> None:
    id = box(
        daemon,
        pod,
        security={"masked_paths": ["/proc/cmdline", "/data/below"], "readonly_paths": ["/data", "/proc/sys"]},
    )
    assert said(daemon, id, "ls /data/below; cat /proc/cmdline") == ""
    assert fails(daemon, id, "echo x > /data/x")
    unmasked = box(daemon, pod, name="unmasked")
    assert said(daemon, unmasked, "cat /data/below/deep; echo x > /data/x") == "deep"


def test_a_privileged_container(daemon: Daemon, privileged_pod: str, pod: str) -> None:
    everything = syscalls.capget()[0]
    id = box(daemon, privileged_pod, security={"privileged": True, "masked_paths": ["/etc"]})
    masks = parse_status(said(daemon, id, "cat /proc/self/status"))
    assert masks["effective"] == masks["bounding"] == everything
    assert "Seccomp:\t0" in said(daemon, id, "cat /proc/self/status")
    inside = set(said(daemon, id, "ls /dev").split())
    outside = {path.name for path in Path("/dev").iterdir() if stat.S_ISBLK(path.lstat().st_mode)}
    assert outside <= inside
    assert not fails(daemon, id, ": < /dev/kmsg")
    mounts = said(daemon, id, "cat /proc/mounts")
    assert " /sys sysfs rw" in mounts
    assert not re.search(r" /sys/fs/cgroup/?\S* \S+ ro", mounts)
    assert not fails(daemon, id, "mount -t tmpfs none /tmp")
    assert "passwd" in said(daemon, id, "ls /etc")
    code, text = refused(daemon.create, pod, IMAGES["plain"], "true", security={"privileged": True})
    assert (code, "privileged" in text) == (grpc.StatusCode.INVALID_ARGUMENT, True)


# -- privileges ----------------------------------------------------------------------------------------------------------


def test_capabilities(daemon: Daemon, pod: str) -> None:
    def masks(name: str, **security: Any) -> dict[str, int]:
        id = box(daemon, pod, name=name, security=security)
        # Of the container's own process: a further one gets the same, and is looked at below.
        own = parse_status(Path(f"/proc/{info(daemon, id)['pid']}/status").read_text())
        assert parse_status(said(daemon, id, "cat /proc/self/status")) == own
        return own

    net = 1 << BITS["CAP_NET_ADMIN"]
    found = masks("root", capabilities=api.Capability(add_capabilities=["NET_ADMIN"], drop_capabilities=["KILL"]))
    assert found["bounding"] == found["effective"] == found["permitted"]
    assert found["bounding"] & net
    assert not found["bounding"] & 1 << BITS["CAP_KILL"]
    assert found["inheritable"] == found["ambient"] == 0
    user = api.Int64Value(value=1000)
    found = masks("user", run_as_user=user, capabilities=api.Capability(add_capabilities=["NET_ADMIN"]))
    assert found["effective"] == found["permitted"] == 0
    assert found["bounding"] & net
    found = masks("ambient", run_as_user=user, capabilities=api.Capability(add_ambient_capabilities=["NET_ADMIN"]))
    assert found["effective"] == found["permitted"] == found["inheritable"] == found["ambient"] == net
    found = masks("none", capabilities=api.Capability(drop_capabilities=["ALL"]))
    assert set(found.values()) == {0}


def test_no_new_privileges(daemon: Daemon, pod: str) -> None:
    for name, wanted in (("strict", True), ("loose", False)):
        id = box(daemon, pod, name=name, security={"no_new_privs": wanted})
        assert f"NoNewPrivs:\t{int(wanted)}" in said(daemon, id, "cat /proc/self/status")


def test_seccomp_profiles(daemon: Daemon, pod: str, tmp_path: Path) -> None:
    kinds = api.SecurityProfile.ProfileType
    profile = tmp_path / "no-mkdir.json"
    rule = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}))
    local = api.SecurityProfile(profile_type=kinds.Localhost, localhost_ref=str(profile))
    admin = api.Capability(add_capabilities=["SYS_ADMIN"])
    id = daemon.create(pod, IMAGES["plain"], FOREVER, security={"seccomp": local, "capabilities": admin})
    profile.unlink()  # read when it was created
    daemon.start_container(id)
    assert fails(daemon, id, "busybox mkdir /new")
    assert not fails(daemon, id, "busybox unshare -m true")
    default = api.SecurityProfile(profile_type=kinds.RuntimeDefault)
    id = box(daemon, pod, name="default", security={"seccomp": default})
    assert "Seccomp:\t2" in Path(f"/proc/{info(daemon, id)['pid']}/status").read_text()
    assert fails(daemon, id, "busybox unshare -U true")  # which needs no capability
    assert not fails(daemon, id, "busybox mkdir /new")
    id = box(daemon, pod, name="open")
    assert not fails(daemon, id, "busybox unshare -U true")
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": [], "action": "x"}]}))
    for security in ({"seccomp": local}, {"seccomp_profile_path": f"localhost/{tmp_path}/absent"}):
        code, text = refused(daemon.create, pod, IMAGES["plain"], "true", "refused", security=security)
        assert code == grpc.StatusCode.INVALID_ARGUMENT
        assert "seccomp" in text


# -- names and requests --------------------------------------------------------------------------------------------------


def test_names_are_reserved(daemon: Daemon, pod: str) -> None:
    id = daemon.create(pod, IMAGES["plain"], "true")
    code, text = refused(daemon.create, pod, IMAGES["plain"], "true")
    assert (code, "is reserved for" in text) == (grpc.StatusCode.ALREADY_EXISTS, True)
    daemon.remove(id)
    daemon.remove(daemon.create(pod, IMAGES["plain"], "true"))


def test_requests_that_are_refused(daemon: Daemon, pod: str) -> None:
    def code(name: str = "refused", **facts: Any) -> grpc.StatusCode:
        return refused(daemon.create, pod, IMAGES["plain"], "true", name, **facts)[0]

    invalid = grpc.StatusCode.INVALID_ARGUMENT
    assert code("") == code("a\nb") == code("a\0b") == invalid
    for facts in (
        {"working_dir": "relative"},
        {"working_dir": "/a\0b"},
        {"args": ["a\0b"]},
        {"envs": [api.KeyValue(key="A=B", value="x")]},
        {"envs": [api.KeyValue(key="A", value="x\0y")]},
        {"annotations": {"a": "x" * (9 << 20)}},
        {"devices": [api.Device(host_path="/dev/null", permissions="rwx")]},
        {"devices": [api.Device(host_path="/dev/../etc/passwd")]},
        {"mounts": [api.Mount(container_path="/x", host_path="relative")]},
    ):
        assert code(**facts) == invalid, facts
    for path in ("../escaped", "/absolute", "a/../../b", "a\nb"):
        config = api.ContainerConfig(
            metadata=api.ContainerMetadata(name="x"), image=api.ImageSpec(image=IMAGES["plain"]), log_path=path
        )
        request = api.CreateContainerRequest(pod_sandbox_id=pod, config=config)
        assert refused(daemon.runtime.CreateContainer, request)[0] == invalid
    daemon.runtime.StopPodSandbox(api.StopPodSandboxRequest(pod_sandbox_id=pod))
    assert code() == grpc.StatusCode.FAILED_PRECONDITION


# -- the end -------------------------------------------------------------------------------------------------------------


def test_stop_signals(daemon: Daemon, pod: str) -> None:
    script = "n=0; trap 'n=$((n+1)); echo $n' USR1 HUP; echo up; while [ ! -e /tmp/end ]; do sleep 0.05; done; exit $n"
    id = box(daemon, pod, "alice", script, name="by-image")
    assert daemon.status(id).stop_signal == api.Signal.SIGUSR1
    wait_until(lambda: len(daemon.log_lines("by-image")) == 1, 10, "its first line")
    for _ in range(2):  # a client that asks again does not have the signal sent again
        request = api.StopContainerRequest(container_id=id, timeout=30)
        with pytest.raises(grpc.RpcError):
            daemon.runtime.StopContainer(request, timeout=0.3)
    assert said(daemon, id, "echo > /tmp/end") == ""
    assert daemon.wait_exited(id).exit_code == 1
    own = box(daemon, pod, "alice", script, name="by-config", stop_signal=api.Signal.SIGHUP)
    assert daemon.status(own).stop_signal == api.Signal.SIGHUP
    plain = box(daemon, pod, "plain", script, name="by-nobody")
    assert daemon.status(plain).stop_signal == api.Signal.SIGTERM
    daemon.stop(plain, 0)  # kills at once
    assert (daemon.status(plain).exit_code, daemon.status(plain).reason) == (137, "Error")
    for name in ("by-image", "by-config", "by-nobody"):
        (daemon.logs / f"{name}.log").unlink()


def test_a_program_that_is_not_there(daemon: Daemon, pod: str) -> None:
    config = api.ContainerConfig(
        metadata=api.ContainerMetadata(name="box"),
        image=api.ImageSpec(image=IMAGES["plain"]),
        command=["no-such-program"],
    )
    config.linux.security_context.namespace_options.CopyFrom(api.NamespaceOption(network=2, pid=1))
    request = api.CreateContainerRequest(pod_sandbox_id=pod, config=config)
    id = daemon.runtime.CreateContainer(request).container_id
    _, text = refused(daemon.start_container, id)
    status = daemon.status(id)
    assert (status.state, status.exit_code, status.reason) == (api.CONTAINER_EXITED, 128, "StartError")
    assert "executable file not found in $PATH" in text
    assert status.message == text
    assert status.finished_at > 0


def test_removing_a_running_container(daemon: Daemon, pod: str) -> None:
    id = box(daemon, pod)
    pid = info(daemon, id)["pid"]
    daemon.remove(id)
    assert not Path(f"/proc/{pid}").exists()
    assert not (daemon.root / "containers" / id).exists()
