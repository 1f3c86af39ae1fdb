"""Every metric there is, named as cAdvisor names it: what it is called, what it means, and how it is read off.

One table, so that a descriptor cannot say anything else than the metric. CRI's values are whole numbers: times are whole
seconds, as containerd gives them.
"""

from __future__ import annotations

import contextlib
import os
import resource
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from cri_api.v1 import api_pb2 as api

from harness.minirt.cri.interfaces import Interface
from harness.minirt.cri.records import Container
from harness.minirt.cri.usage import Cpu, Disk, Memory
from harness.minirt.cri.writable import Measured

COUNTER, GAUGE = api.MetricType.COUNTER, api.MetricType.GAUGE
_SECOND = 1_000_000_000

Rows = Iterable[tuple[tuple[str, ...], int | None]]
"""the values of further labels, and the figure; None: there is none"""


@dataclass(frozen=True, slots=True)
class Facts:
    """What there is to say of a running container."""

    container: Container
    cpu: Cpu
    memory: Memory
    disks: Sequence[Disk]
    pids: Sequence[int]
    threads: tuple[int, int]
    layer: Measured
    device: str
    """the file system on which it writes"""
    files: os.statvfs_result


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric: of a container's `Facts`, or one `Interface` of a pod."""

    name: str
    help: str
    kind: Any
    read: Callable[[Any], Rows]
    labels: tuple[str, ...] = ()


def _one(figure: Callable[[Facts], int | None]) -> Callable[[Facts], Rows]:
    return lambda facts: [((), figure(facts))]


def _per_disk(figure: Callable[[Disk], int]) -> Callable[[Facts], Rows]:
    return lambda facts: [((_device_name(disk),), figure(disk)) for disk in facts.disks]


def _cpu(name: str, help: str, figure: Callable[[Cpu], int]) -> Metric:
    return Metric(f"container_cpu_{name}", help, COUNTER, _one(lambda facts: figure(facts.cpu)))


def _memory(name: str, help: str, figure: Callable[[Memory], int | None], kind: Any = GAUGE) -> Metric:
    return Metric(f"container_memory_{name}", help, kind, _one(lambda facts: figure(facts.memory)))


def _files(name: str, help: str, figure: Callable[[Facts], int]) -> Metric:
    return Metric(f"container_fs_{name}", help, GAUGE, lambda facts: [((facts.device,), figure(facts))], ("device",))


def _disk(name: str, help: str, figure: Callable[[Disk], int]) -> Metric:
    return Metric(f"container_fs_{name}_total", help, COUNTER, _per_disk(figure), ("device",))


def _network(name: str, help: str, figure: Callable[[Interface], int]) -> Metric:
    return Metric(
        f"container_network_{name}_total", help, COUNTER, lambda row: [((row.name,), figure(row))], ("interface",)
    )


CONTAINER_METRICS: tuple[Metric, ...] = (
    _cpu("usage_seconds_total", "CPU time used, in seconds.", lambda cpu: cpu.used_ns // _SECOND),
    _cpu("user_seconds_total", "CPU time used in user mode, in seconds.", lambda cpu: cpu.user_ns // _SECOND),
    _cpu("system_seconds_total", "CPU time used in the kernel, in seconds.", lambda cpu: cpu.system_ns // _SECOND),
    _cpu("cfs_periods_total", "Periods in which a CPU quota was counted.", lambda cpu: cpu.periods),
    _cpu("cfs_throttled_periods_total", "Periods in which the CPU quota ran out.", lambda cpu: cpu.throttled_periods),
    _cpu(
        "cfs_throttled_seconds_total",
        "Time spent waiting for more CPU quota, in seconds.",
        lambda cpu: cpu.throttled_ns // _SECOND,
    ),
    _memory("usage_bytes", "Memory in use, of every kind.", lambda memory: memory.used),
    _memory("max_usage_bytes", "The most memory that was ever in use.", lambda memory: memory.peak),
    _memory("working_set_bytes", "Memory without file pages that are not in use.", lambda memory: memory.working_set),
    _memory("rss", "Anonymous memory, in bytes.", lambda memory: memory.rss),
    _memory("cache", "Memory of the page cache, in bytes.", lambda memory: memory.cache),
    _memory("mapped_file", "Memory of mapped files, in bytes.", lambda memory: memory.mapped),
    _memory("kernel_usage", "Memory that the kernel holds for it, in bytes.", lambda memory: memory.kernel),
    _memory("swap", "Memory that is swapped out, in bytes.", lambda memory: memory.swap),
    _memory("total_active_file_bytes", "File pages that are in use.", lambda memory: memory.active_file),
    _memory("total_inactive_file_bytes", "File pages that are not in use.", lambda memory: memory.inactive_file),
    _memory("failcnt", "How often the memory limit was hit.", lambda memory: memory.limit_hits, COUNTER),
    Metric(
        "container_memory_failures_total",
        "Page faults.",
        COUNTER,
        lambda facts: [
            (("pgfault", "hierarchy"), facts.memory.faults),
            (("pgmajfault", "hierarchy"), facts.memory.major_faults),
        ],
        ("failure_type", "scope"),
    ),
    Metric(
        "container_oom_events_total",
        "Processes that the kernel killed for want of memory.",
        COUNTER,
        _one(lambda facts: facts.memory.oom_kills),
    ),
    _files("usage_bytes", "What was written into its root, in bytes.", lambda facts: facts.layer.usage.bytes),
    _files("limit_bytes", "Size of the file system it writes to.", lambda f: f.files.f_blocks * f.files.f_frsize),
    _files("inodes_total", "Inodes of the file system it writes to.", lambda facts: facts.files.f_files),
    _files("inodes_free", "Free inodes of the file system it writes to.", lambda facts: facts.files.f_ffree),
    _disk("reads_bytes", "Bytes read from a device.", lambda disk: disk.read_bytes),
    _disk("writes_bytes", "Bytes written to a device.", lambda disk: disk.written_bytes),
    _disk("reads", "Reads from a device.", lambda disk: disk.reads),
    _disk("writes", "Writes to a device.", lambda disk: disk.writes),
    Metric(
        "container_blkio_device_usage_total",
        "Bytes that went to and from a device.",
        COUNTER,
        lambda facts: [
            ((_device_name(disk), str(disk.major), str(disk.minor), operation), figure)
            for disk in facts.disks
            for operation, figure in (("Read", disk.read_bytes), ("Write", disk.written_bytes))
        ],
        ("device", "major", "minor", "operation"),
    ),
    Metric("container_processes", "Processes.", GAUGE, _one(lambda facts: len(facts.pids))),
    Metric("container_threads", "Threads.", GAUGE, _one(lambda facts: facts.threads[0])),
    Metric("container_threads_max", "Most threads; 0: no limit.", GAUGE, _one(lambda facts: facts.threads[1])),
    Metric("container_file_descriptors", "Open descriptors.", GAUGE, _one(lambda facts: _descriptors(facts.pids)[0])),
    Metric("container_sockets", "Open sockets.", GAUGE, _one(lambda facts: _descriptors(facts.pids)[1])),
    Metric(
        "container_ulimits_soft",
        "Soft limits of its first process.",
        GAUGE,
        lambda facts: [(("max_open_files",), _open_files_limit(facts.container.pid))],
        ("ulimit",),
    ),
    Metric(
        "container_start_time_seconds",
        "When it was started, in seconds since 1970.",
        GAUGE,
        _one(lambda facts: facts.container.started_ns // _SECOND),
    ),
    Metric("container_last_seen", "When it was looked at, in seconds.", GAUGE, _one(lambda facts: int(time.time()))),
    Metric("container_spec_cpu_period", "Period of its quota, in µs.", GAUGE, _one(lambda f: _wish(f, "cpu_period"))),
    Metric("container_spec_cpu_shares", "CPU shares.", GAUGE, _one(lambda facts: _wish(facts, "cpu_shares"))),
    Metric(
        "container_spec_memory_limit_bytes",
        "Memory limit; 0: none.",
        GAUGE,
        _one(lambda facts: facts.memory.limit),
    ),
    Metric(
        "container_spec_memory_swap_limit_bytes",
        "Swap limit; 0: none.",
        GAUGE,
        _one(lambda facts: facts.memory.swap_limit),
    ),
)

POD_METRICS: tuple[Metric, ...] = (
    _network("receive_bytes", "Bytes received.", lambda row: row.received_bytes),
    _network("receive_packets", "Packets received.", lambda row: row.received_packets),
    _network("receive_packets_dropped", "Packets dropped while receiving.", lambda row: row.receive_drops),
    _network("receive_errors", "Errors while receiving.", lambda row: row.receive_errors),
    _network("transmit_bytes", "Bytes sent.", lambda row: row.sent_bytes),
    _network("transmit_packets", "Packets sent.", lambda row: row.sent_packets),
    _network("transmit_packets_dropped", "Packets dropped while sending.", lambda row: row.send_drops),
    _network("transmit_errors", "Errors while sending.", lambda row: row.send_errors),
)


def _wish(facts: Facts, name: str) -> int | None:
    """A number of the container's configured resources; None where it is not set."""
    return getattr(facts.container.config.linux.resources, name) or None


def _descriptors(pids: Sequence[int]) -> tuple[int, int]:
    """Open descriptors and, among them, sockets."""
    opened = sockets = 0
    for pid in pids:
        with contextlib.suppress(OSError), os.scandir(f"/proc/{pid}/fd") as entries:
            for entry in entries:
                opened += 1
                with contextlib.suppress(OSError):
                    sockets += os.readlink(entry.path).startswith("socket:")
    return opened, sockets


def _open_files_limit(pid: int) -> int | None:
    try:
        soft, _ = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    except (OSError, ValueError):
        return None
    return None if soft == resource.RLIM_INFINITY else soft


def _device_name(disk: Disk) -> str:
    try:
        return "/dev/" + os.path.basename(os.readlink(f"/sys/dev/block/{disk.major}:{disk.minor}"))
    except OSError:
        return f"{disk.major}:{disk.minor}"
