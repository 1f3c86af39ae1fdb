"""What a container needs to know of its pod."""

from __future__ import annotations

from dataclasses import dataclass

from cri_api.v1 import api_pb2 as api


@dataclass(frozen=True, slots=True)
class PodFacts:
    """A pod as its containers see it. `ns` and `shm` are folders below the pod's state folder."""

    config: api.PodSandboxConfig
    hostname: str
    files: str
    """folder with resolv.conf, hosts and hostname"""
    ns: str
    shm: str
    user: tuple[tuple[int, int, int], tuple[int, int, int]] | None = None
    """how the ids of users and groups are mapped, where the pod has a user namespace"""

    def is_on_host(self, kind: str) -> bool:
        """Whether containers are in the machine's own namespace of a kind: all are where their pod is."""
        options = self.config.linux.security_context.namespace_options
        return bool(getattr(options, kind) == api.NamespaceMode.NODE)

    @property
    def id_maps(self) -> dict[str, list[dict[str, int]]]:
        """The same as a config.json has it; empty where nothing is mapped."""
        keys = ("uidMappings", "gidMappings")
        return {key: [id_map(*row)] for key, row in zip(keys, self.user or (), strict=False)}


def id_map(inside: int, outside: int, size: int) -> dict[str, int]:
    """One range of ids as a config.json has it."""
    return {"containerID": inside, "hostID": outside, "size": size}
