"""Pods of ``minirt serve``: what their containers share, and what their configuration may ask for."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cri_api.v1 import api_pb2 as api
from minirt_daemon import CGROUP, Daemon, running
from minirt_registry import busybox_layer, serving_registry, tar_of

from harness.clock import wait_until
from harness.linux.namespaces import identity
from harness.minirt.errors import Unavailable
from harness.minirt.supervisor.client import Supervisor

POD, CONTAINER, NODE, TARGET = range(4)
FOREVER = "while :; do sleep 0.1; done"
IMAGE, SMALL = [""], [""]
_numbers = itertools.count()


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with running(Daemon(tmp_path_factory.mktemp("pods"))) as daemon:
        with serving_registry() as registry:
            settings = {"Env": ["PATH=/bin"], "Cmd": ["true"], "Volumes": {"/etc/kept": {}}}
            more = tar_of(("etc/", b""), ("etc/kept/", b""), ("etc/kept/chart", b"here be dragons"))
            registry.add_image("busybox", "1", [busybox_layer(), more], settings)
            registry.add_image("small", "1", [more], {})
            IMAGE[0] = daemon.pull(f"{registry.address}/busybox:1")
            SMALL[0] = daemon.pull(f"{registry.address}/small:1")
        yield daemon
        for pod in daemon.runtime.ListPodSandbox(api.ListPodSandboxRequest()).items:
            daemon.remove_pod(pod.id)


CONFLIST = {
    "cniVersion": "1.0.0",
    "name": "test",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "minirt-test1",
            "isGateway": True,
            "ipMasq": False,
            "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.124.0.0/24"}]]},
        },
        {"type": "portmap", "capabilities": {"portMappings": True}},
        {"type": "bandwidth", "capabilities": {"bandwidth": True}},
    ],
}


@pytest.fixture(scope="module")
def networked(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """The same, once more started: its plugins run in a network namespace of its own, with a bridge."""
    net_d = daemon.top / "net.d"
    net_d.mkdir(exist_ok=True)
    configuration = json.loads(json.dumps(CONFLIST))
    configuration["plugins"][0]["ipam"]["dataDir"] = str(daemon.top / "leases")
    (net_d / "10-test.conflist").write_text(json.dumps(configuration))
    daemon.end()
    daemon.prefix = ["unshare", "--net", "sh", "-c", 'ip link set lo up; exec "$@"', "sh"]
    daemon.start()
    yield daemon
    for pod in daemon.runtime.ListPodSandbox(api.ListPodSandboxRequest()).items:
        daemon.remove_pod(pod.id)
    assert not list((daemon.top / "leases").rglob("10.*"))


def config_of(daemon: Daemon, network: int = NODE, pid: int = CONTAINER, ipc: int = POD, **facts: Any) -> Any:
    linux = facts.pop("linux", {})
    config = daemon.pod_config(f"pod-{next(_numbers)}", network, **facts)
    options = config.linux.security_context.namespace_options
    options.pid, options.ipc = pid, ipc
    config.linux.MergeFrom(api.LinuxPodSandboxConfig(**linux))
    return config


def run_pod(daemon: Daemon, config: Any, handler: str = "") -> str:
    request = api.RunPodSandboxRequest(config=config, runtime_handler=handler)
    return str(daemon.runtime.RunPodSandbox(request).pod_sandbox_id)


def refused(daemon: Daemon, config: Any, words: str, handler: str = "") -> None:
    """Check that there is no such pod, and that nothing is left of it."""
    before = daemon.left()
    with pytest.raises(grpc.RpcError, match=words) as error:
        run_pod(daemon, config, handler)
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]
    assert daemon.left() == before


def status_of(daemon: Daemon, pod: str) -> Any:
    return daemon.runtime.PodSandboxStatus(api.PodSandboxStatusRequest(pod_sandbox_id=pod)).status


def run_in(daemon: Daemon, pod: str, script: str = FOREVER, name: str = "box", **options: Any) -> str:
    return daemon.run(pod, IMAGE[0], script, name, namespaces=api.NamespaceOption(**options))


def text(daemon: Daemon, id: str, *words: str) -> str:
    done = daemon.exec(id, *words)
    assert done.exit_code == 0, done.stderr
    return str(done.stdout.decode())


# -- namespaces ----------------------------------------------------------------------------------------------------------


def test_containers_share_a_pid_namespace(daemon: Daemon) -> None:
    pod = run_pod(daemon, config_of(daemon, pid=POD))
    first = run_in(daemon, pod, "sh -c 'sleep 0.2 & echo $!' > /dev/null; exec sleep 1000", "first", pid=POD)
    second = run_in(daemon, pod, name="second", pid=POD)
    assert status_of(daemon, pod).linux.namespaces.options.pid == POD
    shown = text(daemon, second, "ps", "-o", "pid,args")
    assert re.search(r"^ +1 .*/pause$", shown, re.MULTILINE)
    assert "sleep 1000" in shown
    # It has nothing that its neighbours could make use of: no root, no privileges.
    assert text(daemon, second, "sh", "-c", "ls -A /proc/1/root/ | wc -l").strip() == "0"
    assert "CapEff:\t0000000000000000" in text(daemon, second, "cat", "/proc/1/status")
    # What nobody waits for any more is the first process's, and does not stay as a zombie.
    daemon.exec(second, "sh", "-c", "(sleep 0.25 > /dev/null 2>&1 &)")

    def orphans() -> list[str]:
        rows = daemon.exec(first, "sh", "-c", "cat /proc/[0-9]*/stat").stdout.decode().splitlines()
        return [row for row in rows if row.split()[1] == "(sleep)" and row.split()[3] == "1"]

    wait_until(lambda: not orphans(), 10, "the orphan's end")
    alone = run_in(daemon, pod, name="alone", pid=CONTAINER)
    assert text(daemon, alone, "sh", "-c", "echo /proc/[0-9]*").split()[0] == "/proc/1"
    assert "pause" not in text(daemon, alone, "ps")
    daemon.remove_pod(pod)


def test_a_pod_whose_first_process_dies_is_not_ready(daemon: Daemon) -> None:
    pod = run_pod(daemon, config_of(daemon, pid=POD))
    id = run_in(daemon, pod, pid=POD)
    pause = int((daemon.state / "pods" / pod / "pause").read_text().split()[0])
    assert Path(f"/proc/{pause}/cmdline").read_bytes() == b"/pause\0"
    os.kill(pause, signal.SIGKILL)
    wait_until(lambda: status_of(daemon, pod).state == api.SANDBOX_NOTREADY, 10, "the pod to be not ready")
    assert daemon.wait_exited(id).exit_code == 137
    with pytest.raises(grpc.RpcError, match="not ready"):
        run_in(daemon, pod, name="late", pid=POD)
    daemon.remove_pod(pod)


def test_a_pod_outlives_its_supervisor(daemon: Daemon) -> None:
    pod = run_pod(daemon, config_of(daemon, pid=POD))
    id = run_in(daemon, pod, pid=POD)
    supervisor = Supervisor(daemon.state / "supervisor.sock")
    old = supervisor.call("hello")["pid"]
    os.kill(old, signal.SIGKILL)

    def another() -> bool:
        try:
            return bool(supervisor.call("hello")["pid"] != old)
        except Unavailable:
            return False

    try:
        wait_until(another, 10, "another supervisor")
        wait_until(lambda: problem(daemon) == "", 10, "the daemon to be ready again")
    finally:
        supervisor.close()
    assert status_of(daemon, pod).state == api.SANDBOX_READY
    second = run_in(daemon, pod, name="second", pid=POD)
    assert "/pause" in text(daemon, second, "ps", "-o", "args")
    pause = int((daemon.state / "pods" / pod / "pause").read_text().split()[0])
    os.kill(pause, signal.SIGKILL)
    wait_until(lambda: status_of(daemon, pod).state == api.SANDBOX_NOTREADY, 10, "the pod to be not ready")
    for container in (id, second):
        daemon.wait_exited(container)
    daemon.remove_pod(pod)


def problem(daemon: Daemon) -> str:
    rows = daemon.runtime.Status(api.StatusRequest()).status.conditions
    return str(next(row.message for row in rows if row.type == "RuntimeReady"))


def test_a_target(daemon: Daemon) -> None:
    pod = run_pod(daemon, config_of(daemon))
    target = run_in(daemon, pod, "exec sleep 1001", "target", pid=CONTAINER)
    debugger = run_in(daemon, pod, name="debugger", pid=TARGET, target_id=target)
    assert "1 sleep 1001" in " ".join(text(daemon, debugger, "ps", "-o", "pid,args").split())
    other = run_pod(daemon, config_of(daemon))
    with pytest.raises(grpc.RpcError, match="in another pod"):
        run_in(daemon, other, pid=TARGET, target_id=target)
    daemon.stop(target)
    with pytest.raises(grpc.RpcError, match="is not running") as error:
        run_in(daemon, pod, name="late", pid=TARGET, target_id=target)
    assert error.value.code() == grpc.StatusCode.FAILED_PRECONDITION  # type: ignore[attr-defined]
    for id in (pod, other):
        daemon.remove_pod(id)


def test_the_machines_own_namespaces(daemon: Daemon) -> None:
    pod = run_pod(daemon, config_of(daemon, pid=NODE, ipc=NODE, hostname="other"))
    id = run_in(daemon, pod, pid=NODE, ipc=NODE, network=NODE)
    options = status_of(daemon, pod).linux.namespaces.options
    assert (options.network, options.pid, options.ipc) == (NODE, NODE, NODE)
    for kind in ("pid", "ipc", "net", "uts"):
        inode = identity("self", kind)[1]
        assert text(daemon, id, "busybox", "readlink", f"/proc/self/ns/{kind}").strip() == f"{kind}:[{inode}]"
    assert text(daemon, id, "hostname").strip() == socket.gethostname()
    assert text(daemon, id, "busybox", "stat", "-c", "%d", "/dev/shm").strip() == str(Path("/dev/shm").stat().st_dev)
    daemon.remove_pod(pod)


# -- user namespaces -----------------------------------------------------------------------------------------------------

MAPPING = [api.IDMapping(container_id=0, host_id=100000, length=65536)]
USER = api.UserNamespace(mode=POD, uids=MAPPING, gids=MAPPING)


def user_config(daemon: Daemon, **facts: Any) -> Any:
    config = config_of(daemon, network=NODE, **facts)
    config.linux.security_context.namespace_options.userns_options.CopyFrom(USER)
    return config


@pytest.mark.parametrize("pid", [POD, CONTAINER])
def test_a_user_namespace(networked: Daemon, pid: int, tmp_path: Path) -> None:
    daemon = networked
    config = user_config(daemon, pid=pid)
    config.linux.security_context.namespace_options.network = POD
    config.linux.sysctls["net.ipv4.ip_forward"] = "1"
    pod = run_pod(daemon, config)
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "mine").write_text("of root")
    mapped = api.Mount(container_path="/mapped", host_path=str(volume), uidMappings=MAPPING, gidMappings=MAPPING)
    plain = api.Mount(container_path="/plain", host_path=str(volume), readonly=True)
    images = [
        api.Mount(container_path=place, image=api.ImageSpec(image=name), readonly=True)
        for place, name in (("/layers", IMAGE[0]), ("/layer", SMALL[0]))
    ]
    id = daemon.run(
        pod,
        IMAGE[0],
        FOREVER,
        namespaces=api.NamespaceOption(pid=pid, userns_options=USER),
        mounts=[mapped, plain, *images],
        security={"supplemental_groups": [7]},
    )
    assert text(daemon, id, "cat", "/proc/self/uid_map").split() == ["0", "100000", "65536"]
    assert text(daemon, id, "cat", "/proc/self/gid_map").split() == ["0", "100000", "65536"]
    init = daemon.runtime.ContainerStatus(api.ContainerStatusRequest(container_id=id, verbose=True))
    process = Path(f"/proc/{json.loads(init.info['info'])['pid']}")
    assert process.stat().st_uid == 100000
    for kind in ("user", "net", "ipc", "uts"):
        assert (process / "ns" / kind).readlink() == Path(
            f"{kind}:[{(daemon.state / 'pods' / pod / 'ns' / kind).stat().st_ino}]"
        )
    # What belongs to root on disk belongs to root inside, and the other way round.
    for path in (
        "/",
        "/bin/busybox",
        "/etc/passwd",
        "/etc/resolv.conf",
        "/etc/hosts",
        "/dev/shm",
        "/mapped/mine",
        "/proc/1",
        "/tmp",
    ):
        assert text(daemon, id, "busybox", "stat", "-c", "%u:%g", path).strip() == "0:0", path
    assert text(daemon, id, "busybox", "stat", "-c", "%u:%g", "/plain/mine").strip() == "65534:65534"
    for path in ("/etc/kept", "/layers/etc/kept", "/layer/etc/kept"):
        assert text(daemon, id, "busybox", "stat", "-c", "%u:%g", f"{path}/chart").strip() == "0:0", path
        done = daemon.exec(id, "sh", "-c", f"echo more >> {path}/chart")
        assert (done.exit_code == 0) == (path == "/etc/kept")
    text(daemon, id, "sh", "-c", "echo x > /mapped/new; echo y > /etc/passwd; echo z > /dev/shm/z; mkdir -p /a/b")
    assert (volume / "new").stat().st_uid == 0
    upper = daemon.root / "containers" / id / "upper"
    assert (upper / "a" / "b").stat().st_uid == 100000
    assert text(daemon, id, "cat", "/proc/sys/net/ipv4/ip_forward").strip() == "1"
    assert "eth0" in text(daemon, id, "ls", "/sys/class/net")
    assert daemon.exec(id, "sh", "-c", "echo 1 > /proc/sys/kernel/panic").exit_code != 0
    assert daemon.exec(id, "busybox", "mknod", "/tmp/disk", "b", "8", "0").exit_code != 0
    daemon.remove_pod(pod)


def test_user_namespaces_are_told_of(daemon: Daemon) -> None:
    handlers = daemon.runtime.Status(api.StatusRequest()).runtime_handlers
    assert {row.name for row in handlers} == {"", "minirt"}
    assert all(row.features.user_namespaces for row in handlers)


def test_user_namespaces_that_are_refused(daemon: Daemon) -> None:
    def changed(network: int = POD, pid: int = CONTAINER, ipc: int = POD, **options: Any) -> Any:
        config = config_of(daemon, network=network, pid=pid, ipc=ipc)
        user = api.UserNamespace(**{"mode": POD, "uids": MAPPING, "gids": MAPPING, **options})
        config.linux.security_context.namespace_options.userns_options.CopyFrom(user)
        return config

    other = [api.IDMapping(container_id=0, host_id=200000, length=10)]
    refused(daemon, changed(uids=[*MAPPING, *other]), "one mapping is needed")
    refused(daemon, changed(gids=[]), "one mapping is needed")
    refused(daemon, changed(uids=[api.IDMapping(container_id=1, host_id=1000, length=10)]), "id 0 .* is not mapped")
    refused(daemon, changed(uids=[api.IDMapping(host_id=1000, length=0)]), "no range of ids")
    refused(daemon, changed(uids=[api.IDMapping(host_id=4294967290, length=100)]), "no range of ids")
    refused(daemon, changed(mode=CONTAINER), "mode CONTAINER is not supported")
    refused(daemon, changed(mode=TARGET), "mode TARGET is not supported")
    refused(daemon, changed(mode=NODE), "mode NODE takes no mappings")
    refused(daemon, changed(network=NODE), "host's network namespace")
    refused(daemon, changed(pid=NODE), "host's pid namespace")
    refused(daemon, changed(ipc=NODE), "host's ipc namespace")
    pod = run_pod(daemon, config_of(daemon))
    with pytest.raises(grpc.RpcError, match="the user namespace of its pod"):
        run_in(daemon, pod, userns_options=USER)
    daemon.remove_pod(pod)


# -- files and sysctls ---------------------------------------------------------------------------------------------------


def test_dns_and_hosts(daemon: Daemon) -> None:
    dns = api.DNSConfig(servers=["10.0.0.10", "fd00::10"], searches=["a.example", "example"], options=["ndots:5"])
    pod = run_pod(daemon, config_of(daemon, dns_config=dns))
    id = run_in(daemon, pod)
    assert text(daemon, id, "cat", "/etc/resolv.conf") == (
        "search a.example example\nnameserver 10.0.0.10\nnameserver fd00::10\noptions ndots:5\n"
    )
    assert "localhost" in text(daemon, id, "cat", "/etc/hosts")
    daemon.remove_pod(pod)
    plain = run_pod(daemon, config_of(daemon))
    id = run_in(daemon, plain)
    assert text(daemon, id, "cat", "/etc/resolv.conf") == Path("/etc/resolv.conf").read_text()
    daemon.remove_pod(plain)


def test_sysctls(daemon: Daemon) -> None:
    values = {"kernel.shm_rmid_forced": "1", "fs.mqueue.msg_max": "100", "kernel/sem": "32000 1024000000 500 32001"}
    pod = run_pod(daemon, config_of(daemon, linux={"sysctls": values}))
    id = run_in(daemon, pod)
    for name, value in values.items():
        path = "/proc/sys/" + name.replace(".", "/")
        assert " ".join(text(daemon, id, "cat", path).split()) == value
    assert Path("/proc/sys/fs/mqueue/msg_max").read_text().strip() != "100"
    daemon.remove_pod(pod)


@pytest.mark.parametrize(
    ("name", "ipc", "words"),
    [
        ("net.ipv4.ip_forward", POD, "the pod's network namespace is the host's"),
        ("kernel.shmmax", NODE, "the pod's ipc namespace is the host's"),
        ("kernel.panic", POD, "would change the whole machine"),
        ("vm.swappiness", POD, "would change the whole machine"),
        ("kernel.shm_nonsense", POD, "would change the whole machine"),
        ("../../kernel.sem", POD, "not a sysctl's name"),
        ("kernel", POD, "not a sysctl's name"),
        ("fs.mqueue.nonsense", POD, "setting sysctl fs.mqueue.nonsense: .*No such file"),
    ],
)
def test_sysctls_that_are_refused(daemon: Daemon, name: str, ipc: int, words: str) -> None:
    refused(daemon, config_of(daemon, ipc=ipc, linux={"sysctls": {name: "1"}}), words)


# -- what is refused -----------------------------------------------------------------------------------------------------


def test_wrong_configurations(daemon: Daemon) -> None:
    refused(daemon, config_of(daemon), "no runtime for 'kata' is configured", "kata")
    for parent, words in (
        ("kubepods-burstable.slice", "systemd's cgroup driver"),
        ("/kubepods.slice/kubepods-pod1.slice", "systemd's cgroup driver"),
        ("relative/path", "not an absolute path"),
        ("/a/../b", "not an absolute path"),
    ):
        refused(daemon, config_of(daemon, linux={"cgroup_parent": parent}), words)
    config = config_of(daemon)
    config.log_directory = "logs"
    refused(daemon, config, "log_directory 'logs'")
    refused(daemon, config_of(daemon, pid=TARGET), "TARGET is for a container's pid namespace only")
    config = config_of(daemon, network=POD)
    config.metadata.namespace = "a;K8S_POD_NAME=b"
    refused(daemon, config, "holds a ';'")
    config = config_of(daemon, network=POD, annotations={"kubernetes.io/egress-bandwidth": "fast"})
    refused(daemon, config, "egress-bandwidth")


def test_a_name_is_taken_until_its_pod_is_removed(daemon: Daemon) -> None:
    config = config_of(daemon)
    pod = run_pod(daemon, config, "minirt")
    with pytest.raises(grpc.RpcError, match=f"is reserved for '{pod}'") as error:
        run_pod(daemon, config)
    assert error.value.code() == grpc.StatusCode.ALREADY_EXISTS  # type: ignore[attr-defined]
    config.metadata.attempt = 1
    again = run_pod(daemon, config)
    for id in (pod, again, pod):
        daemon.remove_pod(id)
    assert run_pod(daemon, config) != again


def test_lists(daemon: Daemon) -> None:
    first = run_pod(daemon, config_of(daemon, labels={"tier": "front", "colour": "red"}), "minirt")
    second = run_pod(daemon, config_of(daemon, labels={"tier": "back"}, annotations={"note": "x"}))
    daemon.runtime.StopPodSandbox(api.StopPodSandboxRequest(pod_sandbox_id=second))

    def found(**wanted: Any) -> list[str]:
        request = api.ListPodSandboxRequest(filter=api.PodSandboxFilter(**wanted))
        return [row.id for row in daemon.runtime.ListPodSandbox(request).items if row.id in (first, second)]

    assert sorted(found()) == sorted([first, second])
    assert found(id=first) == found(id=first[:13]) == [first]
    assert found(state=api.PodSandboxStateValue(state=api.SANDBOX_NOTREADY)) == [second]
    assert found(label_selector={"tier": "front"}) == [first]
    assert found(label_selector={"tier": "front", "colour": "blue"}) == []
    row = status_of(daemon, second)
    assert (dict(row.labels), dict(row.annotations), row.runtime_handler) == ({"tier": "back"}, {"note": "x"}, "")
    assert status_of(daemon, first).runtime_handler == "minirt"
    for id in (first, second):
        daemon.remove_pod(id)


def test_where_scripts_find_a_pods_network(daemon: Daemon) -> None:
    pod = run_pod(daemon, config_of(daemon, pid=POD))
    status = api.ContainerStatusRequest(container_id=run_in(daemon, pod, pid=POD), verbose=True)
    inside = json.loads(daemon.runtime.ContainerStatus(status).info["info"])["pid"]
    request = api.PodSandboxStatusRequest(pod_sandbox_id=pod, verbose=True)
    info = json.loads(daemon.runtime.PodSandboxStatus(request).info["info"])
    for namespace in info["runtimeSpec"]["linux"]["namespaces"]:
        found, kind = Path(namespace["path"]).stat(), namespace["type"].replace("network", "net")
        assert (found.st_dev, found.st_ino) == identity(inside, kind)
    assert {"ipc", "pid"} <= {namespace["type"] for namespace in info["runtimeSpec"]["linux"]["namespaces"]}
    daemon.runtime.StopPodSandbox(api.StopPodSandboxRequest(pod_sandbox_id=pod))
    info = json.loads(daemon.runtime.PodSandboxStatus(request).info["info"])
    assert info["runtimeSpec"]["linux"]["namespaces"] == []
    daemon.remove_pod(pod)


# -- resources -----------------------------------------------------------------------------------------------------------


def limit_of(cgroup: str) -> int:
    paths = [Path(f"/sys/fs/cgroup/memory{cgroup}/memory.limit_in_bytes"), Path(f"/sys/fs/cgroup{cgroup}/memory.max")]
    return int(next(path for path in paths if path.exists()).read_text())


def test_resources_and_overhead_limit_the_pods_cgroup(daemon: Daemon) -> None:
    part = api.LinuxContainerResources
    config = config_of(
        daemon,
        linux={"resources": part(memory_limit_in_bytes=64 << 20), "overhead": part(memory_limit_in_bytes=1 << 20)},
    )
    pod = run_pod(daemon, config)
    cgroup = config.linux.cgroup_parent
    assert limit_of(cgroup) == 65 << 20
    request = api.UpdatePodSandboxResourcesRequest(
        pod_sandbox_id=pod, resources=part(memory_limit_in_bytes=32 << 20, cpu_shares=512)
    )
    daemon.runtime.UpdatePodSandboxResources(request)
    assert limit_of(cgroup) == 33 << 20
    run_in(daemon, pod)
    daemon.remove_pod(pod)
    assert not list(Path("/sys/fs/cgroup").glob(f"*{cgroup}"))
    with pytest.raises(grpc.RpcError) as error:
        daemon.runtime.UpdatePodSandboxResources(request)
    assert error.value.code() == grpc.StatusCode.NOT_FOUND  # type: ignore[attr-defined]


def test_a_cgroup_that_was_there_before_is_left_as_it_is(daemon: Daemon) -> None:
    config = config_of(daemon, linux={"resources": api.LinuxContainerResources(memory_limit_in_bytes=64 << 20)})
    folder = next(
        path for path in Path("/sys/fs/cgroup").glob(f"*{CGROUP}") if path.parent.name in ("memory", "cgroup")
    )
    own = folder / Path(config.linux.cgroup_parent).name
    own.mkdir()
    before = limit_of(config.linux.cgroup_parent)
    daemon.remove_pod(run_pod(daemon, config))
    assert limit_of(config.linux.cgroup_parent) == before
    own.rmdir()


def test_nothing_is_started_in_a_pod_that_is_being_stopped(daemon: Daemon) -> None:
    """StopPodSandbox against clients that go on creating and starting: whatever they were told, nothing runs afterwards."""

    def work(pod: str, name: str) -> None:
        with contextlib.suppress(grpc.RpcError):
            for number in itertools.count():
                daemon.run(pod, IMAGE[0], FOREVER, f"{name}-{number}")

    for round in range(4):
        pod = daemon.pod(f"race-{round}")
        clients = [threading.Thread(target=work, args=(pod, name)) for name in ("a", "b")]
        for client in clients:
            client.start()
        mine = api.ListContainersRequest(filter=api.ContainerFilter(pod_sandbox_id=pod))
        wait_until(
            lambda mine=mine, least=round: len(daemon.runtime.ListContainers(mine).containers) > least, 20, "containers"
        )
        daemon.runtime.StopPodSandbox(api.StopPodSandboxRequest(pod_sandbox_id=pod))
        for client in clients:
            client.join()
        rows = daemon.runtime.ListContainers(mine).containers
        assert {row.state for row in rows} <= {api.CONTAINER_EXITED, api.CONTAINER_CREATED}
        assert not any(path.is_dir() for path in Path("/sys/fs/cgroup").glob(f"*{CGROUP}/race-{round}/*"))
        daemon.remove_pod(pod)
        assert not daemon.runtime.ListContainers(mine).containers
