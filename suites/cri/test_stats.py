"""What pods and containers use (cri-api v1, ``ContainerStats``, ``PodSandboxStats``, ``PodSandboxMetrics``)."""

from __future__ import annotations

import time
from typing import Any

import pytest

from harness.errors import NotFound, RuntimeRefusal
from harness.model.area import Area
from harness.model.container import Network
from harness.session.breach import accepts, answers, drops, pretends
from harness.session.cri import CriTrial

pytestmark = pytest.mark.operation(Area.STATS)

MB = 1 << 20
BUSY = ("/bin/sh", "-c", "while :; do :; done")


def stats(cri: CriTrial, container: str) -> Any:
    return cri.call("ContainerStats", container_id=container).stats


@pytest.mark.breach(answers("ContainerStats.stats.attributes"))
def test_stats_name_their_container(cri: CriTrial) -> None:
    """ContainerAttributes: id, metadata, labels and annotations."""
    box = cri.launch(labels={"app": "harbour"}, annotations={"note": "deep"})
    found = stats(cri, box.id).attributes
    assert (found.id, found.metadata.name) == (box.id, box.name)
    assert (dict(found.labels), dict(found.annotations)) == ({"app": "harbour"}, {"note": "deep"})


@pytest.mark.breach(answers("ContainerStats.stats.cpu"))
def test_cpu_of_a_container(cri: CriTrial) -> None:
    """usage_core_nano_seconds: "Cumulative CPU usage (sum across all cores) since object creation"."""
    box = cri.launch(BUSY)
    before = time.time_ns()
    cri.wait(lambda: stats(cri, box.id).cpu.usage_core_nano_seconds.value > 100_000_000, "100 ms of CPU time")
    first, second = stats(cri, box.id).cpu, stats(cri, box.id).cpu
    assert before - 60_000_000_000 < first.timestamp <= second.timestamp <= time.time_ns()
    assert first.usage_core_nano_seconds.value <= second.usage_core_nano_seconds.value < 60_000_000_000


@pytest.mark.breach(answers("ContainerStats.stats.memory"))
def test_memory_of_a_container(cri: CriTrial) -> None:
    """working_set_bytes: "The amount of working set memory in bytes", with what the program holds."""
    script = "dd if=/dev/zero of=/dev/shm/hold bs=1M count=20 2>/dev/null; echo ready; sleep 3600"
    box = cri.launch(["/bin/sh", "-c", script], linux={"resources": {"memory_limit_in_bytes": 128 * MB}})
    cri.await_line(box, "ready")
    found = stats(cri, box.id).memory
    assert found.timestamp > 0
    assert 20 * MB <= found.working_set_bytes.value <= 40 * MB
    cri.said(box, "rm /dev/shm/hold")


@pytest.mark.breach(answers("ContainerStats.stats.memory.rss_bytes"))
def test_parts_of_the_memory_of_a_container(cri: CriTrial) -> None:
    """available_bytes "is defined as the memory limit - workingSetBytes"; usage, rss and page faults."""
    cri.since("1.26")
    box = cri.launch(linux={"resources": {"memory_limit_in_bytes": 64 * MB}})
    found = stats(cri, box.id).memory
    assert found.available_bytes.value == 64 * MB - found.working_set_bytes.value
    assert 0 < found.rss_bytes.value <= found.usage_bytes.value <= 64 * MB
    assert found.page_faults.value > 0


@pytest.mark.breach(answers("ContainerStats.stats.writable_layer"))
def test_files_of_a_container(cri: CriTrial) -> None:
    """writable_layer: "Usage of the writable layer", in bytes and inodes."""
    box = cri.launch()
    before = stats(cri, box.id).writable_layer
    cri.said(box, "dd if=/dev/zero of=/cargo bs=1M count=5 2>/dev/null && mkdir /d && touch /d/1 /d/2 /d/3 && sync")

    def grown() -> bool:
        found = stats(cri, box.id).writable_layer
        more = found.used_bytes.value - before.used_bytes.value
        return bool(more >= 5 * MB and found.inodes_used.value >= before.inodes_used.value + 5)

    cri.wait(grown, "the file system's usage to grow")
    found = stats(cri, box.id).writable_layer
    assert found.timestamp > 0
    assert found.fs_id.mountpoint.startswith("/")


@pytest.mark.breach(accepts("ContainerStats"))
def test_stats_of_an_unknown_container(cri: CriTrial) -> None:
    """ContainerStats: "If the container does not exist, the call returns an error"."""
    with pytest.raises(NotFound):
        stats(cri, "no-such-container")


@pytest.mark.breach(drops("ListContainerStats.filter"))
def test_list_of_stats_is_filtered(cri: CriTrial) -> None:
    """ListContainerStats "returns stats of all running containers"; the filter's fields "are combined with 'AND'"."""
    pod, labels = cri.pod(), {"berth": cri.trial.name("label")}
    one, two = cri.launch(pod=pod, labels=labels), cri.launch(pod=pod)
    elsewhere = cri.launch(labels=labels)

    def listed(**filter: Any) -> set[str]:
        return {found.attributes.id for found in cri.call("ListContainerStats", filter=filter).stats}

    assert {one.id, two.id, elsewhere.id} <= listed()
    assert listed(pod_sandbox_id=pod.id) == {one.id, two.id}
    assert listed(label_selector=labels) == {one.id, elsewhere.id}
    assert listed(id=one.id) == {one.id}
    assert listed(id=one.id, pod_sandbox_id=elsewhere.pod.id) == set()


@pytest.mark.breach(answers("PodSandboxStats.stats.linux"))
def test_stats_of_a_pod(cri: CriTrial) -> None:
    """LinuxPodSandboxStats: cpu, memory and processes of the whole, and its containers."""
    pod = cri.pod(labels={"app": "harbour"})
    box = cri.launch(BUSY, pod=pod)
    cri.wait(
        lambda: (
            cri.call("PodSandboxStats", pod_sandbox_id=pod.id).stats.linux.cpu.usage_core_nano_seconds.value > 10**8
        ),
        "100 ms of CPU time of the pod",
    )
    found = cri.call("PodSandboxStats", pod_sandbox_id=pod.id).stats
    assert (found.attributes.id, found.attributes.metadata.name) == (pod.id, pod.name)
    assert dict(found.attributes.labels) == {"app": "harbour"}
    assert [inner.attributes.id for inner in found.linux.containers] == [box.id]
    assert found.linux.cpu.timestamp > 0
    assert found.linux.memory.working_set_bytes.value > 0
    assert found.linux.process.process_count.value >= 1


@pytest.mark.breach(answers("PodSandboxStats.stats.linux.network"))
def test_network_of_a_pod(cri: CriTrial) -> None:
    """NetworkUsage.default_interface: "Cumulative count of bytes received", and sent."""
    pod = cri.pod(Network.BRIDGE, hostname="quay")
    box = cri.launch(pod=pod)
    gateway = cri.said(box, "ip route | grep default").split()[2]
    cri.execute(box, "ping", "-c", "3", "-i", "0.2", "-s", "1000", gateway)

    def seen() -> Any:
        return cri.call("PodSandboxStats", pod_sandbox_id=pod.id).stats.linux.network

    cri.wait(lambda: seen().default_interface.tx_bytes.value > 3000, "the bytes that were sent")
    found = seen()
    assert found.timestamp > 0
    assert found.default_interface.name == "eth0"
    assert found.default_interface.rx_bytes.value > 0


@pytest.mark.breach(accepts("PodSandboxStats"))
def test_stats_of_an_unknown_pod(cri: CriTrial) -> None:
    """PodSandboxStats: "If the pod sandbox does not exist, the call returns an error"."""
    with pytest.raises(RuntimeRefusal):
        cri.call("PodSandboxStats", pod_sandbox_id="no-such-pod")


@pytest.mark.breach(drops("ListPodSandboxStats.filter"))
def test_list_of_pod_stats_is_filtered(cri: CriTrial) -> None:
    """PodSandboxStatsFilter: id and labels."""
    one, two = cri.pod(labels={"berth": cri.trial.name("one")}), cri.pod()

    def listed(**filter: Any) -> set[str]:
        return {found.attributes.id for found in cri.call("ListPodSandboxStats", filter=filter).stats}

    assert {one.id, two.id} <= listed()
    assert listed(label_selector=one.config["labels"]) == {one.id}
    assert listed(id=two.id) == {two.id}


@pytest.mark.breach(pretends("ListMetricDescriptors"))
def test_metrics_are_described(cri: CriTrial) -> None:
    """Metric: the name "must match a name previously returned in a MetricDescriptors call", values as the keys."""
    cri.needs_call("ListPodSandboxMetrics")
    box = cri.launch(pod=cri.pod(Network.BRIDGE, hostname="quay"))
    keys = {found.name: len(found.label_keys) for found in cri.call("ListMetricDescriptors").descriptors}

    def mine() -> Any:
        return next(
            (pod for pod in cri.call("ListPodSandboxMetrics").pod_metrics if pod.pod_sandbox_id == box.pod.id), None
        )

    cri.wait(lambda: mine() and mine().container_metrics, "the metrics of the pod and its container")
    pod = mine()
    assert [found.container_id for found in pod.container_metrics] == [box.id]
    every = [*pod.metrics, *(metric for inner in pod.container_metrics for metric in inner.metrics)]
    assert every
    assert {metric.name: len(metric.label_values) for metric in every}.items() <= keys.items()
