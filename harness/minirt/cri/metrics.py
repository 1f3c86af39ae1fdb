"""Metrics of pods and containers (CRI: ListMetricDescriptors, ListPodSandboxMetrics)."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Mapping
from typing import Any

from cri_api.v1 import api_pb2 as api

from harness.minirt.cri.containers import Containers
from harness.minirt.cri.interfaces import Interface, read_interfaces
from harness.minirt.cri.metric_table import CONTAINER_METRICS, POD_METRICS, Facts, Metric
from harness.minirt.cri.pods import Pods
from harness.minirt.cri.records import RUNNING, Container, Pod
from harness.minirt.cri.stats import Stats
from harness.minirt.cri.writable import Measured

LABELS = ("pod", "namespace", "container", "id", "image")
"""what every metric has, whatever more"""


class Metrics:
    """Answers the two calls. Only pods that are ready, and containers that run, have metrics."""

    def __init__(self, stats: Stats, pods: Pods, containers: Containers, root: str) -> None:
        self._stats = stats
        self._pods = pods
        self._containers = containers
        self._root = root

    def descriptors(self) -> list[Any]:
        return [
            api.MetricDescriptor(name=metric.name, help=metric.help, label_keys=[*LABELS, *metric.labels])
            for metric in (*CONTAINER_METRICS, *POD_METRICS)
        ]

    def read(self) -> list[Any]:
        """PodSandboxMetrics of every pod."""
        pods = [pod for pod in self._pods.list() if pod.ready]
        paths = {pod.id: path for pod in pods if (path := self._pods.netns(pod))}
        interfaces = read_interfaces(paths.values()) if paths else {}
        running = [container for container in self._containers.list() if container.state == RUNNING]
        layers = self._stats.layers(running)
        inside: dict[str, list[Any]] = {}
        files, device = os.statvfs(self._root), _mounted_device(self._root)
        for container in running:
            with contextlib.suppress(OSError):  # it ended this very moment
                facts = self._facts(container, layers, files, device)
                inside.setdefault(container.pod_id, []).append(facts)
        return [self._pod(pod, interfaces.get(paths.get(pod.id, ""), ()), inside.get(pod.id, ())) for pod in pods]

    def _facts(
        self, container: Container, layers: Mapping[str, Measured], files: os.statvfs_result, device: str
    ) -> Facts:
        usages, cgroup = self._stats.usages, container.cgroup
        return Facts(
            container,
            usages.cpu(cgroup),
            usages.memory(cgroup),
            usages.disks(cgroup),
            usages.processes(cgroup),
            usages.threads(cgroup),
            layers[container.id],
            device,
            files,
        )

    def _pod(self, pod: Pod, interfaces: Iterable[Interface], facts: Iterable[Facts]) -> Any:
        metadata, now = pod.config.metadata, time.time_ns()
        whose = (metadata.name, metadata.namespace)
        return api.PodSandboxMetrics(
            pod_sandbox_id=pod.id,
            metrics=[
                row
                for interface in interfaces
                for row in _render(POD_METRICS, interface, (*whose, "", pod.id, ""), now)
            ],
            container_metrics=[
                api.ContainerMetrics(
                    container_id=of.container.id,
                    metrics=_render(
                        CONTAINER_METRICS,
                        of,
                        (*whose, of.container.config.metadata.name, of.container.id, _image_name(of.container)),
                        now,
                    ),
                )
                for of in facts
            ],
        )


def _render(metrics: Iterable[Metric], subject: Any, labels: tuple[str, ...], now: int) -> list[Any]:
    return [
        api.Metric(
            name=metric.name,
            timestamp=now,
            metric_type=metric.kind,
            label_values=[*labels, *more],
            value=api.UInt64Value(value=figure),
        )
        for metric in metrics
        for more, figure in metric.read(subject)
        if figure is not None
    ]


def _image_name(container: Container) -> str:
    image = container.config.image
    return str(image.user_specified_image or image.image)


def _mounted_device(path: str) -> str:
    """What the file system that `path` is on was mounted from."""
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with open("/proc/self/mountinfo", errors="surrogateescape") as file:
        for line in file:
            left, _, right = line.partition(" - ")
            if left.split(" ", 3)[2] == wanted:
                return right.split(" ")[1].encode(errors="replace").decode()
    return wanted
