"""The cgroup that a pod's containers are in, where minirt made it: its limits are the pod's resources and overhead together.

A parent that was there before is its maker's (kubelet limits those itself) and is left as it is.
"""

from __future__ import annotations

import contextlib
import functools
import os

from cri_api.v1 import api_pb2 as api

from harness.minirt.container import cgroup as cgroups
from harness.minirt.container.resources import Resources
from harness.minirt.errors import CgroupError

_SHARES = 1024
_PERIOD_US = 100_000


@functools.cache
def _layout() -> cgroups.Layout:
    return cgroups.read_layout()


def folders_of(path: str) -> tuple[str, ...]:
    """Where a pod's cgroup is, or can be, in every hierarchy."""
    return cgroups.folders_of(_layout(), path)


def limits_of(config: api.LinuxPodSandboxConfig) -> Resources | None:
    """What a pod as a whole may use: its containers' sum and its overhead; None where nothing is limited."""
    parts = (config.resources, config.overhead)
    memory = sum(part.memory_limit_in_bytes for part in parts if part.memory_limit_in_bytes > 0)
    shares = sum(part.cpu_shares for part in parts if part.cpu_shares > 0)
    cpus = sum(part.cpu_quota / (part.cpu_period or _PERIOD_US) for part in parts if part.cpu_quota > 0)
    # An overhead alone limits nothing: the sum of what it is added to is not known.
    bounded = config.HasField("resources")
    found = Resources(
        memory_limit=memory if memory and bounded and config.resources.memory_limit_in_bytes > 0 else None,
        cpu_shares=shares or None,
        cpu_quota=int(cpus * _PERIOD_US) if bounded and config.resources.cpu_quota > 0 else None,
        cpu_period=_PERIOD_US if bounded and config.resources.cpu_quota > 0 else None,
    )
    return None if found == Resources() else found


def limit(path: str, resources: Resources, *, make: bool) -> None:
    """Write limits, first making the cgroup where that is asked for. Raises `CgroupError`."""
    layout = _layout()
    cgroup = cgroups.place_of(layout, path, "", resources)
    if make:
        cgroups.create(layout, cgroup)
    # Rules for devices are each container's own.
    for file, value in cgroup.files_of(resources, devices=False):
        try:
            cgroup.write(file, value)
        except OSError as error:
            name = os.path.basename(file)
            raise CgroupError(f"cannot set {name} of the pod's cgroup {path} to {value}: {error.strerror}") from error


def remove(path: str) -> None:
    """Remove it where it is empty, also from hierarchies that only single containers use (cpuset, hugetlb)."""
    for folder in cgroups.find(_layout(), path).distinct:
        with contextlib.suppress(OSError):
            os.rmdir(folder)
