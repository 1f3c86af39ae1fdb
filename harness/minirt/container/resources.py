"""linux.resources: the limits of a container's cgroup, for both cgroup versions (`cgroup` writes them)."""

from __future__ import annotations

from harness.minirt.container.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from harness.minirt.container.reader import Reader


class DeviceRule(Record):
    """``devices[]``: kind "a", "b" or "c"; major and minor None for any; access of the letters r, w, m."""

    allow: bool
    kind: str
    major: int | None
    minor: int | None
    access: str


class BlockLimit(Record):
    """A throttle of one device; `rate` in bytes or operations a second."""

    major: int
    minor: int
    rate: int


class BlockWeight(Record):
    """The weights of one device; 0: as it is."""

    major: int
    minor: int
    weight: int
    leaf_weight: int = 0


class Resources(Record):
    """None or empty: not limited (and the file not written), and so is 0 where it can be no limit.

    Units are those of the specification.
    """

    devices: tuple[DeviceRule, ...] = ()
    memory_limit: int | None = None
    memory_reservation: int | None = None
    memory_swap: int | None = None
    """memory and swap together, as v1 counts"""
    memory_swappiness: int | None = None
    memory_kernel_tcp: int | None = None
    disable_oom_killer: bool = False
    use_hierarchy: bool | None = None
    check_before_update: bool = False
    cpu_shares: int | None = None
    cpu_quota: int | None = None
    cpu_period: int | None = None
    cpu_burst: int | None = None
    cpu_idle: int | None = None
    cpu_realtime_runtime: int | None = None
    cpu_realtime_period: int | None = None
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    pids_limit: int | None = None
    block_weight: int | None = None
    block_leaf_weight: int | None = None
    block_weights: tuple[BlockWeight, ...] = ()
    block_read_bps: tuple[BlockLimit, ...] = ()
    block_write_bps: tuple[BlockLimit, ...] = ()
    block_read_iops: tuple[BlockLimit, ...] = ()
    block_write_iops: tuple[BlockLimit, ...] = ()
    hugepages: tuple[tuple[str, int], ...] = ()
    """page size such as "2MB", bytes"""
    net_class: int | None = None
    net_priorities: tuple[tuple[str, int], ...] = ()
    rdma: tuple[tuple[str, int | None, int | None], ...] = ()
    """device, handles, objects"""
    unified: dict[str, str] = {}  # noqa: RUF012
    """v2 files by name, written as they stand"""


def parse_resources(entry: Reader) -> Resources:
    """Read ``linux.resources``; raises `SpecError`."""
    memory = _part(entry, "memory")
    cpu = _part(entry, "cpu")
    block = _part(entry, "blockIO")
    network = _part(entry, "network")
    pids = _part(entry, "pids")
    use_hierarchy = memory.flag("useHierarchy") if memory.has("useHierarchy") else None
    unified = entry.pairs("unified")
    for name in unified:
        if "/" in name or "." not in name or name.startswith(("cgroup.", ".")):
            raise entry.fail(f"unified[{name!r}]", "is not the name of a controller's file")
    return Resources(
        devices=entry.list("devices", _device_rule),
        memory_limit=memory.number("limit", least=-1),
        memory_reservation=memory.number("reservation", least=-1),
        memory_swap=memory.number("swap", least=-1),
        memory_swappiness=memory.number("swappiness", least=0),
        memory_kernel_tcp=memory.number("kernelTCP", least=-1),
        disable_oom_killer=memory.flag("disableOOMKiller"),
        use_hierarchy=use_hierarchy,
        check_before_update=memory.flag("checkBeforeUpdate"),
        cpu_shares=cpu.number("shares", least=0),
        cpu_quota=cpu.number("quota"),
        cpu_period=cpu.number("period", least=0),
        cpu_burst=cpu.number("burst", least=0),
        cpu_idle=cpu.number("idle"),
        cpu_realtime_runtime=cpu.number("realtimeRuntime"),
        cpu_realtime_period=cpu.number("realtimePeriod", least=0),
        cpuset_cpus=cpu.text("cpus"),
        cpuset_mems=cpu.text("mems"),
        pids_limit=pids.number("limit", least=-1, most=(1 << 63) - 1),
        block_weight=block.number("weight", least=0, most=1000),
        block_leaf_weight=block.number("leafWeight", least=0, most=1000),
        block_weights=block.list("weightDevice", _block_weight),
        block_read_bps=block.list("throttleReadBpsDevice", lambda item: _block(item, "rate")),
        block_write_bps=block.list("throttleWriteBpsDevice", lambda item: _block(item, "rate")),
        block_read_iops=block.list("throttleReadIOPSDevice", lambda item: _block(item, "rate")),
        block_write_iops=block.list("throttleWriteIOPSDevice", lambda item: _block(item, "rate")),
        hugepages=entry.list("hugepageLimits", _hugepage),
        net_class=network.number("classID", least=0, most=(1 << 32) - 1),
        net_priorities=network.list("priorities", lambda item: (item.text("name"), item.count("priority"))),
        rdma=_rdma(entry),
        unified=unified,
    )


def _part(entry: Reader, key: str) -> Reader:
    return entry.object(key) or type(entry)({}, entry.at(key))


def _device_rule(entry: Reader) -> DeviceRule:
    kind = entry.text("type") or "a"
    if kind not in ("a", "b", "c"):
        raise entry.fail("type", f"{kind!r} is none of a, b, c")
    access = entry.text("access")
    if access.strip("rwm"):
        raise entry.fail("access", f"{access!r} has letters other than r, w and m")
    # -1 is what some engines write for "any".
    numbers = [entry.number(key, least=-1, most=(1 << 32) - 1) for key in ("major", "minor")]
    major, minor = (None if number == -1 else number for number in numbers)
    return DeviceRule(entry.flag("allow"), kind, major, minor, access or "rwm")


def _block(entry: Reader, key: str) -> BlockLimit:
    return BlockLimit(entry.count("major"), entry.count("minor"), entry.count(key, most=(1 << 64) - 1))


def _block_weight(entry: Reader) -> BlockWeight:
    weight, leaf_weight = entry.count("weight", most=1000), entry.count("leafWeight", most=1000)
    return BlockWeight(entry.count("major"), entry.count("minor"), weight, leaf_weight)


def _hugepage(entry: Reader) -> tuple[str, int]:
    size = entry.text("pageSize")
    if not size.endswith(("KB", "MB", "GB")) or not size[:-2].isdigit():
        raise entry.fail("pageSize", f"{size!r} is not a size such as 2MB")
    return size, entry.count("limit", most=(1 << 64) - 1)


def _rdma(entry: Reader) -> tuple[tuple[str, int | None, int | None], ...]:
    devices = _part(entry, "rdma")
    limits = []
    for name in devices.value:
        device = _part(devices, name)
        limits.append((name, device.number("hcaHandles", least=0), device.number("hcaObjects", least=0)))
    return tuple(limits)
