"""Resources as what is written into which file of a cgroup: pure, for v1 and for v2."""

from __future__ import annotations

from harness.minirt.container.resources import BlockLimit, DeviceRule, Resources
from harness.minirt.errors import SpecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

DEFAULT_DEVICES = (
    DeviceRule(True, "c", None, None, "m"),
    DeviceRule(True, "b", None, None, "m"),
    DeviceRule(True, "c", 1, 3, "rwm"),
    DeviceRule(True, "c", 1, 5, "rwm"),
    DeviceRule(True, "c", 1, 7, "rwm"),
    DeviceRule(True, "c", 1, 8, "rwm"),
    DeviceRule(True, "c", 1, 9, "rwm"),
    DeviceRule(True, "c", 5, 0, "rwm"),
    DeviceRule(True, "c", 5, 1, "rwm"),
    DeviceRule(True, "c", 5, 2, "rwm"),
    DeviceRule(True, "c", 136, None, "rwm"),
)
"""What every container may use: null, zero, full, random, urandom, tty, console, ptmx, its terminals; nodes may be made."""


def device_rules(resources: Resources) -> tuple[DeviceRule, ...]:
    """The whole list: nothing, then what was asked for in order, then the defaults."""
    return (DeviceRule(False, "a", None, None, "rwm"), *resources.devices, *DEFAULT_DEVICES)


def limits_v1(resources: Resources) -> Iterator[tuple[str, str, str]]:
    """``(controller, file, text)`` in the order in which they have to be written. Raises `SpecError`."""
    if resources.unified:
        raise SpecError("linux.resources.unified", "cannot use unified on cgroup v1")
    yield from _devices_v1(resources)
    r = resources
    if r.memory_limit or r.memory_swap:
        yield from _memory_v1(r)
    if r.memory_reservation:
        yield "memory", "memory.soft_limit_in_bytes", str(r.memory_reservation)
    if r.memory_kernel_tcp is not None:
        yield "memory", "memory.kmem.tcp.limit_in_bytes", str(r.memory_kernel_tcp)
    if r.disable_oom_killer:
        yield "memory", "memory.oom_control", "1"
    if r.memory_swappiness is not None and r.memory_swappiness <= 100:
        yield "memory", "memory.swappiness", str(r.memory_swappiness)
    if r.cpu_shares:
        yield "cpu", "cpu.shares", str(r.cpu_shares)
    if r.cpu_period:
        yield "cpu", "cpu.cfs_period_us", str(r.cpu_period)
    if r.cpu_quota:
        yield "cpu", "cpu.cfs_quota_us", str(r.cpu_quota)
    if r.cpu_burst is not None:
        yield "cpu", "cpu.cfs_burst_us", str(r.cpu_burst)
    if r.cpu_realtime_period:
        yield "cpu", "cpu.rt_period_us", str(r.cpu_realtime_period)
    if r.cpu_realtime_runtime:
        yield "cpu", "cpu.rt_runtime_us", str(r.cpu_realtime_runtime)
    if r.cpu_idle is not None:
        yield "cpu", "cpu.idle", str(r.cpu_idle)
    if r.cpuset_cpus:
        yield "cpuset", "cpuset.cpus", r.cpuset_cpus
    if r.cpuset_mems:
        yield "cpuset", "cpuset.mems", r.cpuset_mems
    if r.pids_limit is not None:
        yield "pids", "pids.max", _pids(r.pids_limit)
    if r.block_weight:
        yield "blkio", "blkio.bfq.weight", str(r.block_weight)
    if r.block_leaf_weight:
        yield "blkio", "blkio.leaf_weight", str(r.block_leaf_weight)
    for device in r.block_weights:
        if device.weight:
            yield "blkio", "blkio.bfq.weight_device", f"{device.major}:{device.minor} {device.weight}"
        if device.leaf_weight:
            yield "blkio", "blkio.leaf_weight_device", f"{device.major}:{device.minor} {device.leaf_weight}"
    for name, limits in _throttles(r):
        for limit in limits:
            yield "blkio", f"blkio.throttle.{name}_device", f"{limit.major}:{limit.minor} {limit.rate}"
    for size, most in r.hugepages:
        yield "hugetlb", f"hugetlb.{size}.limit_in_bytes", str(most)
        yield "hugetlb", f"hugetlb.{size}.rsvd.limit_in_bytes", str(most)
    if r.net_class:
        yield "net_cls", "net_cls.classid", str(r.net_class)
    for name, priority in r.net_priorities:
        yield "net_prio", "net_prio.ifpriomap", f"{name} {priority}"
    yield from (("rdma", "rdma.max", text) for text in _rdma(r))


def _memory_v1(r: Resources) -> Iterator[tuple[str, str, str]]:
    # The sum may never be below the memory alone, whatever it was before: so a group is first opened, and a new one is
    # unlimited, in which case memory comes first.
    if r.memory_limit:
        yield "memory", "memory.limit_in_bytes", str(r.memory_limit)
    swap = r.memory_swap
    if not swap and r.memory_limit == -1:
        swap = -1
    if swap:
        yield "memory", "memory.memsw.limit_in_bytes", str(swap)


def _devices_v1(resources: Resources) -> Iterator[tuple[str, str, str]]:
    for rule in device_rules(resources):
        name = "devices.allow" if rule.allow else "devices.deny"
        yield "devices", name, "a" if rule.kind == "a" and rule.major is None and rule.minor is None else _rule(rule)


def _rule(rule: DeviceRule) -> str:
    major, minor = ("*" if number is None else str(number) for number in (rule.major, rule.minor))
    return f"{rule.kind} {major}:{minor} {rule.access}"


def _throttles(r: Resources) -> Iterator[tuple[str, tuple[BlockLimit, ...]]]:
    yield "read_bps", r.block_read_bps
    yield "write_bps", r.block_write_bps
    yield "read_iops", r.block_read_iops
    yield "write_iops", r.block_write_iops


def _rdma(r: Resources) -> Iterator[str]:
    for device, handles, objects in r.rdma:
        words = [device]
        if handles is not None:
            words.append(f"hca_handle={handles}")
        if objects is not None:
            words.append(f"hca_object={objects}")
        yield " ".join(words)


def limits_v2(resources: Resources) -> Iterator[tuple[str, str]]:
    """``(file, text)`` in the order in which they have to be written; devices are a program (`device_filter`)."""
    r = resources
    if r.memory_swap:
        yield "memory.swap.max", swap_v2(r.memory_swap, r.memory_limit)
    elif r.memory_limit == -1:
        yield "memory.swap.max", "max"
    if r.memory_limit:
        yield "memory.max", _amount(r.memory_limit)
    if r.memory_reservation:
        yield "memory.low", _amount(r.memory_reservation)
    if r.cpu_shares:
        yield "cpu.weight", str(weight_of_shares(r.cpu_shares))
    if r.cpu_idle is not None:
        yield "cpu.idle", str(r.cpu_idle)
    if r.cpu_quota or r.cpu_period:
        quota = "max" if not r.cpu_quota or r.cpu_quota < 0 else str(r.cpu_quota)
        yield "cpu.max", f"{quota} {r.cpu_period or 100000}"
    if r.cpu_burst is not None:
        yield "cpu.max.burst", str(r.cpu_burst)
    if r.cpuset_cpus:
        yield "cpuset.cpus", r.cpuset_cpus
    if r.cpuset_mems:
        yield "cpuset.mems", r.cpuset_mems
    if r.pids_limit is not None:
        yield "pids.max", _pids(r.pids_limit)
    if r.block_weight:
        yield "io.bfq.weight", str(r.block_weight)
    for device in r.block_weights:
        if device.weight:
            yield "io.bfq.weight", f"{device.major}:{device.minor} {device.weight}"
    for name, limits in zip(("rbps", "wbps", "riops", "wiops"), (item for _, item in _throttles(r)), strict=True):
        for limit in limits:
            yield "io.max", f"{limit.major}:{limit.minor} {name}={limit.rate or 'max'}"
    for size, most in r.hugepages:
        yield f"hugetlb.{size}.max", str(most)
        yield f"hugetlb.{size}.rsvd.max", str(most)
    yield from (("rdma.max", text) for text in _rdma(r))
    yield from r.unified.items()


def _amount(value: int) -> str:
    return "max" if value < 0 else str(value)


def _pids(limit: int) -> str:
    """-1 is no limit; 0 stands for 1, because systemd takes no 0, and nothing else can be born then in either case."""
    return "max" if limit < 0 else str(limit or 1)


def stand_in(name: str, text: str) -> tuple[str, str] | None:
    """What to write where the kernel has no file called `name`: another file and text, ``("", "")`` for nothing at all.

    None: nothing can take its place.
    """
    if name == "memory.swap.max" and text in ("0", "max"):
        return "", ""  # without accounting of swap there is none to be had, and none to be kept away
    if ".rsvd." in name or name == "cpu.cfs_burst_us":
        return "", ""  # older kernels
    if name.startswith("blkio.bfq.weight"):
        return name.replace("bfq.", ""), text  # that of the scheduler before
    if name == "io.bfq.weight" and ":" not in text:
        return "io.weight", str(1 + (int(text) - 10) * 9999 // 990)
    return None


def swap_v2(memory_and_swap: int, memory: int | None) -> str:
    """v1 counts memory and swap together, v2 swap alone. Raises `SpecError` where that leaves less than nothing."""
    if memory_and_swap < 0:
        return "max"
    if not memory:
        raise SpecError("linux.resources.memory.swap", "unable to set swap limit without memory limit")
    if memory < 0:
        return str(memory_and_swap)
    if memory_and_swap < memory:
        raise SpecError("linux.resources.memory.swap", "memory+swap limit should be >= memory limit")
    return str(memory_and_swap - memory)


def weight_of_shares(shares: int) -> int:
    """cpu.weight (1 to 10000) for v1's cpu.shares (2 to 262144), linear as engines of v2's first years agreed on."""
    return 1 + (min(max(shares, 2), 262144) - 2) * 9999 // 262142
