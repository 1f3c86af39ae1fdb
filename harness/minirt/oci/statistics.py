"""What a container uses, in the form in which runc's ``events`` prints it, which engines parse.

Times are nanoseconds, sizes bytes, "no limit" the largest number of 64 bits (for pids 0). What is 0 or empty is mostly left
out. Files: the kernel's admin-guide/cgroup-v1/ and admin-guide/cgroup-v2.rst, accounting/psi.rst.
"""

from __future__ import annotations

import errno
import os

from harness.minirt.container.files import read_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from harness.minirt.container.cgroup import Cgroup

    Document = dict[str, Any]

_NO_LIMIT = (1 << 64) - 1
_NS_IN_TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_ABSENT = (errno.ENOENT, errno.EOPNOTSUPP, errno.ENODEV)
_CPUSET_NUMBERS = (
    "cpu_exclusive",
    "mem_hardwall",
    "mem_exclusive",
    "memory_migrate",
    "memory_spread_page",
    "memory_spread_slab",
    "memory_pressure",
    "sched_load_balance",
    "sched_relax_domain_level",
)
_BLOCK_V1 = (
    (
        ("bfq.sectors_recursive", "sectorsRecursive"),
        ("bfq.io_service_time_recursive", "ioServiceTimeRecursive"),
        ("bfq.io_wait_time_recursive", "ioWaitTimeRecursive"),
        ("bfq.io_merged_recursive", "ioMergedRecursive"),
        ("bfq.io_queued_recursive", "ioQueueRecursive"),
        ("bfq.time_recursive", "ioTimeRecursive"),
        ("bfq.io_serviced_recursive", "ioServicedRecursive"),
        ("bfq.io_service_bytes_recursive", "ioServiceBytesRecursive"),
    ),
    (
        ("bfq.io_serviced_recursive", "ioServicedRecursive"),
        ("bfq.io_service_bytes_recursive", "ioServiceBytesRecursive"),
    ),
    (
        ("throttle.io_serviced_recursive", "ioServicedRecursive"),
        ("throttle.io_service_bytes_recursive", "ioServiceBytesRecursive"),
    ),
    (("throttle.io_serviced", "ioServicedRecursive"), ("throttle.io_service_bytes", "ioServiceBytesRecursive")),
)
"""Sets of files of blkio, of which the first that has anything counts, and what each is called"""
_BLOCK_V2 = {
    "rbytes": ("Read", "ioServiceBytesRecursive"),
    "wbytes": ("Write", "ioServiceBytesRecursive"),
    "rios": ("Read", "ioServicedRecursive"),
    "wios": ("Write", "ioServicedRecursive"),
}


def read_statistics(cgroup: Cgroup) -> Document:
    """The figures of a container's cgroup. Raises `OSError` where it is gone."""
    if cgroup.version == 2:
        folder = cgroup.folders[""]
        os.stat(folder)
        found = _read_v2(folder)
    else:
        os.stat(cgroup.folders[cgroup.chief])
        found = _read_v1(cgroup.folders)
    return {**found, "intel_rdt": {}, "network_interfaces": None}


def _read_v1(folders: dict[str, str]) -> Document:
    get = folders.get
    block = get("blkio")
    return {
        "cpu": _filled({"usage": _cpu_usage_v1(get("cpuacct", "")), "throttling": _throttling_v1(get("cpu", ""))}),
        "cpuset": _cpuset_v1(get("cpuset", "")),
        "memory": _memory_v1(get("memory", "")),
        "pids": _pids(get("pids", "")),
        "blkio": _block_v1(block) if block else {},
        "hugetlb": _huge_pages(get("hugetlb", ""), "usage_in_bytes", "max_usage_in_bytes"),
    }


def _read_v2(folder: str) -> Document:
    return {
        "cpu": _filled({**_cpu_v2(folder), "psi": _pressure(folder, "cpu")}),
        # Only v1 has figures of it.
        "cpuset": dict.fromkeys(_CPUSET_NUMBERS, 0),
        "memory": {**_memory_v2(folder), **_filled({"psi": _pressure(folder, "memory")})},
        "pids": _pids(folder),
        "blkio": {**_block_v2(folder), **_filled({"psi": _pressure(folder, "io")})},
        "hugetlb": _huge_pages(folder, "current", ""),
    }


def _filled(values: Document) -> Document:
    return {name: value for name, value in values.items() if value}


def _text(folder: str, name: str) -> str:
    """A file's text; empty where there is no such file, or no such controller."""
    if not folder:
        return ""
    try:
        return read_file(f"{folder}/{name}")
    except OSError as error:
        if error.errno in _ABSENT:
            return ""
        raise


def _number(text: str) -> int:
    text = text.strip()
    # By mistakes of the kernel a figure can be negative.
    return _NO_LIMIT if text == "max" else max(int(text or 0), 0)


def _table(text: str) -> dict[str, int]:
    return {name: _number(value) for name, value in (line.split(" ", 1) for line in text.splitlines())}


def _cpu_usage_v1(folder: str) -> Document:
    ticks = _table(_text(folder, "cpuacct.stat"))
    each = [line.split(" ")[1:3] for line in _text(folder, "cpuacct.usage_all").splitlines()[1:]]
    return {
        **_filled(
            {
                "total": _number(_text(folder, "cpuacct.usage")),
                "percpu": [int(word) for word in _text(folder, "cpuacct.usage_percpu").split()],
                "percpu_kernel": [int(system) for _, system in each],
                "percpu_user": [int(user) for user, _ in each],
            }
        ),
        "kernel": ticks.get("system", 0) * _NS_IN_TICK,
        "user": ticks.get("user", 0) * _NS_IN_TICK,
    }


def _throttling(table: dict[str, int], spent_ns: int) -> Document:
    values = (table.get("nr_periods", 0), table.get("nr_throttled", 0), spent_ns)
    return _filled(dict(zip(("periods", "throttledPeriods", "throttledTime"), values, strict=True)))


def _throttling_v1(folder: str) -> Document:
    table = _table(_text(folder, "cpu.stat"))
    return _throttling(table, table.get("throttled_time", 0))


def _cpu_v2(folder: str) -> Document:
    table = _table(_text(folder, "cpu.stat"))
    usage = {
        **_filled({"total": table.get("usage_usec", 0) * 1000}),
        "kernel": table.get("system_usec", 0) * 1000,
        "user": table.get("user_usec", 0) * 1000,
    }
    return {"usage": usage, "throttling": _throttling(table, table.get("throttled_usec", 0) * 1000)}


def _cpuset_v1(folder: str) -> Document:
    found: Document = {}
    for name in ("cpus", *_CPUSET_NUMBERS[:1], "mems", *_CPUSET_NUMBERS[1:]):
        text = _text(folder, f"cpuset.{name}").strip()
        if name in _CPUSET_NUMBERS:
            found[name] = int(text or 0)
        elif text:
            found[name] = _list(text)
    return found


def _list(text: str) -> list[int]:
    """The numbers of ``0-2,7``."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def _memory_v1(folder: str) -> Document:
    raw = _table(_text(folder, "memory.stat"))
    entries = {
        "usage": _memory_entry_v1(folder, "memory"),
        "swap": _memory_entry_v1(folder, "memory.memsw"),
        "kernel": _memory_entry_v1(folder, "memory.kmem"),
        "kernelTCP": _memory_entry_v1(folder, "memory.kmem.tcp"),
    }
    return _filled({"cache": raw.get("cache", 0), **entries, "raw": raw})


def _memory_entry_v1(folder: str, name: str) -> Document:
    usage = _text(folder, f"{name}.usage_in_bytes")
    if not usage:
        return {}
    return {
        "limit": _number(_text(folder, f"{name}.limit_in_bytes")),
        **_filled({"usage": _number(usage), "max": _number(_text(folder, f"{name}.max_usage_in_bytes"))}),
        "failcnt": _number(_text(folder, f"{name}.failcnt")),
    }


def _memory_v2(folder: str) -> Document:
    raw = _table(_text(folder, "memory.stat"))
    used, limit = _number(_text(folder, "memory.current")), _number(_text(folder, "memory.max"))
    swapped, swap_limit = _number(_text(folder, "memory.swap.current")), _number(_text(folder, "memory.swap.max"))
    # v1 counts memory and swap together, and that is what readers expect.
    both = swap_limit if swap_limit == _NO_LIMIT or limit == _NO_LIMIT else limit + swap_limit
    usage = {
        "limit": limit,
        **_filled({"usage": used, "max": _number(_text(folder, "memory.peak"))}),
        "failcnt": 0,
    }
    swap = {"limit": min(both, _NO_LIMIT), **_filled({"usage": used + swapped}), "failcnt": 0}
    return _filled(
        {"cache": raw.get("file", 0), "usage": usage if raw else {}, "swap": swap if raw else {}, "raw": raw}
    )


def _pids(folder: str) -> Document:
    limit = _number(_text(folder, "pids.max"))
    current = _text(folder, "pids.current")
    count = _number(current) if current else len(_text(folder, "cgroup.procs").split())
    return _filled({"current": count, "limit": 0 if limit == _NO_LIMIT else limit})


def _block_v1(folder: str) -> Document:
    for files in _BLOCK_V1:
        found: Document = {}
        for name, key in files:
            entries = [_block_entry(line) for line in _text(folder, f"blkio.{name}").splitlines() if ":" in line]
            if not entries:
                break
            found[key] = entries
        if found:
            return found
    return {}


def _block_entry(line: str) -> Document:
    words = line.split(" ")
    major, _, minor = words[0].partition(":")
    named = {"op": words[1]} if len(words) > 2 else {}
    return _filled({"major": int(major), "minor": int(minor), **named, "value": int(words[-1])})


def _block_v2(folder: str) -> Document:
    found: Document = {}
    for line in _text(folder, "io.stat").splitlines():
        device, *words = line.split()
        major, _, minor = device.partition(":")
        for word in words:
            name, _, value = word.partition("=")
            if name in _BLOCK_V2:
                operation, key = _BLOCK_V2[name]
                entry = {"major": int(major), "minor": int(minor), "op": operation, "value": int(value)}
                found.setdefault(key, []).append(_filled(entry))
    return found


def _huge_pages(folder: str, used: str, most: str) -> Document:
    try:
        names = sorted(os.listdir("/sys/kernel/mm/hugepages")) if folder else []
    except FileNotFoundError:
        return {}
    found = {}
    for name in names:
        size = _size(int(name.removeprefix("hugepages-").removesuffix("kB")))
        start = f"hugetlb.{size}"
        # What is reserved counts, where the kernel tells it apart.
        kind = ".rsvd" if os.path.exists(f"{folder}/{start}.rsvd.{used}") else ""
        usage = _text(folder, f"{start}{kind}.{used}")
        if not usage:
            continue
        peak = _number(_text(folder, f"{start}{kind}.{most}")) if most else 0
        events = _table(_text(folder, f"{start}.events")).get("max", 0)
        failures = events if used == "current" else _number(_text(folder, f"{start}{kind}.failcnt"))
        found[size] = {**_filled({"usage": _number(usage), "max": peak}), "failcnt": failures}
    return found


def _size(kib: int) -> str:
    """A size as the kernel names files by it: 2048 is 2MB."""
    for unit, factor in (("GB", 1 << 20), ("MB", 1 << 10)):
        if kib >= factor:
            return f"{kib // factor}{unit}"
    return f"{kib}KB"


def _pressure(folder: str, name: str) -> Document:
    found = {}
    for line in _text(folder, f"{name}.pressure").splitlines():
        kind, *words = line.split()
        pairs = dict(word.split("=") for word in words)
        found[kind] = {key: int(value) if key == "total" else float(value) for key, value in pairs.items()}
    return found
