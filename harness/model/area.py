"""The areas that ``suites/cri`` and ``suites/oci`` are divided into: columns of a report, beside the steps of the voyage."""

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


class OciArea(StrEnum):
    """What a test of an OCI runtime is about; the value is its `operation` in records."""

    STATE = "oci-state"
    LIFECYCLE = "oci-lifecycle"
    CONFIG = "oci-config"
    PROCESS = "oci-process"
    HOOKS = "oci-hooks"
    MOUNTS = "oci-mounts"
    NAMESPACES = "oci-namespaces"
    DEVICES = "oci-devices"
    RESOURCES = "oci-resources"
    SECCOMP = "oci-seccomp"
    KERNEL = "oci-kernel"
    """what is set in the kernel for a container: sysctls, hidden paths, personality"""
    COMMAND = "oci-command"
    """the command line itself"""
    EXEC = "oci-exec"
    FEATURES = "oci-features"
