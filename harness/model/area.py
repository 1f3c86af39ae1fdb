"""The areas of the CRI that ``suites/cri`` is divided into: columns of a report, beside the steps of the voyage."""

from __future__ import annotations

from enum import StrEnum


class Area(StrEnum):
    """What a test of the CRI is about; the value is its `operation` in records."""

    PODS = "cri-pods"
    NETWORK = "cri-network"
    CONTAINERS = "cri-containers"
    SECURITY = "cri-security"
    MOUNTS = "cri-mounts"
    RESOURCES = "cri-resources"
    STREAMING = "cri-streaming"
    LOGS = "cri-logs"
    IMAGES = "cri-images"
    STATS = "cri-stats"
    EVENTS = "cri-events"
    STATUS = "cri-status"
    IDEMPOTENCE = "cri-idempotence"
    MALFORMED = "cri-malformed"
