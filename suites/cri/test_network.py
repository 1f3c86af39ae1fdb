"""The network of pods: CNI, addresses, host ports (cri-api v1, ``PortMapping``, ``PodSandboxNetworkStatus``)."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest

from harness.errors import NotExpressible, RuntimeRefusal
from harness.linux.namespaces import identity
from harness.model.area import Area
from harness.model.container import Network
from harness.session.breach import answers, drops, pretends, puts
from harness.session.cri import NODE, NOT_READY, CriTrial, Pod

pytestmark = pytest.mark.operation(Area.NETWORK)

UDP = 1
ECHO = ("/bin/nc", "-ll", "-p", "8080", "-e", "/bin/echo", "answer")


def bridged(cri: CriTrial, **more: object) -> Pod:
    return cri.pod(Network.BRIDGE, **{"hostname": "quay", **more})


def configuration(cri: CriTrial) -> Path:
    """The engine's folder of CNI configurations, which only a private engine's is ours to change."""
    folder = cri.trial.arena.state / "cni"
    if not any(folder.glob("*.conflist")):
        raise NotExpressible(cri.trial.subject.name, "has a CNI configuration that is not ours to change, or none")
    return folder


def addresses(pod: Pod, cri: CriTrial) -> list[str]:
    network = cri.pod_status(pod).network
    return [network.ip, *(more.ip for more in network.additional_ips)]


@pytest.mark.breach(
    puts("RunPodSandbox.config.linux.security_context.namespace_options.network", NODE),
    puts("CreateContainer.config.linux.security_context.namespace_options.network", NODE),
)
def test_pod_has_a_network_of_its_own(cri: CriTrial) -> None:
    """NamespaceMode.POD: one network namespace "common to all containers in a pod"."""
    pod = bridged(cri)
    one, two = cri.launch(pod=pod), cri.launch(pod=pod)
    assert identity(cri.init(one), "net") == identity(cri.init(two), "net")
    assert identity(cri.init(one), "net") != identity(cri.trial.arena.keeper_pid, "net")
    assert {"lo", "eth0"} <= set(cri.said(one, "ls /sys/class/net").split())


@pytest.mark.breach(answers("PodSandboxStatus.status.network"))
def test_status_has_the_address_that_the_pod_has(cri: CriTrial) -> None:
    """PodSandboxNetworkStatus.ip: "IP address of the PodSandbox"."""
    pod = bridged(cri)
    found = addresses(pod, cri)
    assert found[0], "the status has no address"
    assert all(ipaddress.ip_address(address) for address in found)
    seen = cri.run("ip -o addr show dev eth0", pod=pod).text
    assert f"inet {found[0]}/" in seen


@pytest.mark.breach(
    puts("RunPodSandbox.config.linux.security_context.namespace_options.network", NODE),
    puts("CreateContainer.config.linux.security_context.namespace_options.network", NODE),
)
def test_pods_reach_each_other(cri: CriTrial) -> None:
    """Each pod has an address of its own, at which others find it."""
    one, two = bridged(cri), bridged(cri)
    first, second = addresses(one, cri)[0], addresses(two, cri)[0]
    assert first and first != second
    box = cri.launch(ECHO, pod=one)
    cri.wait(lambda: ":1F90 " in cri.said(box, "cat /proc/net/tcp /proc/net/tcp6"), "the server to listen")
    assert cri.run(f"nc -w 5 {first} 8080 </dev/null", pod=two).lines == ["answer"]


@pytest.mark.breach(answers("PodSandboxStatus.status.network.ip", "10.88.0.1"))
def test_host_network_pod_has_no_address_of_its_own(cri: CriTrial) -> None:
    """PodSandboxNetworkStatus: "Currently ignored for pods sharing the host networking namespace"."""
    assert addresses(cri.pod(), cri)[0] == ""


@pytest.mark.breach(pretends("StopPodSandbox"))
def test_stop_gives_the_address_back(cri: CriTrial) -> None:
    """StopPodSandbox "reclaims network resources (e.g., IP addresses) allocated to the sandbox"."""
    kept = cri.trial.arena.root / "cni" / "networks"
    configuration(cri)
    pod = bridged(cri)
    address = addresses(pod, cri)[0]
    assert list(kept.rglob(address)), "the plugin keeps no record of the address"
    cri.stop_pod(pod)
    assert not list(kept.rglob(address))
    assert cri.pod_status(pod).state == NOT_READY


@pytest.mark.exclusive
@pytest.mark.breach(pretends("StopPodSandbox", "RemovePodSandbox"))
def test_removed_pod_leaves_no_link_behind(cri: CriTrial) -> None:
    """No veth, no network namespace, no mount of one."""

    def links() -> set[str]:
        return set(cri.trial.arena.run(["ip", "-o", "link"], timeout_s=10).text.splitlines())

    def mounts() -> set[str]:
        return {mount.target for mount in cri.trial.witness.mounts()}

    bridge, before = bridged(cri), (links(), mounts())
    pod = bridged(cri)
    assert (links(), mounts()) != before
    cri.stop_pod(pod)
    cri.remove_pod(pod)
    assert links() == before[0]
    assert mounts() == before[1]
    assert addresses(bridge, cri)


HOST_PORT = 20080


def answers_at(cri: CriTrial, address: str, port: int) -> bool:
    try:
        link = cri.dial((address, port))
        link.settimeout(5)
        return link.recv(64) == b"answer\n"
    except OSError:
        return False


@pytest.mark.breach(drops("RunPodSandbox.config.port_mappings"))
def test_host_port_leads_into_the_pod(cri: CriTrial) -> None:
    """PortMapping: host_port "on the host" to container_port "within the container"."""
    needs_portmap(cri)
    pod = bridged(cri, port_mappings=[{"container_port": 8080, "host_port": HOST_PORT}])
    cri.launch(ECHO, pod=pod)
    cri.wait(lambda: answers_at(cri, gateway(cri), HOST_PORT), f"an answer at the host port {HOST_PORT}")
    cri.stop_pod(pod)
    assert not answers_at(cri, gateway(cri), HOST_PORT)


@pytest.mark.breach(drops("RunPodSandbox.config.port_mappings.0.host_ip"))
def test_host_port_is_open_at_its_host_ip_only(cri: CriTrial) -> None:
    """PortMapping.host_ip: the address of the host at which the port is."""
    needs_portmap(cri)
    here = gateway(cri)
    arena = cri.trial.arena
    arena.run(["ip", "addr", "add", "10.99.0.1/32", "dev", "lo"], timeout_s=10).check()
    try:
        mapping = {"container_port": 8080, "host_port": HOST_PORT + 1, "host_ip": "10.99.0.1"}
        pod = bridged(cri, port_mappings=[mapping])
        cri.launch(ECHO, pod=pod)
        cri.wait(lambda: answers_at(cri, "10.99.0.1", HOST_PORT + 1), "an answer at the host's address")
        assert not answers_at(cri, here, HOST_PORT + 1)
    finally:
        arena.run(["ip", "addr", "del", "10.99.0.1/32", "dev", "lo"], timeout_s=10)


def needs_portmap(cri: CriTrial) -> None:
    texts = [path.read_text() for path in configuration(cri).glob("*.conflist")]
    if not any('"portmap"' in text for text in texts):
        raise NotExpressible(cri.trial.subject.name, "has no portmap plugin in its network here (no iptables)")


def gateway(cri: CriTrial) -> str:
    """An address of the host, once there is a bridge."""
    shown = cri.trial.arena.run(["ip", "-o", "-4", "addr", "show", "dev", "seatrial0"], timeout_s=10).text.split()
    if "inet" not in shown:
        cri.remove_pod(bridged(cri))
        shown = cri.trial.arena.run(["ip", "-o", "-4", "addr", "show", "dev", "seatrial0"], timeout_s=10).text.split()
    return shown[shown.index("inet") + 1].partition("/")[0]


@pytest.mark.breach(answers("Status.status.conditions"))
def test_network_is_not_ready_without_a_configuration(cri: CriTrial) -> None:
    """RuntimeCondition NetworkReady, with a reason and a message; true again when the configuration is back."""
    folder = configuration(cri)
    texts = {path: path.read_text() for path in folder.glob("*.conflist")}

    def ready() -> bool:
        found = [found for found in cri.call("Status").status.conditions if found.type == "NetworkReady"]
        assert len(found) == 1, "Status has not one condition NetworkReady"
        condition = found[0]
        assert condition.status or (condition.reason and condition.message), condition
        return bool(condition.status)

    assert ready()
    try:
        for path in texts:
            path.unlink()
        cri.wait(lambda: not ready(), "NetworkReady to become false")
        with pytest.raises(RuntimeRefusal):
            bridged(cri)
        assert cri.run("echo afloat", pod=cri.pod()).lines == ["afloat"]
    finally:
        for path, text in texts.items():
            path.write_text(text)
    cri.wait(ready, "NetworkReady to become true again")


@pytest.mark.breach(puts("RunPodSandbox.config.linux.security_context.namespace_options.network", NODE))
def test_changed_network_configuration_is_picked_up(cri: CriTrial) -> None:
    """The first file by name counts, also one that comes later."""
    folder = configuration(cri)
    (path,) = folder.glob("*.conflist")
    text = path.read_text().replace('"seatrial0"', '"seatrial1"').replace("10.88.0.0/16", "10.77.0.0/16")
    first = folder / "05-first.conflist"
    first.write_text(text.replace('"name": "seatrial"', '"name": "seatrial-first"'))

    def found() -> str:
        pod = bridged(cri)
        try:
            return str(addresses(pod, cri)[0])
        finally:
            cri.stop_pod(pod)
            cri.remove_pod(pod)

    try:
        cri.wait(lambda: found().startswith("10.77."), "a pod in the new network")
    finally:
        first.unlink()
    cri.wait(lambda: found().startswith("10.88."), "a pod in the old network again")
