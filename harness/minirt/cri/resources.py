"""Limits of a container: from CRI to ``linux.resources`` of the runtime specification, changed later, and back for a status.

What a client leaves out (0, empty) keeps the value that it has. As in other CRI runtimes a memory limit without a swap limit
means no swap at all, and huge pages are not limited where the kernel cannot, because kubelet always asks for that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cri_api.v1 import api_pb2 as api

from harness.minirt.container.limits import limits_v1, limits_v2
from harness.minirt.container.reader import Reader
from harness.minirt.container.resources import parse_resources
from harness.minirt.cri.host import HostFacts
from harness.minirt.errors import InvalidArgument

_CPU = {
    "shares": "cpu_shares", "quota": "cpu_quota", "period": "cpu_period", "cpus": "cpuset_cpus", "mems": "cpuset_mems",
}  # fmt: skip
_MEMORY = {"limit": "memory_limit_in_bytes", "swap": "memory_swap_limit_in_bytes"}


def translate_resources(
    asked: api.LinuxContainerResources, host: HostFacts, before: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """``linux.resources`` as they are after `asked` was applied to what was there `before`.

    Raises `InvalidArgument` for what the kernel's files have no words for.
    """
    found = dict(before or {})
    cpu = {key: value for key, field in _CPU.items() if (value := getattr(asked, field))}
    if cpu:
        found["cpu"] = {**found.get("cpu", {}), **cpu}
    limit, swap = asked.memory_limit_in_bytes, asked.memory_swap_limit_in_bytes
    memory = {"limit": limit} if limit else {}
    if host.swap and (limit or swap):
        memory["swap"] = swap or limit
    if memory:
        found["memory"] = {**found.get("memory", {}), **memory}
    if asked.hugepage_limits and host.hugetlb:
        sizes = {row["pageSize"]: row["limit"] for row in found.get("hugepageLimits", ())}
        sizes |= {row.page_size: row.limit for row in asked.hugepage_limits}
        found["hugepageLimits"] = [{"pageSize": size, "limit": most} for size, most in sizes.items()]
    if asked.unified:
        if not host.cgroup_v2:
            raise InvalidArgument("unified resources are files of cgroup v2: this machine has v1")
        found["unified"] = {**found.get("unified", {}), **asked.unified}
    checked = parse_resources(Reader(found, "linux.resources"))
    for _ in limits_v2(checked) if host.cgroup_v2 else limits_v1(checked):
        # What cannot be said in the kernel's files is refused by whoever lists them.
        continue
    return found


def describe_resources(resources: Mapping[str, Any], oom_score: int | None) -> api.LinuxContainerResources:
    """The same the other way round."""
    found = api.LinuxContainerResources(oom_score_adj=oom_score or 0)
    for part, fields in (("cpu", _CPU), ("memory", _MEMORY)):
        values = resources.get(part, {})
        for key, field in fields.items():
            if key in values:
                setattr(found, field, values[key])
    for row in resources.get("hugepageLimits", ()):
        found.hugepage_limits.add(page_size=row["pageSize"], limit=row["limit"])
    found.unified.update(resources.get("unified", {}))
    return found
