"""Pods of ``minirt serve`` on a network: addresses, host ports, limits, and what happens when plugins fail or change."""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from cri_api.v1 import api_pb2 as api
from minirt_daemon import Daemon, running
from minirt_registry import busybox_layer, serving_registry

from harness.clock import wait_until

POD, CONTAINER = api.NamespaceMode.POD, api.NamespaceMode.CONTAINER
ADDRESS, OTHER_ADDRESS = "10.99.0.1", "10.99.0.2"
"""of the machine that the daemon believes to be on"""
PLUGIN = """#!/bin/sh
config=$(cat)
echo "$CNI_COMMAND" >> "$0.calls"
[ -e "$0.waits" ] && [ "$CNI_COMMAND" = ADD ] && while [ -e "$0.waits" ]; do sleep 0.05; done
[ -e "$0.fails-$CNI_COMMAND" ] && { echo '{"code": 7, "msg": "no luck", "details": "by test"}'; exit 1; }
[ "$CNI_COMMAND" = ADD ] && echo "$config" | sed 's/.*"prevResult": *//; s/}$//'
exit 0
"""
IMAGE = [""]
_numbers = itertools.count()


class Sea:
    """A daemon whose plugins run in a network namespace of its own, and that namespace."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.net_d = daemon.top / "net.d"
        self.leases = daemon.top / "leases"
        self.plugin = daemon.top / "bin" / "fickle"

    def configure(
        self, name: str = "10-test.conflist", subnet: str = "10.124.0.0/24", *plugins: Mapping[str, Any]
    ) -> Path:
        bridge = {
            "type": "bridge",
            "bridge": f"br{subnet.split('.')[1]}",
            "isDefaultGateway": True,
            "ipam": {"type": "host-local", "dataDir": str(self.leases), "ranges": [[{"subnet": subnet}]]},
        }
        path = self.net_d / name
        content = {"cniVersion": "1.0.0", "name": f"net{subnet.split('.')[1]}", "plugins": [bridge, *plugins]}
        path.write_text(json.dumps(content))
        return path

    def config(self, **facts: Any) -> Any:
        return self.daemon.pod_config(f"net-{next(_numbers)}", POD, **facts)

    def run(self, config: Any) -> str:
        return str(self.daemon.runtime.RunPodSandbox(api.RunPodSandboxRequest(config=config)).pod_sandbox_id)

    def ips(self, pod: str) -> list[str]:
        status = self.daemon.runtime.PodSandboxStatus(api.PodSandboxStatusRequest(pod_sandbox_id=pod)).status
        return [status.network.ip, *(row.ip for row in status.network.additional_ips)]

    def inside(self, *words: str) -> str:
        """What a command says in the daemon's network namespace."""
        assert self.daemon.process is not None
        argv = ["nsenter", "-t", str(self.daemon.process.pid), "--net", *words]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
        return done.stdout + done.stderr

    def network_ready(self) -> tuple[bool, str]:
        rows = self.daemon.runtime.Status(api.StatusRequest()).status.conditions
        return next((row.status, row.message) for row in rows if row.type == "NetworkReady")

    def leased(self) -> list[str]:
        return sorted(path.name for path in self.leases.rglob("10.*"))

    def links(self) -> list[str]:
        rows = json.loads(self.inside("ip", "-j", "link", "show", "type", "veth") or "[]")
        return [row["ifname"] for row in rows if row]


@pytest.fixture(scope="module")
def sea(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sea]:
    top = tmp_path_factory.mktemp("sea")
    daemon = Daemon(top, extra=["--cni-bin-dir", f"/usr/lib/cni:{top}/bin"])
    sea = Sea(daemon)
    sea.net_d.mkdir()
    sea.plugin.parent.mkdir()
    sea.plugin.write_text(PLUGIN)
    sea.plugin.chmod(0o755)
    with running(daemon):
        with serving_registry() as registry:
            registry.add_image("busybox", "1", [busybox_layer()], {"Env": ["PATH=/bin"], "Cmd": ["true"]})
            IMAGE[0] = daemon.pull(f"{registry.address}/busybox:1")
        daemon.end()
        script = f'ip link set lo up; ip addr add {ADDRESS}/32 dev lo; ip addr add {OTHER_ADDRESS}/32 dev lo; exec "$@"'
        daemon.prefix = ["unshare", "--net", "sh", "-c", script, "sh"]
        daemon.start()
        yield sea
        shut = daemon.shut_down()
        assert shut.returncode == 0, shut.stderr


@pytest.fixture(autouse=True)
def clean(sea: Sea) -> Iterator[None]:
    """An empty configuration folder before, and after each test nothing of its pods."""
    for path in sea.net_d.iterdir():
        path.unlink()
    yield
    for path in sea.plugin.parent.glob("fickle.*"):
        path.unlink()
    for pod in sea.daemon.runtime.ListPodSandbox(api.ListPodSandboxRequest()).items:
        sea.daemon.remove_pod(pod.id)
    assert sea.leased() == []
    assert sea.links() == []


ASK = """
import socket, sys
with socket.socket(socket.AF_INET, getattr(socket, f"SOCK_{sys.argv[3]}")) as asking:
    asking.settimeout(5)
    asking.connect((sys.argv[1], int(sys.argv[2])))
    asking.send(b"!")
    print(asking.recv(100).decode())
"""
ANSWER = """
import socket, threading
def stream(listening):
    while True:
        with listening.accept()[0] as connection:
            connection.recv(1)
            connection.send(b"ahoy 80")
listening = socket.create_server(("", 80))
threading.Thread(target=stream, args=[listening], daemon=True).start()
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as waiting:
    waiting.bind(("", 82))
    print("up", flush=True)
    while True:
        waiting.sendto(b"ahoy 82", waiting.recvfrom(1)[1])
"""


@contextlib.contextmanager
def answering(sea: Sea, pod: str) -> Iterator[None]:
    """Somebody who answers on TCP port 80 and UDP port 82 of a pod."""
    argv = ["nsenter", f"--net={sea.daemon.state}/pods/{pod}/ns/net", sys.executable, "-c", ANSWER]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"up\n"
            yield
        finally:
            process.kill()


def serve(sea: Sea, pod: str, script: str) -> str:
    return sea.daemon.run(
        pod, IMAGE[0], script, f"serve-{next(_numbers)}", namespaces=api.NamespaceOption(pid=CONTAINER)
    )


@contextlib.contextmanager
def refused(words: str, code: grpc.StatusCode) -> Iterator[None]:
    with pytest.raises(grpc.RpcError, match=words) as error:
        yield
    assert error.value.code() == code  # type: ignore[attr-defined]


# -- what a pod gets -----------------------------------------------------------------------------------------------------


def test_two_families_of_addresses(sea: Sea) -> None:
    path = sea.configure()
    content = json.loads(path.read_text())
    content["plugins"][0]["ipam"]["ranges"] = [[{"subnet": "fd00:124::/64"}], [{"subnet": "10.124.0.0/24"}]]
    path.write_text(json.dumps(content))
    pod = sea.run(sea.config())
    first, second = sea.ips(pod)
    assert first.startswith("10.124.0.")
    assert second.startswith("fd00:124::")
    box = serve(sea, pod, "while :; do sleep 0.1; done")
    shown = sea.daemon.exec(box, "ip", "addr").stdout.decode()
    assert f"inet {first}/24" in shown
    assert "inet 127.0.0.1/8" in shown
    assert sea.daemon.exec(box, "cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start").stdout == b"0\n"
    sea.daemon.remove_pod(pod)


def test_host_ports(sea: Sea) -> None:
    sea.configure("10-test.conflist", "10.124.0.0/24", {"type": "portmap", "capabilities": {"portMappings": True}})
    mapping = api.PortMapping
    ports = [
        mapping(host_port=18080, container_port=80),
        mapping(host_port=18081, container_port=80, host_ip=ADDRESS),
        mapping(host_port=18082, container_port=82, protocol=api.Protocol.Value("UDP")),
        mapping(host_port=18083, container_port=83, protocol=api.Protocol.Value("SCTP")),
        mapping(host_port=0, container_port=84),
    ]
    pod = sea.run(sea.config(port_mappings=ports))
    with answering(sea, pod):

        def answer(address: str, port: int, kind: str = "STREAM") -> str:
            return sea.inside(sys.executable, "-c", ASK, address, str(port), kind)

        assert answer(ADDRESS, 18080) == "ahoy 80\n"
        assert answer(OTHER_ADDRESS, 18080) == "ahoy 80\n"
        assert answer(ADDRESS, 18081) == "ahoy 80\n"
        assert "ahoy" not in answer(OTHER_ADDRESS, 18081)
        assert answer(ADDRESS, 18082, "DGRAM") == "ahoy 82\n"
    rules = sea.inside("iptables", "-t", "nat", "-S")
    assert "-p sctp -m sctp --dport 18083" in rules
    assert ":84" not in rules
    sea.daemon.remove_pod(pod)
    rules = sea.inside("iptables", "-t", "nat", "-S")
    assert "1808" not in rules


def test_bandwidth(sea: Sea) -> None:
    sea.configure("10-test.conflist", "10.124.0.0/24", {"type": "bandwidth", "capabilities": {"bandwidth": True}})
    limits = {"kubernetes.io/ingress-bandwidth": "10M", "kubernetes.io/egress-bandwidth": "20M"}
    pod = sea.run(sea.config(annotations=limits))
    rates = sea.inside("tc", "qdisc")
    assert "rate 10Mbit" in rates
    assert "rate 20Mbit" in rates
    sea.daemon.remove_pod(pod)
    assert "Mbit" not in sea.inside("tc", "qdisc")
    free = sea.run(sea.config())
    assert "Mbit" not in sea.inside("tc", "qdisc")
    sea.daemon.remove_pod(free)


# -- configurations that change ------------------------------------------------------------------------------------------


def test_a_network_that_changes(sea: Sea) -> None:
    ready, why = sea.network_ready()
    assert not ready
    assert str(sea.net_d) in why
    with refused("no network configuration", grpc.StatusCode.UNAVAILABLE):
        sea.run(sea.config())
    sea.configure()
    assert sea.network_ready() == (True, "")
    old = sea.run(sea.config())
    first = sea.configure("05-first.conflist", "10.125.0.0/24")
    new = sea.run(sea.config())
    assert sea.ips(old)[0].startswith("10.124.0.")
    assert sea.ips(new)[0].startswith("10.125.0.")
    first.write_text('{"name": "torn", "plugins": [')
    ready, why = sea.network_ready()
    assert not ready
    assert why.startswith(f"{first}: ")
    with refused("05-first.conflist", grpc.StatusCode.UNAVAILABLE):
        sea.run(sea.config())
    # Pods leave the network that they are in, whatever is configured now.
    for pod in (old, new):
        sea.daemon.remove_pod(pod)
    assert sea.leased() == []


# -- plugins that fail ---------------------------------------------------------------------------------------------------


def nothing_left(sea: Sea, before: Mapping[str, Sequence[str]]) -> None:
    assert {**sea.daemon.left(), "processes": []} == {**before, "processes": []}
    assert sea.leased() == []
    assert sea.links() == []


def test_a_plugin_that_fails(sea: Sea) -> None:
    sea.configure("10-test.conflist", "10.124.0.0/24", {"type": "fickle"})
    before = sea.daemon.left()
    fails = Path(f"{sea.plugin}.fails-ADD")
    fails.touch()
    config = sea.config()
    with refused("network plugin 'fickle': ADD failed: no luck: by test", grpc.StatusCode.UNKNOWN):
        sea.run(config)
    nothing_left(sea, before)
    fails.unlink()
    sea.daemon.remove_pod(sea.run(config))
    nothing_left(sea, before)


def test_a_network_without_addresses(sea: Sea) -> None:
    path = sea.configure()
    content = json.loads(path.read_text())
    del content["plugins"][0]["ipam"]
    content["plugins"][0]["isDefaultGateway"] = False
    path.write_text(json.dumps(content))
    before = sea.daemon.left()
    with refused("no address", grpc.StatusCode.UNKNOWN):
        sea.run(sea.config())
    nothing_left(sea, before)


def test_a_plugin_that_does_not_let_go(sea: Sea) -> None:
    sea.configure("10-test.conflist", "10.124.0.0/24", {"type": "fickle"})
    before = sea.daemon.left()
    fails = Path(f"{sea.plugin}.fails-DEL")
    fails.touch()
    pod = sea.run(sea.config())
    for call, request in (
        (sea.daemon.runtime.StopPodSandbox, api.StopPodSandboxRequest(pod_sandbox_id=pod)),
        (sea.daemon.runtime.RemovePodSandbox, api.RemovePodSandboxRequest(pod_sandbox_id=pod)),
    ):
        with refused("'fickle': DEL failed", grpc.StatusCode.UNKNOWN):
            call(request)
    both = Path(f"{sea.plugin}.fails-ADD")
    both.touch()
    with refused("'fickle': ADD failed", grpc.StatusCode.UNKNOWN):
        sea.run(sea.config())
    rows = sea.daemon.runtime.ListPodSandbox(api.ListPodSandboxRequest()).items
    # Neither is forgotten while there is something to give back.
    assert [row.state for row in rows] == [api.SANDBOX_NOTREADY] * 2
    fails.unlink()
    for row in rows:
        sea.daemon.remove_pod(row.id)
    nothing_left(sea, before)


def test_a_daemon_that_is_killed_while_a_pod_is_made(sea: Sea) -> None:
    sea.configure("10-test.conflist", "10.124.0.0/24", {"type": "fickle"})
    before = sea.daemon.left()
    waits = Path(f"{sea.plugin}.waits")
    waits.touch()
    config = sea.config()
    call = sea.daemon.runtime.RunPodSandbox.future(api.RunPodSandboxRequest(config=config))
    wait_until(Path(f"{sea.plugin}.calls").exists, 10, "the second plugin")
    assert len(sea.leased()) == 1
    assert sea.daemon.process is not None
    prefix, pid = sea.daemon.prefix, sea.daemon.process.pid
    # The next daemon is in the same network namespace.
    kept = sea.daemon.top / "netns"
    kept.touch()
    subprocess.run(["mount", "--bind", f"/proc/{pid}/ns/net", str(kept)], check=True)
    try:
        sea.daemon.end(signal.SIGKILL)
        waits.unlink()
        sea.daemon.prefix = ["nsenter", f"--net={kept}"]
        sea.daemon.start()
    finally:
        subprocess.run(["umount", str(kept)], check=True)
        kept.unlink()
        sea.daemon.prefix = prefix
    assert call.exception() is not None
    assert list(sea.daemon.runtime.ListPodSandbox(api.ListPodSandboxRequest()).items) == []
    nothing_left(sea, before)
    assert sea.run(config)


def test_many_at_once(sea: Sea) -> None:
    sea.configure()
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(sea.run(sea.config()))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({sea.ips(pod)[0] for pod in found}) == 6
    assert len(sea.links()) == 6
