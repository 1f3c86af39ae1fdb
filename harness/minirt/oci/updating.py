"""update: change the limits of a container that is created, running or paused."""

from __future__ import annotations

import os
import sys

from harness.minirt.container import cgroup as cgroups
from harness.minirt.container import document, state
from harness.minirt.container.reader import Reader
from harness.minirt.container.record import changed
from harness.minirt.container.resources import parse_resources
from harness.minirt.container.updating import complete, extend, merge
from harness.minirt.container.updating import update as update_cgroup
from harness.minirt.errors import MinirtError, SpecError, UsageError, WrongState

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from harness.minirt.container.state import Container
    from harness.minirt.oci.arguments import Words
    from harness.minirt.oci.command import Context

_TEXTS = {"cpuset-cpus": ("cpu", "cpus"), "cpuset-mems": ("cpu", "mems")}
_COUNTS = {
    "cpu-burst": ("cpu", "burst"),
    "cpu-period": ("cpu", "period"),
    "cpu-rt-period": ("cpu", "realtimePeriod"),
    "cpu-share": ("cpu", "shares"),
    "blkio-weight": ("blockIO", "weight"),
}
_NUMBERS = {
    "cpu-quota": ("cpu", "quota"),
    "cpu-rt-runtime": ("cpu", "realtimeRuntime"),
    "cpu-idle": ("cpu", "idle"),
    "pids-limit": ("pids", "limit"),
}
_SIZES = {
    "memory": ("memory", "limit"),
    "memory-swap": ("memory", "swap"),
    "memory-reservation": ("memory", "reservation"),
    "kernel-memory": ("memory", "kernel"),
    "kernel-memory-tcp": ("memory", "kernelTCP"),
}
_UNITS = "kmgtp"


def update(context: Context, words: Words) -> int:
    """Write what the options (or ``--resources``) ask for, all or nothing, and remember it for the next update."""
    id = words.arguments[0]
    state.load(context.root, id)
    # Before the lock: whoever writes to our standard input may take its time.
    asked = _read_resources(words.value("resources")) if words.value("resources") else parse_flags(words)
    _refuse_resctrl(words)
    with state.Lock(context.root, id):
        container = state.load(context.root, id)
        if state.status_of(context.root, container) == state.STOPPED:
            raise WrongState("container not running")
        memory = asked.get("memory")
        if isinstance(memory, dict):
            if memory.pop("kernel", None) is not None or memory.pop("kernelTCP", None) is not None:
                context.warn("Kernel memory settings are ignored and will be removed")
            if memory.get("limit") == -1 and memory.get("swap") is None:
                # Without a limit on memory there is none on the sum.
                memory["swap"] = 0
        apply(context, container, asked)
    return 0


def apply(context: Context, container: Container, asked: dict[str, Any]) -> None:
    """Change the container's limits and its state. Raises `SpecError` and `CgroupError`; then everything is as it was."""
    merged = merge(container.resources or {}, asked)
    parse_resources(Reader(merged, "linux.resources"))
    together = container.cgroup.version == 2 or container.cgroup.unit is not None
    resources = parse_resources(Reader(complete(asked, merged, together), "linux.resources"))
    if not container.cgroup.folders:
        raise MinirtError("cannot set limits: the container has no cgroup of its own")
    layout = cgroups.read_layout()
    cgroup = extend(layout, container.cgroup, _path_of(layout, container.cgroup), resources)
    if cgroup != container.cgroup:
        # Whatever becomes of the limits, who deletes the container has to know all its cgroups.
        container = changed(container, cgroup=cgroup)
        state.save(state.folder_of(context.root, container.id), container)
    update_cgroup(
        cgroup,
        resources,
        devices=bool(asked.get("devices")),
        before=lambda: parse_resources(Reader(container.resources or {}, "linux.resources")),
    )
    state.save(state.folder_of(context.root, container.id), changed(container, resources=merged))


def _path_of(layout: cgroups.Layout, cgroup: cgroups.Cgroup) -> str:
    """The container's absolute cgroupsPath, as far as it is the same in all hierarchies."""
    if cgroup.version == 2:
        return ""
    return cgroup.folders[cgroup.chief][len(layout.v1[cgroup.chief].folder) :]


def _read_resources(path: str) -> dict[str, Any]:
    try:
        if path == "-":
            content = document.parse(sys.stdin.buffer.read().decode())
        else:
            content = document.read_file(path)
    except OSError as error:
        raise UsageError(f"{path}: {os.strerror(error.errno or 0).lower()}") from None
    except ValueError as error:
        raise SpecError(path, str(error)) from None
    return dict(Reader(content, "linux.resources").value)


def parse_flags(words: Words) -> dict[str, Any]:
    """The options as ``linux.resources``. Raises `UsageError`."""
    asked: dict[str, Any] = {}

    def put(place: tuple[str, str], value: object) -> None:
        asked.setdefault(place[0], {})[place[1]] = value

    for name, place in _TEXTS.items():
        if text := words.value(name):
            put(place, text)
    for name, place in (*_COUNTS.items(), *_NUMBERS.items()):
        if text := words.value(name):
            digits = text.removeprefix("-") if name in _NUMBERS else text
            if not (digits.isascii() and digits.isdigit()):
                raise UsageError(f"invalid value for {name}: {text!r}")
            put(place, int(text))
    if asked.get("blockIO", {}).get("weight") == 0:
        del asked["blockIO"]
    for name, place in _SIZES.items():
        if text := words.value(name):
            size = parse_size(text)
            if size is None:
                raise UsageError(f"invalid value for {name}: invalid size: '{text}'")
            put(place, size)
    return asked


def parse_size(text: str) -> int | None:
    """Bytes in ``67108864``, ``64m``, ``64MiB``, ``0.5 g``, or -1; None for what is no size."""
    if text == "-1":
        return -1
    word = text.strip().lower()
    digits = word.rstrip("bi" + _UNITS + " ")
    unit = word[len(digits) :].strip()
    if unit not in ("", "b", *(u + rest for u in _UNITS for rest in ("", "b", "ib"))):
        return None
    whole, point, rest = digits.partition(".")
    if not all(part.isascii() and part.isdigit() for part in ((whole, rest) if point else (whole,))):
        return None
    factor = 1 << 10 * (_UNITS.index(unit[0]) + 1) if unit and unit[0] in _UNITS else 1
    return int(whole) * factor + (int(rest) * factor // 10 ** len(rest) if point else 0)


def _refuse_resctrl(words: Words) -> None:
    for option, resource, name in (
        ("l3-cache-schema", "L3", "CAT: l3 cache"),
        ("mem-bw-schema", "MB", "MBA: memory bandwidth"),
    ):
        if not words.value(option):
            continue
        if not os.path.isdir(f"/sys/fs/resctrl/info/{resource}"):
            raise UsageError(f"Intel RDT/{name} schema is not enabled")
        raise UsageError("updating a non-existent Intel RDT configuration is not supported")
