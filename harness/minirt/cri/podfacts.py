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
