"""CRI's stats of containers and pods, made of what `usage`, `interfaces` and `writable` read."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from cri_api.v1 import api_pb2 as api

from harness.linux.cgroups import Layout
from harness.minirt.cri.containers import Containers
from harness.minirt.cri.interfaces import Interface, read_interfaces
from harness.minirt.cri.pods import Pods
from harness.minirt.cri.records import RUNNING, Container, Pod
from harness.minirt.cri.usage import Cpu, Memory, Pressure, Usages
from harness.minirt.cri.writable import Measured, WritableLayers
from harness.minirt.errors import Unavailable
from harness.minirt.network.cni import INTERFACE

_SHORTEST_INTERVAL_NS = 100_000_000


class Rates:
    """CPU use at present: between the last two times that it was asked for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._samples: dict[str, tuple[int, int, int | None]] = {}

    def of(self, id: str, used_ns: int, now_ns: int) -> int | None:
        """Nanoseconds of CPU a second; None the first time. `now_ns`: of a clock that never jumps."""
        with self._lock:
            before_ns, used_before_ns, rate = self._samples.get(id, (0, 0, None))
            interval_ns = now_ns - before_ns
            if id in self._samples and interval_ns < _SHORTEST_INTERVAL_NS:
                return rate
            if id in self._samples and used_ns >= used_before_ns:
                rate = (used_ns - used_before_ns) * 1_000_000_000 // interval_ns
            self._samples[id] = (now_ns, used_ns, rate)
            return rate

    def forget(self, id: str) -> None:
        with self._lock:
            self._samples.pop(id, None)


class Stats:
    """Answers the four calls. What ended has attributes and a writable layer, but uses nothing any more."""

    def __init__(self, layout: Layout, root: str, pods: Pods, containers: Containers) -> None:
        self._root = root
        self._pods = pods
        self._containers = containers
        self._rates = Rates()
        self.usages = Usages(layout)
        self.writable = WritableLayers()

    def close(self) -> None:
        self.writable.close()

    def forget(self, id: str) -> None:
        """Drop what is remembered of a container or pod that is gone."""
        self._rates.forget(id)
        self.writable.forget(id)

    def layers(self, containers: Sequence[Container]) -> dict[str, Measured]:
        """The writable layer of each."""
        return self.writable.look({container.id: self._containers.upper(container) for container in containers})

    def containers(self, containers: Sequence[Container]) -> list[Any]:
        """ContainerStats of each."""
        layers = self.layers(containers)
        return [self._container(container, layers[container.id]) for container in containers]

    def pod(self, pod: Pod) -> Any:
        """PodSandboxStats. Raises `Unavailable` for one that is not ready."""
        if not pod.ready:
            raise Unavailable(f"pod sandbox {pod.id} is not ready")
        return self.pods([pod])[0]

    def pods(self, pods: Sequence[Pod]) -> list[Any]:
        """PodSandboxStats of each; their containers are in it."""
        namespaces = {pod.id: self._pods.netns(pod) for pod in pods}
        interfaces = read_interfaces(path for path in namespaces.values() if path) if any(namespaces.values()) else {}
        inside = {pod.id: self._containers.list(pod.id) for pod in pods}
        layers = self.layers([container for rows in inside.values() for container in rows])
        alone = self._alone()
        return [
            self._pod(pod, inside[pod.id], layers, interfaces.get(namespaces[pod.id]), pod.id in alone) for pod in pods
        ]

    def _alone(self) -> set[str]:
        """The pods that have a cgroup parent to themselves."""
        parents: dict[str, list[str]] = {}
        for pod in self._pods.list():
            parents.setdefault(pod.cgroup_parent, []).append(pod.id)
        return {ids[0] for ids in parents.values() if len(ids) == 1}

    def _pod(
        self,
        pod: Pod,
        containers: Sequence[Container],
        layers: Mapping[str, Measured],
        interfaces: list[Interface] | None,
        alone: bool,
    ) -> Any:
        rows = [self._container(container, layers[container.id]) for container in containers]
        now = time.time_ns()
        stats = api.PodSandboxStats(
            attributes=api.PodSandboxAttributes(
                id=pod.id, metadata=pod.config.metadata, labels=pod.config.labels, annotations=pod.config.annotations
            )
        )
        linux = stats.linux
        linux.containers.extend(rows)
        try:
            if not alone:
                raise FileNotFoundError
            linux.cpu.CopyFrom(self._cpu(pod.id, self.usages.cpu(pod.cgroup_parent), now))
            linux.memory.CopyFrom(_memory(self.usages.memory(pod.cgroup_parent), now))
            _add_io(linux, self.usages.io_pressure(pod.cgroup_parent), now)
        except OSError:  # nothing was started in it yet, or others use the same cgroup: what its containers say is all
            linux.ClearField("io")
            linux.cpu.CopyFrom(self._cpu(pod.id, _sum_of_cpu(rows), now))
            linux.memory.CopyFrom(_sum_of_memory(rows, now))
        linux.process.timestamp = now
        linux.process.process_count.value = sum(
            len(self.usages.processes(container.cgroup)) for container in containers if container.state == RUNNING
        )
        if interfaces is not None:
            linux.network.CopyFrom(_network(interfaces, now))
        return stats

    def _container(self, container: Container, layer: Measured) -> Any:
        stats = api.ContainerStats(
            attributes=api.ContainerAttributes(
                id=container.id,
                metadata=container.config.metadata,
                labels=container.config.labels,
                annotations=container.config.annotations,
            )
        )
        written = stats.writable_layer
        written.timestamp = layer.taken_ns or time.time_ns()
        written.fs_id.mountpoint = self._root
        written.used_bytes.value = layer.usage.bytes
        written.inodes_used.value = layer.usage.inodes
        if container.state == RUNNING:
            try:
                self._add_use(stats, container)
            except OSError:  # it ended this very moment
                for name in ("cpu", "memory", "swap", "io"):
                    stats.ClearField(name)
        return stats

    def _add_use(self, stats: Any, container: Container) -> None:
        now = time.time_ns()
        stats.cpu.CopyFrom(self._cpu(container.id, self.usages.cpu(container.cgroup), now))
        memory = self.usages.memory(container.cgroup)
        stats.memory.CopyFrom(_memory(memory, now))
        if memory.swap is not None:
            stats.swap.timestamp = now
            stats.swap.swap_usage_bytes.value = memory.swap
            if memory.swap_limit:
                stats.swap.swap_available_bytes.value = max(memory.swap_limit - memory.swap, 0)
        _add_io(stats, self.usages.io_pressure(container.cgroup), now)

    def _cpu(self, id: str, cpu: Cpu, now: int) -> Any:
        usage = api.CpuUsage(
            timestamp=now,
            usage_core_nano_seconds=api.UInt64Value(value=cpu.used_ns),
            psi=_pressure(cpu.pressure),
        )
        rate = self._rates.of(id, cpu.used_ns, time.monotonic_ns())
        if rate is not None:
            usage.usage_nano_cores.value = rate
        return usage


def _memory(memory: Memory, now: int) -> Any:
    return api.MemoryUsage(
        timestamp=now,
        working_set_bytes=_value(memory.working_set),
        available_bytes=None if memory.available is None else _value(memory.available),
        usage_bytes=_value(memory.used),
        rss_bytes=_value(memory.rss),
        page_faults=_value(memory.faults),
        major_page_faults=_value(memory.major_faults),
        psi=_pressure(memory.pressure),
    )


def _network(interfaces: Sequence[Interface], now: int) -> Any:
    usage = api.NetworkUsage(
        timestamp=now,
        interfaces=[
            api.NetworkInterfaceUsage(
                name=row.name,
                rx_bytes=_value(row.received_bytes),
                rx_errors=_value(row.receive_errors),
                tx_bytes=_value(row.sent_bytes),
                tx_errors=_value(row.send_errors),
            )
            for row in interfaces
        ],
    )
    default = next((row for row in usage.interfaces if row.name == INTERFACE), next(iter(usage.interfaces), None))
    if default is not None:
        usage.default_interface.CopyFrom(default)
    return usage


def _sum_of_cpu(rows: Sequence[Any]) -> Cpu:
    return Cpu(sum(row.cpu.usage_core_nano_seconds.value for row in rows), 0, 0)


def _sum_of_memory(rows: Sequence[Any], now: int) -> Any:
    usage = api.MemoryUsage(timestamp=now)
    for name in ("working_set_bytes", "usage_bytes", "rss_bytes", "page_faults", "major_page_faults"):
        getattr(usage, name).value = sum(getattr(row.memory, name).value for row in rows)
    return usage


def _add_io(stats: Any, pressure: Pressure | None, now: int) -> None:
    if pressure is not None:
        stats.io.timestamp = now
        stats.io.psi.CopyFrom(_pressure(pressure))


def _pressure(pressure: Pressure | None) -> Any:
    if pressure is None:
        return None
    return api.PsiStats(
        **{
            name: api.PsiData(Total=row.total_ns, Avg10=row.avg10, Avg60=row.avg60, Avg300=row.avg300)
            for name, row in (("Full", pressure.full), ("Some", pressure.some))
        }
    )


def _value(number: int) -> Any:
    return api.UInt64Value(value=number)
