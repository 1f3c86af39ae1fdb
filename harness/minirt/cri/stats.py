"""What containers use, from their cgroups."""

from __future__ import annotations

import time
from typing import Any

from cri_api.v1 import api_pb2 as api

from harness.linux.cgroups import Layout, path_of, read_cpu_ns, read_memory_stat, read_pids
from harness.minirt.cri.records import RUNNING, Container, Pod
from harness.minirt.images.snapshot import measure


def describe(layout: Layout, container: Container, upper: Any) -> Any:
    """ContainerStats of one container: attributes and writable layer always, cpu and memory while it runs."""
    now = time.time_ns()
    stats = api.ContainerStats(
        attributes=api.ContainerAttributes(
            id=container.id,
            metadata=container.config.metadata,
            labels=container.config.labels,
            annotations=container.config.annotations,
        )
    )
    used = measure(upper)
    stats.writable_layer.timestamp = now
    stats.writable_layer.fs_id.mountpoint = str(upper.parent)
    stats.writable_layer.used_bytes.value = used.bytes
    stats.writable_layer.inodes_used.value = used.inodes
    if container.state == RUNNING:
        try:
            stats.cpu.CopyFrom(_cpu(layout, container.cgroup, now))
            stats.memory.CopyFrom(_memory(layout, container.cgroup, now))
        except OSError:  # it ended this very moment
            stats.ClearField("cpu")
            stats.ClearField("memory")
    return stats


def describe_pod(layout: Layout, pod: Pod, containers: list[tuple[Container, Any]]) -> Any:
    """PodSandboxStats: the sums over the pod's containers, and each of them."""
    rows = [describe(layout, container, upper) for container, upper in containers]
    now = time.time_ns()
    stats = api.PodSandboxStats(
        attributes=api.PodSandboxAttributes(
            id=pod.id, metadata=pod.config.metadata, labels=pod.config.labels, annotations=pod.config.annotations
        )
    )
    linux = stats.linux
    linux.containers.extend(rows)
    linux.cpu.timestamp = linux.memory.timestamp = linux.process.timestamp = now
    linux.cpu.usage_core_nano_seconds.value = sum(row.cpu.usage_core_nano_seconds.value for row in rows)
    for name in ("working_set_bytes", "usage_bytes", "rss_bytes", "page_faults", "major_page_faults"):
        getattr(linux.memory, name).value = sum(getattr(row.memory, name).value for row in rows)
    running = [container for container, _ in containers if container.state == RUNNING]
    linux.process.process_count.value = sum(
        len(read_pids(path_of(layout, "pids", container.cgroup))) for container in running
    )
    return stats


def _cpu(layout: Layout, cgroup: str, now: int) -> Any:
    return api.CpuUsage(timestamp=now, usage_core_nano_seconds=api.UInt64Value(value=read_cpu_ns(layout, cgroup)))


def _memory(layout: Layout, cgroup: str, now: int) -> Any:
    folder = path_of(layout, "memory", cgroup)
    stat = read_memory_stat(layout, cgroup)
    if layout.is_v2("memory"):
        usage = int((folder / "memory.current").read_text())
        inactive, rss, prefix = stat.get("inactive_file", 0), stat.get("anon", 0), ""
    else:
        usage = int((folder / "memory.usage_in_bytes").read_text())
        inactive, rss, prefix = stat.get("total_inactive_file", 0), stat.get("total_rss", 0), "total_"

    def value(number: int) -> Any:
        return api.UInt64Value(value=number)

    return api.MemoryUsage(
        timestamp=now,
        working_set_bytes=value(max(usage - inactive, 0)),
        usage_bytes=value(usage),
        rss_bytes=value(rss),
        page_faults=value(stat.get(f"{prefix}pgfault", 0)),
        major_page_faults=value(stat.get(f"{prefix}pgmajfault", 0)),
    )
