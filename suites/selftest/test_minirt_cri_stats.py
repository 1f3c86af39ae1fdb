"""Stats, metrics and events of containers that run, as a client sees them."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cri_api.v1 import api_pb2 as api
from minirt_daemon import CGROUP, Daemon, running_with_image

from harness.clock import wait_until
from harness.minirt.cri.events import LONGEST_BACKLOG, MOST_LISTENERS, Listener
from harness.minirt.cri.writable import WritableLayers
from harness.minirt.errors import Exhausted

FOREVER = "while :; do sleep 0.1; done"
LIMIT = api.LinuxContainerResources(memory_limit_in_bytes=64 << 20)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, str]]:
    with running_with_image(tmp_path_factory.mktemp("minirt")) as found:
        yield found


@pytest.fixture
def daemon(served: tuple[Daemon, str]) -> Daemon:
    return served[0]


@pytest.fixture
def image(served: tuple[Daemon, str]) -> str:
    return served[1]


@pytest.fixture
def pod(daemon: Daemon, request: pytest.FixtureRequest) -> Iterator[str]:
    id = daemon.pod(re.sub(r"\W", "-", request.node.name), labels={"test": "stats"})
    yield id
    daemon.remove_pod(id)


def stats_of(daemon: Daemon, id: str) -> Any:
    return daemon.runtime.ContainerStats(api.ContainerStatsRequest(container_id=id)).stats


def pod_stats(daemon: Daemon, id: str) -> Any:
    return daemon.runtime.PodSandboxStats(api.PodSandboxStatsRequest(pod_sandbox_id=id)).stats


def code(error: pytest.ExceptionInfo[grpc.RpcError]) -> grpc.StatusCode:
    return error.value.code()  # type: ignore[attr-defined,no-any-return]


# -- stats -----------------------------------------------------------------------------------------------------------------


def test_a_container_that_works(daemon: Daemon, image: str, pod: str) -> None:
    id = daemon.run(pod, image, "dd if=/dev/zero of=/file bs=1M count=3; while :; do :; done", labels={"a": "b"})
    first = stats_of(daemon, id)
    assert not first.cpu.HasField("usage_nano_cores")

    def working() -> bool:
        stats = stats_of(daemon, id)
        return bool(stats.cpu.usage_nano_cores.value > 10_000_000 and stats.writable_layer.used_bytes.value >= 3 << 20)

    wait_until(working, 20, "a CPU rate and three written megabytes")
    stats = stats_of(daemon, id)
    assert stats.attributes.id == id
    assert (stats.attributes.metadata.name, dict(stats.attributes.labels)) == ("box", {"a": "b"})
    assert stats.cpu.usage_core_nano_seconds.value > first.cpu.usage_core_nano_seconds.value
    assert stats.cpu.timestamp > first.cpu.timestamp > 0
    assert 0 < stats.memory.working_set_bytes.value <= stats.memory.usage_bytes.value
    assert 0 < stats.memory.rss_bytes.value <= stats.memory.usage_bytes.value
    assert stats.memory.page_faults.value > 0
    assert not stats.memory.HasField("available_bytes")
    assert stats.writable_layer.inodes_used.value >= 2
    assert stats.writable_layer.fs_id.mountpoint == str(daemon.root)
    assert stats.writable_layer.timestamp > 0


def test_what_is_left_below_a_limit(daemon: Daemon, image: str, pod: str) -> None:
    config = api.ContainerConfig(
        metadata=api.ContainerMetadata(name="limited"),
        image=api.ImageSpec(image=image),
        command=["sh", "-c", FOREVER],
        linux=api.LinuxContainerConfig(resources=LIMIT),
    )
    request = api.CreateContainerRequest(pod_sandbox_id=pod, config=config)
    id = daemon.runtime.CreateContainer(request).container_id
    daemon.start_container(id)
    memory = stats_of(daemon, id).memory
    assert memory.available_bytes.value == (64 << 20) - memory.working_set_bytes.value


def test_what_has_ended_uses_nothing_but_what_it_wrote(daemon: Daemon, image: str, pod: str) -> None:
    id = daemon.run(pod, image, "echo written > /file")
    daemon.wait_exited(id)
    wait_until(lambda: stats_of(daemon, id).writable_layer.used_bytes.value, 20, "the measurement")
    stats = stats_of(daemon, id)
    assert not stats.HasField("cpu")
    assert not stats.HasField("memory")
    assert stats.attributes.metadata.name == "box"


def test_filters(daemon: Daemon, image: str, pod: str) -> None:
    ids = [daemon.run(pod, image, FOREVER, name, labels={"is": name}) for name in ("one", "two")]

    def listed(**wanted: Any) -> list[str]:
        request = api.ListContainerStatsRequest(filter=api.ContainerStatsFilter(**wanted))
        return [row.attributes.id for row in daemon.runtime.ListContainerStats(request).stats]

    assert sorted(listed()) == sorted(ids)
    assert listed(id=ids[0][:20]) == [ids[0]]
    assert sorted(listed(pod_sandbox_id=pod)) == sorted(ids)
    assert listed(label_selector={"is": "two"}) == [ids[1]]
    assert listed(label_selector={"is": "three"}) == []

    def pods(**wanted: Any) -> list[str]:
        request = api.ListPodSandboxStatsRequest(filter=api.PodSandboxStatsFilter(**wanted))
        return [row.attributes.id for row in daemon.runtime.ListPodSandboxStats(request).stats]

    assert pods() == pods(id=pod[:20]) == pods(label_selector={"test": "stats"}) == [pod]
    assert pods(label_selector={"test": "other"}) == []


def test_a_pod_with_its_containers(daemon: Daemon, image: str, pod: str) -> None:
    empty = pod_stats(daemon, pod)
    assert empty.linux.process.process_count.value == 0
    assert not empty.linux.HasField("network")  # the machine's own
    ids = [daemon.run(pod, image, FOREVER, name) for name in ("one", "two")]
    wait_until(lambda: pod_stats(daemon, pod).linux.process.process_count.value >= 4, 20, "two shells and their sleeps")
    stats = pod_stats(daemon, pod)
    assert stats.attributes.id == pod
    assert sorted(row.attributes.id for row in stats.linux.containers) == sorted(ids)
    parts = sum(row.cpu.usage_core_nano_seconds.value for row in stats.linux.containers)
    assert stats.linux.cpu.usage_core_nano_seconds.value >= parts > 0
    assert stats.linux.memory.working_set_bytes.value > 0
    daemon.stop(ids[0])
    assert (
        pod_stats(daemon, pod).linux.cpu.usage_core_nano_seconds.value >= stats.linux.cpu.usage_core_nano_seconds.value
    )
    daemon.runtime.StopPodSandbox(api.StopPodSandboxRequest(pod_sandbox_id=pod))
    with pytest.raises(grpc.RpcError) as error:
        pod_stats(daemon, pod)
    assert code(error) == grpc.StatusCode.UNAVAILABLE
    assert not daemon.runtime.ListPodSandboxStats(api.ListPodSandboxStatsRequest()).stats


def test_pods_in_one_cgroup_are_told_apart(daemon: Daemon, image: str) -> None:
    shared = api.LinuxPodSandboxConfig(cgroup_parent=f"{CGROUP}/shared")
    shared.security_context.namespace_options.network = api.NamespaceMode.NODE
    ids = []
    for name in ("a", "b"):
        config = daemon.pod_config(name)
        config.linux.CopyFrom(shared)
        ids.append(daemon.runtime.RunPodSandbox(api.RunPodSandboxRequest(config=config)).pod_sandbox_id)
    try:
        daemon.run(ids[0], image, FOREVER)
        assert pod_stats(daemon, ids[0]).linux.memory.usage_bytes.value > 0
        assert pod_stats(daemon, ids[1]).linux.memory.usage_bytes.value == 0
    finally:
        for id in ids:
            daemon.remove_pod(id)


def test_a_layer_that_takes_long_to_measure_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.minirt.cri import writable
    from harness.minirt.images.snapshot import Usage

    go_on = threading.Event()

    def slow(folder: Path) -> Usage:
        go_on.wait(20)
        return Usage(5, 1)

    monkeypatch.setattr(writable, "measure", slow)
    layers = WritableLayers()
    try:
        assert layers.look({"a": tmp_path})["a"].taken_ns == 0
        go_on.set()
        wait_until(lambda: layers.look({"a": tmp_path})["a"].usage.bytes == 5, 10, "the figure")
        layers.forget("a")
    finally:
        go_on.set()
        layers.close()


# -- metrics ---------------------------------------------------------------------------------------------------------------


def test_metrics_have_descriptors(daemon: Daemon, image: str, pod: str) -> None:
    id = daemon.run(pod, image, FOREVER)
    keys = {
        row.name: list(row.label_keys)
        for row in daemon.runtime.ListMetricDescriptors(api.ListMetricDescriptorsRequest()).descriptors
    }
    assert {"container_cpu_usage_seconds_total", "container_memory_working_set_bytes"} <= keys.keys()
    assert "container_network_receive_bytes_total" in keys
    [of_pod] = daemon.runtime.ListPodSandboxMetrics(api.ListPodSandboxMetricsRequest()).pod_metrics
    assert of_pod.pod_sandbox_id == pod
    [of_container] = of_pod.container_metrics
    assert of_container.container_id == id
    found = {}
    for row in (*of_pod.metrics, *of_container.metrics):
        labels = dict(zip(keys[row.name], row.label_values, strict=True))
        assert labels["pod"] == "test_metrics_have_descriptors"
        assert labels["namespace"] == "n"
        assert row.timestamp > 0
        series = (row.name, *row.label_values)
        assert series not in found
        found[series] = row
    names = {row.name: row for row in found.values()}
    assert names["container_memory_working_set_bytes"].value.value > 0
    assert names["container_memory_working_set_bytes"].metric_type == api.MetricType.GAUGE
    assert names["container_cpu_usage_seconds_total"].metric_type == api.MetricType.COUNTER
    assert names["container_processes"].value.value >= 1
    assert names["container_file_descriptors"].value.value >= 3
    assert names["container_start_time_seconds"].value.value == daemon.status(id).started_at // 1_000_000_000
    assert names["container_fs_limit_bytes"].value.value > 0
    assert names["container_last_seen"].label_values[2:4] == ["box", id]
    daemon.stop(id)
    [of_pod] = daemon.runtime.ListPodSandboxMetrics(api.ListPodSandboxMetricsRequest()).pod_metrics
    assert not of_pod.container_metrics


# -- events ----------------------------------------------------------------------------------------------------------------


class Ear:
    """Listens to a daemon's events in a thread of its own."""

    def __init__(self, daemon: Daemon) -> None:
        self.events: list[Any] = []
        self.error: grpc.RpcError | None = None
        self._stream = daemon.runtime.GetContainerEvents(api.GetEventsRequest())
        self._stream.initial_metadata()  # from here on nothing is missed
        self.thread = threading.Thread(target=self._listen)
        self.thread.start()

    def _listen(self) -> None:
        try:
            for event in self._stream:
                self.events.append(event)
        except grpc.RpcError as error:
            self.error = error

    def heard(self, id: str) -> list[str]:
        kinds = [event.container_event_type for event in self.events if event.container_id == id]
        return [api.ContainerEventType.Name(kind).split("_")[1].lower() for kind in kinds]

    def close(self) -> None:
        self._stream.cancel()
        self.thread.join()


@pytest.fixture
def ears(daemon: Daemon) -> Iterator[list[Ear]]:
    ears = [Ear(daemon), Ear(daemon)]
    yield ears
    for ear in ears:
        ear.close()


def test_the_events_of_a_life(daemon: Daemon, image: str, ears: list[Ear]) -> None:
    before = time.time_ns()
    pod = daemon.pod("eventful")
    id = daemon.run(pod, image, "exit 3")
    daemon.wait_exited(id)
    daemon.remove(id)
    daemon.remove_pod(pod)
    whole = ["created", "started", "stopped", "deleted"]
    for ear in ears:
        wait_until(lambda ear=ear: ear.heard(pod) == whole, 10, "the pod's end")
        assert ear.heard(id) == whole
        assert [event.container_id for event in ear.events][:2] == [pod, pod]
        assert all(event.pod_sandbox_status.id == pod for event in ear.events)
        assert all(event.created_at >= before for event in ear.events)
        created, started, stopped, deleted = (event for event in ear.events if event.container_id == id)
        assert [row.state for row in created.containers_statuses] == [api.CONTAINER_CREATED]
        assert [row.id for row in started.containers_statuses] == [id]
        [status] = stopped.containers_statuses
        assert (status.state, status.exit_code) == (api.CONTAINER_EXITED, 3)
        assert not deleted.containers_statuses
        assert ear.events[-1].pod_sandbox_status.state == api.SANDBOX_NOTREADY


def test_a_container_that_cannot_be_started_is_told_as_stopped(
    daemon: Daemon, image: str, pod: str, ears: list[Ear]
) -> None:
    config = api.ContainerConfig(
        metadata=api.ContainerMetadata(name="none"), image=api.ImageSpec(image=image), command=["/no/such"]
    )
    request = api.CreateContainerRequest(pod_sandbox_id=pod, config=config)
    id = daemon.runtime.CreateContainer(request).container_id
    with contextlib.suppress(grpc.RpcError):
        daemon.start_container(id)
    wait_until(lambda: ears[0].heard(id) == ["created", "stopped"], 10, "both events")


def test_so_many_may_listen(daemon: Daemon) -> None:
    ears = [Ear(daemon) for _ in range(MOST_LISTENERS)]
    try:
        late = Ear(daemon)
        late.thread.join()
        assert late.error is not None
        assert late.error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED  # type: ignore[attr-defined]
        assert daemon.runtime.Version(api.VersionRequest()).runtime_name == "minirt"
    finally:
        for ear in ears:
            ear.close()

    def another() -> bool:
        ear = Ear(daemon)
        try:
            ear.thread.join(0.2)  # a refusal would end it
            return ear.thread.is_alive()
        finally:
            ear.close()

    wait_until(another, 10, "a place that is free again")


def test_who_does_not_fetch_events_is_let_go() -> None:
    listener = Listener()
    assert all(listener.put(number) for number in range(LONGEST_BACKLOG))
    assert not listener.put("one too many")
    with pytest.raises(Exhausted, match="list again"):
        next(iter(listener))


def test_listeners_are_told_that_the_daemon_ends(tmp_path: Path) -> None:
    with running_with_image(tmp_path) as (daemon, _):
        ear = Ear(daemon)
        process = daemon.process
        assert process is not None
        process.terminate()
        ear.thread.join(20)
        assert ear.error is not None
        assert ear.error.code() == grpc.StatusCode.UNAVAILABLE  # type: ignore[attr-defined]
        assert process.wait(20) == 0
