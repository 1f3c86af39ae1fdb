"""Changing the limits of a container that runs: which of them, in which order, and all or none."""

from __future__ import annotations

import errno

from harness.minirt.container.cgroup import Cgroup, cgroup_error, create, pids_below, place_of
from harness.minirt.container.files import read_file, write_file
from harness.minirt.container.limits import device_rules
from harness.minirt.errors import CgroupError, MinirtError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from harness.minirt.container.cgroup import Layout
    from harness.minirt.container.resources import Resources

_TOGETHER = {"cpu": ("quota", "period"), "memory": ("limit", "swap")}
"""What one file of cgroup v2 holds both of, or one is counted from the other"""
_MOST_LOOKS = 100
_BY_DEVICE = (
    "weightDevice",
    "throttleReadBpsDevice",
    "throttleWriteBpsDevice",
    "throttleReadIOPSDevice",
    "throttleWriteIOPSDevice",
)


def merge(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """``linux.resources`` after a change: what `new` says counts, what it leaves out (or is null) stays."""
    found = dict(old)
    for part, value in new.items():
        if value is None:
            continue
        before = old.get(part)
        if part == "blockIO" and isinstance(value, dict):
            found[part] = {**(before or {}), **_told(value)}
            for key in _BY_DEVICE:
                if value.get(key):
                    found[part][key] = _merge_rows((before or {}).get(key), value[key], ("major", "minor"))
        elif part == "hugepageLimits" and isinstance(value, list):
            found[part] = _merge_rows(before, value, ("pageSize",))
        elif isinstance(value, dict):
            found[part] = {**(before if isinstance(before, dict) else {}), **_told(value)}
        else:
            found[part] = value
    return found


def _told(value: dict[str, Any]) -> dict[str, Any]:
    return {key: item for key, item in value.items() if item is not None}


def _merge_rows(old: Any, new: list[Any], names: tuple[str, ...]) -> list[Any]:
    rows = {tuple(row.get(name) for name in names): row for row in old or ()}
    for row in new:
        key = tuple(row.get(name) for name in names)
        rows[key] = {**rows.get(key, {}), **row}
    return list(rows.values())


def complete(new: dict[str, Any], merged: dict[str, Any], together: bool) -> dict[str, Any]:
    """What has to be written for a change: `new`, and with `together` what belongs to it of the limits that stay.

    v2 has one file for both, and systemd one property.
    """
    found = {part: value for part, value in new.items() if value is not None}
    if not together:
        return found
    for part, names in _TOGETHER.items():
        value = found.get(part)
        if isinstance(value, dict) and any(value.get(name) for name in names):
            after = merged[part]
            found[part] = {**value, **{name: after[name] for name in names if after.get(name)}}
    return found


def update(
    cgroup: Cgroup, resources: Resources, devices: bool = False, before: Callable[[], Resources] | None = None
) -> None:
    """Change limits of a cgroup in use, all or none; with `devices` the rules for devices too, which are then these.

    `before` gives the limits so far, which a unit of systemd's gets back. Raises `CgroupError` with the file and the kernel's
    reason, once everything is as it was.
    """
    if resources.check_before_update and cgroup.version == 2:
        _check_usage(cgroup, resources)
    if cgroup.unit is not None:
        resources = _update_unit(cgroup, resources, devices)
    try:
        _update_files(cgroup, resources, devices)
    except MinirtError:
        if cgroup.unit is not None and before is not None:
            _update_unit(cgroup, before(), devices)
        raise


def _update_unit(cgroup: Cgroup, resources: Resources, devices: bool) -> Resources:
    from harness.minirt.container import systemd

    assert cgroup.unit is not None
    # On v1 systemd refuses all devices before it allows the new ones: nobody is to run into that.
    stands = devices and cgroup.version == 1 and not cgroup.is_frozen()
    if stands:
        cgroup.freeze()
    try:
        return systemd.set_properties(cgroup.unit, resources, cgroup.version == 2, devices)
    finally:
        if stands:
            cgroup.thaw()


def _update_files(cgroup: Cgroup, resources: Resources, devices: bool) -> None:
    wanted = cgroup.files_of(resources, devices=False)
    undo: list[tuple[str, str]] = []
    # v1 refuses a memory limit above that of memory and swap, and the latter below the former; a period with which the old
    # quota is more than the parent's; a burst above the old quota. Which has to be written first depends on what they are
    # now. So what was refused is tried once more, after everything else.
    refused: list[tuple[str, str]] = []
    try:
        for last, pairs in ((False, wanted), (True, refused)):
            for path, value in pairs:
                try:
                    before = _before(path, value)
                    cgroup.write(path, value)
                except OSError as error:
                    if last or error.errno == errno.ENOENT or not _depends(path):
                        raise
                    refused.append((path, value))
                else:
                    if before:
                        undo.append((path, before))
        if devices:
            _update_devices(cgroup, resources)
    except OSError as error:
        _write_back(undo)
        raise _reason(error, resources) from error


def extend(layout: Layout, cgroup: Cgroup, path: str, resources: Resources) -> Cgroup:
    """The cgroup with those v1 controllers added that `resources` need; its processes are moved into them.

    `path` is its absolute cgroupsPath. Raises `CgroupError`.
    """
    if cgroup.version == 2:
        return cgroup
    wanted = place_of(layout, path, "", resources)
    added = {name: folder for name, folder in wanted.folders.items() if name and name not in cgroup.folders}
    if not added:
        return cgroup
    create(layout, Cgroup(1, added))
    try:
        for folder in added.values():
            # Whoever is born while this looks is born where its parent was: so look again, until nobody is left.
            for _ in range(_MOST_LOOKS):
                left = set(cgroup.pids()).difference(pids_below(folder))
                if not left:
                    break
                for pid in left:
                    try:
                        write_file(f"{folder}/cgroup.procs", str(pid))
                    except ProcessLookupError:
                        continue
                    except OSError as error:
                        if error.errno != errno.ESRCH:
                            raise
    except OSError as error:
        raise cgroup_error("cannot move the container into a cgroup", error) from error
    return Cgroup(1, {**cgroup.folders, **added}, cgroup.unit)


def _depends(path: str) -> bool:
    return "/memory." in path or "/cpu." in path


def _before(path: str, value: str) -> str:
    """What to write to undo a write; empty where there is nothing to undo (a limit that this kernel does not have)."""
    try:
        text = read_file(path).strip()
    except FileNotFoundError:
        return ""
    device, blank, rest = value.partition(" ")
    if not blank or ":" not in device:
        if path.endswith(".weight"):
            return text.rpartition("\n")[2].removeprefix("default ")
        return text
    # A file of one line a device: that of the device, or what takes its limit away.
    for line in text.splitlines():
        if line.startswith(f"{device} "):
            return line
    return f"{device} {rest.partition('=')[0]}=max" if "=" in rest else f"{device} 0"


def _update_devices(cgroup: Cgroup, resources: Resources) -> None:
    if cgroup.version == 2:
        from harness.minirt.container.device_filter import replace

        replace(cgroup.folders[""], resources)
        return
    from harness.minirt.container import device_list

    folder = cgroup.folders.get("devices")
    if folder is None:
        raise CgroupError("cannot set devices: the devices controller is not mounted")
    before = read_file(f"{folder}/devices.list")
    try:
        for name, text in device_list.changes(before, device_rules(resources)):
            write_file(f"{folder}/{name}", text)
    except OSError:
        after = read_file(f"{folder}/devices.list")
        _write_back([(f"{folder}/{name}", text) for name, text in reversed(device_list.restored(before, after))])
        raise


def _write_back(undo: list[tuple[str, str]]) -> None:
    """Write what was there; twice, because the order can matter on the way back too."""
    left = list(reversed(undo))
    for _ in range(2):
        again = []
        for path, value in left:
            try:
                write_file(path, value)
            except OSError:
                again.append((path, value))
        left = again


def _check_usage(cgroup: Cgroup, resources: Resources) -> None:
    """``memory.checkBeforeUpdate``: v2 would kill rather than refuse a limit below what is in use."""
    try:
        used = int(read_file(f"{cgroup.folders['']}/memory.current"))
    except OSError:
        return
    for name, limit in (("memory+swap", resources.memory_swap), ("memory", resources.memory_limit)):
        if limit is not None and 0 < limit <= used:
            raise CgroupError(f"rejecting {name} limit {limit} <= usage {used}")


def _reason(error: OSError, resources: Resources) -> CgroupError:
    path = str(error.filename or "")
    if error.errno == errno.EBUSY and path.endswith("/memory.limit_in_bytes"):
        folder = path.rpartition("/")[0]
        used, most = (int(read_file(f"{folder}/memory.{name}_in_bytes")) for name in ("usage", "max_usage"))
        limit = resources.memory_limit
        return CgroupError(f"unable to set memory limit to {limit} (current usage: {used}, peak usage: {most})")
    return cgroup_error("cannot set a limit", error)
