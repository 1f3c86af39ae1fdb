"""What a caller that is not the machine's root can have of a config (runc's "rootless", which this follows).

It needs a user namespace. Cgroups are made where they are delegated, and done without elsewhere, unless limits or a path ask
for them. Limits of processes are kept within the caller's own. Whatever falls short is told.
"""

from __future__ import annotations

import os

from harness.linux import syscalls
from harness.minirt.container.cgroup import NO_CGROUP, Cgroup
from harness.minirt.container.files import read_file
from harness.minirt.container.procfs import in_user_namespace
from harness.minirt.container.record import Record, changed
from harness.minirt.errors import CgroupError, SpecError, Unsupported, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from harness.minirt.container.cgroup import Layout
    from harness.minirt.container.process import Process
    from harness.minirt.container.resources import Resources
    from harness.minirt.container.spec import IdMap, Spec

_ADMIN = 1 << 21
_UNLIMITED = (1 << 64) - 1


class Rights(Record):
    """`rootless`: a lack of rights is made the best of. `privileged`: we have CAP_SYS_ADMIN where we are."""

    rootless: bool
    privileged: bool


def is_privileged() -> bool:
    """Whether we may make namespaces and mounts without a user namespace of our own."""
    return bool(syscalls.capget()[0] & _ADMIN)


def read_rights(mode: str) -> Rights:
    """The rights of this process. `mode`: what ``--rootless`` says, true, false or auto. Raises `UsageError`."""
    if mode not in ("", "auto", "true", "false"):
        raise UsageError(f"--rootless {mode!r} is none of true, false and auto")
    rootless = mode == "true" or (mode != "false" and (os.geteuid() != 0 or in_user_namespace()))
    return Rights(rootless, is_privileged())


def confine(spec: Spec, layout: Layout, cgroup: Cgroup, rights: Rights) -> tuple[Spec, Cgroup, tuple[str, ...]]:
    """The spec and the cgroup as far as the rights go, and in words what falls short.

    Raises `SpecError`, `Unsupported` and `CgroupError` for what cannot be done without.
    """
    if not rights.privileged:
        _check(spec)
    if not rights.rootless:
        return spec, cgroup, ()
    told: list[str] = []
    if spec.process is not None:
        spec = changed(spec, process=keep_within(spec.process, told))
    cgroup = _delegated(spec, layout, cgroup, told)
    return spec, cgroup, tuple(told)


def keep_within(process: Process, told: list[str]) -> Process:
    """The process with limits and an oom_score_adj that we may give it; what was changed is added to `told`."""
    limits = list(process.rlimits)
    if limits:
        from resource import getrlimit
    for index, limit in enumerate(limits):
        most = getrlimit(limit.resource)[1] & _UNLIMITED
        if limit.hard > most:
            told.append(f"process.rlimits[{index}]: {limit.hard} is above our own hard limit {most}, which is taken")
            limits[index] = changed(limit, soft=min(limit.soft, most), hard=most)
    score = process.oom_score_adj
    if score is not None:
        least = int(read_file("/proc/self/oom_score_adj"))
        if score < least:
            told.append(f"process.oomScoreAdj: {score} is below our own {least}, which is taken")
            score = least
    return changed(process, rlimits=tuple(limits), oom_score_adj=score)


def _check(spec: Spec) -> None:
    """What nobody but the machine's root can be given, by the name of its field."""
    user = spec.namespace("user")
    if user is None:
        raise SpecError("linux.namespaces", "has no user namespace, without which only root can run a container")
    for index, mount in enumerate(spec.mounts):
        if mount.options.idmap or mount.uid_maps:
            raise Unsupported(f"mounts[{index}]: mounts with mapped ids need root")
        if user.path:
            continue
        for option in mount.options.data.split(","):
            name, _, value = option.partition("=")
            maps = {"uid": spec.uid_maps, "gid": spec.gid_maps}.get(name)
            if maps and value.isdigit() and not _is_mapped(int(value), maps):
                raise SpecError(f"mounts[{index}].options", f"{option}: the id is not mapped into the container")
    if spec.net_devices:
        raise Unsupported("linux.netDevices: to move a network device needs root")
    alone = len(spec.gid_maps) == 1 and spec.gid_maps[0].size == 1
    if spec.process is not None and spec.process.user.groups and alone and not user.path:
        raise SpecError("process.user.additionalGids", "cannot be had where a single group is mapped by a normal user")


def _is_mapped(id: int, maps: Iterable[IdMap]) -> bool:
    return any(item.inside <= id < item.inside + item.size for item in maps)


def _delegated(spec: Spec, layout: Layout, cgroup: Cgroup, told: list[str]) -> Cgroup:
    lacking = {name: folder for name, folder in cgroup.folders.items() if not _may_make(layout, name, folder)}
    if cgroup.version == 1:
        # Which devices may be used is the machine's root's to say, also in a cgroup that is somebody else's.
        lacking["devices"] = cgroup.folders.get("devices", "")
    folders = {name: folder for name, folder in cgroup.folders.items() if name not in lacking}
    for name, file in _limits(cgroup.version, spec.resources):
        if name in lacking:
            raise CgroupError(f"cannot set {file}: this user may not make the cgroup {lacking[name]}")
    if folders:
        if missing := ", ".join(name for name in lacking if name != "devices"):
            told.append(f"the container has no cgroup of {missing}: this user may not make one")
        return Cgroup(cgroup.version, folders)
    place = next(iter(cgroup.folders.values()), "")
    if spec.cgroups_path:
        raise CgroupError(f"linux.cgroupsPath: this user may not make the cgroup {place}")
    told.append(f"the container has no cgroup, and cannot be paused or limited: this user may not make {place}")
    if not any(entry.kind == "pid" and not entry.path for entry in spec.namespaces):
        told.append("without a pid namespace of its own either, the container's processes can outlive it")
    return NO_CGROUP


def _limits(version: int, resources: Resources) -> Iterator[tuple[str, str]]:
    """Which controller (on v2 "") is needed for which file."""
    from harness.minirt.container.limits import limits_v1, limits_v2

    if version == 2:
        yield from (("", file) for file, _ in limits_v2(resources))
    else:
        yield from ((name, file) for name, file, _ in limits_v1(resources) if name != "devices")


def _may_make(layout: Layout, name: str, folder: str) -> bool:
    """Whether we may make a cgroup, or use the one that is there, and go there from our own."""
    there = folder
    while not os.path.isdir(there):
        there = os.path.dirname(there)
    if not _may_write(there):
        return False
    if name:
        return there != folder or _may_write(f"{folder}/tasks")
    # v2: "write access to the cgroup.procs file of the common ancestor" (cgroup-v2.rst, "Delegation Containment")
    assert layout.unified is not None
    own = f"{layout.unified.folder}{layout.unified.own}".rstrip("/")
    return _may_write(f"{os.path.commonpath([own, folder])}/cgroup.procs")


def _may_write(path: str) -> bool:
    return os.access(path, os.W_OK, effective_ids=True)
