"""Limits and annotations as properties of a systemd unit (systemd.resource-control(5)), for both cgroup versions: pure.

A property is its name, and its value with that value's D-Bus signature. `version` asks which systemd it is for: each learned its
words at some time.
"""

from __future__ import annotations

import os

from harness.minirt.container.record import changed
from harness.minirt.errors import SpecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from harness.minirt.container.resources import Resources

    Property = tuple[str, tuple[str, Any]]

_INFINITY = (1 << 64) - 1
_DEFAULT_PERIOD_US = 100_000
_ANNOTATION = "org.systemd.property."


def parse_annotations(annotations: dict[str, str]) -> Iterator[Property]:
    """Properties in annotations ``org.systemd.property.NAME``, as ``uint64 5``, ``'text'``, ``true``, ``['a', 'b']``.

    Those in seconds become microseconds (``TimeoutStopSec`` is ``TimeoutStopUSec``). Raises `SpecError`.
    """
    for key, text in annotations.items():
        name = key.removeprefix(_ANNOTATION)
        if name == key:
            continue
        if not name.isascii() or not name.isalpha():
            raise SpecError(f"annotations[{key!r}]", f"{name!r} is not the name of a property")
        try:
            kind, value = _parse_variant(text.strip())
        except ValueError:
            raise SpecError(f"annotations[{key!r}]", f"{text!r} is not a value in the text form of GVariant") from None
        if name.endswith("Sec") and not name.endswith("USec"):
            name = f"{name.removesuffix('Sec')}USec"
            kind, value = "t", int(value * 1_000_000)
        yield name, (kind, value)


_TYPES = {
    "byte": "y", "boolean": "b", "int16": "n", "uint16": "q", "int32": "i", "uint32": "u", "int64": "x", "uint64": "t",
    "double": "d", "string": "s", "objectpath": "o", "signature": "g",
}  # fmt: skip


def _parse_variant(text: str) -> tuple[str, Any]:
    word, _, rest = text.partition(" ")
    if word in _TYPES:
        kind = _TYPES[word]
        _, value = _parse_variant(rest.strip())
        number = kind not in "bsog"
        if isinstance(value, bool) != (kind == "b") or isinstance(value, str) == number:
            raise ValueError(text)
        return kind, float(value) if kind == "d" else value
    if text in ("true", "false"):
        return "b", text == "true"
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return "s", text[1:-1]
    if text[:1] == "[" and text[-1:] == "]":
        items = [_parse_variant(item.strip()) for item in text[1:-1].split(",") if item.strip()]
        if not items or any(kind != items[0][0] for kind, _ in items):
            raise ValueError(text)
        return f"a{items[0][0]}", [value for _, value in items]
    return ("d", float(text)) if "." in text else ("i", int(text, 0))


def rounded(resources: Resources) -> Resources:
    """With the CPU quota in whole percents, upwards, which is how systemd keeps it."""
    quota, period = resources.cpu_quota or 0, resources.cpu_period or _DEFAULT_PERIOD_US
    if quota <= 0:
        return resources
    return changed(resources, cpu_quota=_per_second(quota, period) * period // 1_000_000)


def _per_second(quota: int, period: int) -> int:
    return -(-(quota * 1_000_000 // period) // 10_000) * 10_000


def properties_v1(r: Resources, version: Callable[[], int]) -> Iterator[Property]:
    """``linux.resources`` as properties of a unit on cgroup v1."""
    if r.memory_limit:
        yield "MemoryLimit", ("t", r.memory_limit & _INFINITY)
    if r.cpu_shares:
        yield "CPUShares", ("t", r.cpu_shares)
    yield from _quota(r.cpu_quota or 0, r.cpu_period or 0, version)
    if r.block_weight:
        yield "BlockIOWeight", ("t", r.block_weight)
    yield from _tasks_and_cpus(r, version)


def properties_v2(r: Resources, version: Callable[[], int]) -> Iterator[Property]:
    """The same on cgroup v2. Raises `SpecError`."""
    from harness.minirt.container.limits import swap_v2, weight_of_shares

    if r.memory_limit:
        yield "MemoryMax", ("t", r.memory_limit & _INFINITY)
    if r.memory_reservation:
        yield "MemoryLow", ("t", r.memory_reservation & _INFINITY)
    if r.memory_swap:
        yield "MemorySwapMax", ("t", _amount(swap_v2(r.memory_swap, r.memory_limit)))
    elif r.memory_limit == -1:
        yield "MemorySwapMax", ("t", _INFINITY)
    idle = r.cpu_idle == 1 and version() >= 252
    if idle:
        yield "CPUWeight", ("t", 0)  # systemd's word for cpu.idle
    elif r.cpu_shares:
        yield "CPUWeight", ("t", weight_of_shares(r.cpu_shares))
    yield from _quota(r.cpu_quota or 0, r.cpu_period or 0, version)
    yield from _tasks_and_cpus(r, version)
    yield from _unified(r.unified, version)


def _amount(text: str) -> int:
    return _INFINITY if text == "max" else int(text)


def _quota(quota: int, period: int, version: Callable[[], int]) -> Iterator[Property]:
    if period and version() >= 242:
        yield "CPUQuotaPeriodUSec", ("t", period)
    if quota or period:
        each = _per_second(quota, period or _DEFAULT_PERIOD_US) if quota > 0 else _INFINITY
        yield "CPUQuotaPerSecUSec", ("t", each)


def _tasks_and_cpus(r: Resources, version: Callable[[], int]) -> Iterator[Property]:
    if r.pids_limit is not None:
        yield "TasksMax", ("t", _INFINITY if r.pids_limit < 0 else r.pids_limit or 1)
    for name, text in (("AllowedCPUs", r.cpuset_cpus), ("AllowedMemoryNodes", r.cpuset_mems)):
        if text and version() >= 244:
            yield name, ("ay", bits_of(text))


def bits_of(text: str) -> bytes:
    """A list such as ``0-2,9`` as the bits by which systemd takes it, the lowest first. Raises `SpecError`."""
    bits = 0
    try:
        for part in text.split(","):
            if part := part.strip():
                first, _, last = part.partition("-")
                low, high = int(first), int(last or first)
                if low > high:
                    raise ValueError(part)
                bits |= (1 << high + 1) - (1 << low)
    except ValueError:
        raise SpecError("linux.resources.cpu", f"{text!r} is not a list of numbers") from None
    if not bits:
        raise SpecError("linux.resources.cpu", f"{text!r} is an empty list")
    return bits.to_bytes((bits.bit_length() + 7) // 8, "little")


_UNIFIED = {
    "cpu.weight": "CPUWeight",
    "memory.high": "MemoryHigh",
    "memory.low": "MemoryLow",
    "memory.max": "MemoryMax",
    "memory.min": "MemoryMin",
    "memory.swap.max": "MemorySwapMax",
    "pids.max": "TasksMax",
}


def _unified(files: dict[str, str], version: Callable[[], int]) -> Iterator[Property]:
    idle = files.get("cpu.idle", "").strip() == "1" and version() >= 252
    for name, text in files.items():
        words = text.split()
        try:
            if name == "cpu.idle" and idle:
                yield "CPUWeight", ("t", 0)
            elif name == "cpu.max":
                quota = 0 if words[0] == "max" else int(words[0])
                yield from _quota(quota, int(words[1]) if words[1:] else _DEFAULT_PERIOD_US, version)
            elif name in ("cpuset.cpus", "cpuset.mems"):
                if version() >= 244:
                    yield ("AllowedCPUs" if name == "cpuset.cpus" else "AllowedMemoryNodes"), ("ay", bits_of(text))
            elif name in _UNIFIED and not (name == "cpu.weight" and idle):
                value = _amount(text.strip())
                yield _UNIFIED[name], ("t", value or 1 if name == "pids.max" else value)
        except (ValueError, IndexError):
            raise SpecError(f"linux.resources.unified[{name!r}]", f"{text!r} is not what the file takes") from None


def device_properties(resources: Resources, version: Callable[[], int]) -> Iterator[Property]:
    """The rules for devices. systemd keeps lists of what is allowed only; what it cannot say is for the cgroup's own rules."""
    from harness.minirt.container.device_list import effect
    from harness.minirt.container.limits import device_rules

    everything, exceptions = effect(device_rules(resources))
    # An empty list takes away what was allowed before.
    yield "DeviceAllow", ("a(ss)", [])
    if everything and not exceptions:
        yield "DevicePolicy", ("s", "auto")
        return
    yield "DevicePolicy", ("s", "strict")
    if everything:
        return
    allowed = []
    for (kind, numbers), letters in exceptions.items():
        path = _device_path(kind, numbers, version)
        if path:
            allowed.append((path, "".join(letter for letter in "rwm" if letter in letters)))
    yield "DeviceAllow", ("a(ss)", allowed)


def _device_path(kind: str, numbers: str, version: Callable[[], int]) -> str:
    """A rule's device as systemd has it; empty where it has no word for it."""
    word = "block" if kind == "b" else "char"
    major, _, minor = numbers.partition(":")
    if major == "*":
        return f"{word}-*" if minor == "*" else ""
    if minor != "*":
        path = f"/dev/{word}/{numbers}"
        # Older ones look the device up, and complain of those that are not there.
        return path if version() >= 240 or os.path.exists(path) else ""
    if version() >= 240:
        return f"{word}-{major}"
    group = _device_group(kind, major)
    return f"{word}-{group}" if group else ""


def _device_group(kind: str, major: str) -> str:
    section = ""
    with open("/proc/devices") as file:
        for line in file:
            words = line.split()
            if line.endswith(":\n"):
                section = "b" if words[0] == "Block" else "c"
            elif words and section == kind and words[0] == major:
                return words[1]
    return ""
